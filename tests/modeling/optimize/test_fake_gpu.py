"""What is optimised for a GPU, on one that is not there: its tensors have shapes, and that is all."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torch._subclasses import FakeTensorMode

from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.optimize import optimize_for_inference
from tests.fake_gpu import fake_gpu, recorder


@pytest.fixture
def _gpu() -> Iterator[None]:
    with fake_gpu():
        yield


def move_to_gpu(model: MaskFormer, mode: FakeTensorMode) -> None:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = mode.from_tensor(tensor.detach()).to("cuda")
                    tensors[name] = nn.Parameter(moved, False) if tensors is module._parameters else moved


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_graph(tiny_cfg: CfgNode, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    graphs: list[torch.fx.GraphModule] = []
    compile_function, backend = torch.compile, recorder(graphs)
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_function(function, backend=backend, **how))
    tiny_cfg.MODEL.MASK_FORMER.NHEADS = tiny_cfg.MODEL.MASK_FORMER.HIDDEN_DIM // 16
    model = build_model(tiny_cfg).eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        move_to_gpu(model, mode)
        images = torch.zeros(1, 3, 64, 96, device="cuda")
        expected = model.run_network(images)
        found = optimize_for_inference(model, dtype=dtype, compile_mode="default").run_network(images)
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].device) == (tensor.shape, tensor.device)
    assert len(graphs) == 1
    counts = Counter(str(node.target).split(" of ")[0] for node in graphs[0].graph.nodes)
    layers = tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1
    assert counts["mask2former.triton_masked_attention"] == layers
    # Of the decoder's feed-forward networks, of masks for attention, and of the encoder's.
    assert counts["<built-in method _addmm_activation"] >= layers + 2 * (layers + 1) + 1
    assert bool(counts["mask2former.convolve_relu.default"]) == (dtype == "bfloat16")
