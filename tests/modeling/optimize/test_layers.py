import copy
from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.optimize import inference, optimize_for_inference, prepare_for_training
from mask2former.modeling.optimize.layers import (
    FasterConv2d,
    FasterLinear,
    PointwiseConv2d,
    WinogradConv2d,
    use_faster_layers,
    use_plain_layers,
)
from mask2former.ops import _library
from mask2former.ops.onednn import has_onednn

pytestmark = pytest.mark.skipif(
    not _library.load_library(), reason="the native library is not built (python -m mask2former.ops.build)"
)


@pytest.fixture
def called(calls_of: Callable[[str], list[torch.Size]]) -> list[torch.Size]:
    """Shapes that the operator was called with."""
    return calls_of("winograd_conv2d")


def module() -> nn.Sequential:
    followed = Conv2d(16, 32, 3, padding=1, bias=False, norm=get_norm("GN", 32), activation=F.relu)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), followed, nn.Sequential(nn.Conv2d(32, 16, 3, padding=1)))


@torch.no_grad()
def test_same_results(called: list[torch.Size]) -> None:
    model, images = module(), torch.randn(2, 3, 9, 11)
    expected = model(images)
    use_faster_layers(model, trained=False)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert called == [(2, 9, 11, 16), (2, 9, 11, 32)]


def test_done_as_before_where_the_operator_is_not_for_it(called: list[torch.Size]) -> None:
    model = module()
    use_faster_layers(model, trained=False)
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    model(images).sum().backward()
    assert images.grad is not None
    with torch.no_grad():
        model.double()(images.double())
    assert not called


def test_constant_weights_have_no_gradients() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    use_faster_layers(model, trained=False)
    assert not model(torch.randn(1, 16, 8, 8)).requires_grad


@torch.no_grad()
def test_exports_have_only_pytorch_operators() -> None:
    model, images = module(), torch.randn(1, 3, 8, 8)
    use_faster_layers(model, trained=False)
    program = torch.export.export(model, (images,))
    assert not [node for node in program.graph.nodes if "mask2former" in str(node.target)]
    assert "mask2former::" not in str(torch.jit.trace(model, images).inlined_graph)


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of the results."""
    model.zero_grad()
    result = model(images)
    (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def test_training(called: list[torch.Size]) -> None:
    model, images = module(), torch.randn(2, 3, 24, 28)
    names, before = list(model.state_dict()), gradients(model, images)
    assert prepare_for_training(model) is model
    for name, x in model.named_parameters():
        if x.dim() == 4:
            assert x.is_contiguous(memory_format=torch.channels_last), name
    after = gradients(model, images)
    # Two convolutions, and the same of their gradients.
    assert called == [(2, 24, 28, 16), (2, 24, 28, 32), (2, 24, 28, 16), (2, 24, 28, 32)]
    assert list(model.state_dict()) == names
    assert after.keys() == before.keys()
    for name, gradient in after.items():
        # Sums over a thousand pixels, of 7 to 600.
        torch.testing.assert_close(gradient, before[name], rtol=0, atol=5e-4, msg=name)
    # New weights are used at once.
    with torch.no_grad():
        for x in model.parameters():
            x.zero_()
    assert not model(images).any()


def test_a_copy_has_weights_of_its_own() -> None:
    model, images = module(), torch.randn(2, 3, 24, 28)
    copied = copy.deepcopy(prepare_for_training(model))
    expected = copied(images)
    with torch.no_grad():
        for x in model.parameters():
            x.zero_()
    assert torch.equal(copied(images), expected)


class Standardised(nn.Conv2d):
    """As in timm's networks without batch norms."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True), self.bias)


@torch.no_grad()
def test_convolutions_that_change_their_weights_stay() -> None:
    model, images = nn.Sequential(Standardised(16, 16, 3, padding=1)), torch.randn(1, 16, 40, 40)
    expected = model(images)
    for trained in (True, False):
        use_faster_layers(model, trained=trained)
        assert type(model[0]) is Standardised
        assert torch.equal(model(images), expected)


class Pointwise(nn.Module):
    """Layers that look at one pixel at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(8, 12, 1, stride=(2, 1))
        self.followed = Conv2d(12, 6, 1, bias=False, norm=nn.GroupNorm(2, 6), activation=F.relu)
        self.linear = nn.Linear(6, 5)
        self.others = nn.Sequential(nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 12, 1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.followed(self.narrow(x))
        return self.linear(x.permute(0, 2, 3, 1))


@pytest.mark.skipif(not has_onednn(), reason="PyTorch multiplies without oneDNN here")
@pytest.mark.parametrize("trained", [False, True])
def test_layers_of_one_pixel(
    trained: bool, calls_of: Callable[[str], list[torch.Size]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former.ops.linear._FEW_MULTIPLICATIONS", 1)
    model, images = Pointwise(), torch.randn(2, 8, 31, 20)
    names, before, expected = list(model.state_dict()), gradients(model, images), model(images)
    use_faster_layers(model, trained=trained)
    assert {name: type(x) for name, x in model.named_modules() if name} == {
        "narrow": PointwiseConv2d,
        "followed": PointwiseConv2d,
        "followed.norm": nn.GroupNorm,
        "linear": FasterLinear,
        "others": nn.Sequential,
        "others.0": nn.Conv2d,
        "others.1": nn.Conv2d,
    }
    assert list(model.state_dict()) == names
    shapes = calls_of("linear")
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert shapes == [(2, 16, 20, 8), (2, 16, 20, 12), (2, 16, 20, 6)]
    for name, gradient in gradients(model, images).items():
        torch.testing.assert_close(gradient, before[name], rtol=0, atol=5e-4, msg=name)
    shapes.clear()
    model.double()(images.double())
    assert not shapes


class Block(nn.Module):
    """Convolutions with frozen batch norms, each by another algorithm, and ReLUs that write into what these give."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2d(3, 16, 7, stride=2, padding=3, norm=FrozenBatchNorm2d(16))
        self.wide = Conv2d(16, 16, 3, padding=1, bias=False, norm=FrozenBatchNorm2d(16))
        self.narrow = Conv2d(16, 32, 1, bias=False, norm=FrozenBatchNorm2d(32), activation=torch.sin)
        for name, x in self.named_buffers():
            x.copy_(torch.rand(x.shape) + (0.5 if name.endswith("var") else 0))

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.stem, self.wide, self.narrow):
            x = F.relu_(conv(x))
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frozen_batch_norms_are_part_of_the_weights(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    autocast = dtype != torch.float32
    model, images = Block(), torch.randn(2, 3, 72, 80)
    names, exact = list(model.state_dict()), copy.deepcopy(model).double()
    expected, result = gradients(exact, images.double()), exact(images.double())

    def errors() -> dict[str, float]:
        """Of gradients, each over their size."""
        with torch.autocast("cpu", dtype, enabled=autocast):
            torch.testing.assert_close(model(images).double(), result, rtol=0, atol=0.04 if autocast else 1e-5)
            found = gradients(model, images)
        assert all(x.dtype == torch.float32 for x in found.values())
        return {name: float((x - expected[name]).norm() / expected[name].norm()) for name, x in found.items()}

    before = errors()
    prepare_for_training(model)
    monkeypatch.setattr(FrozenBatchNorm2d, "forward", None)
    after = errors()
    assert list(model.state_dict()) == names
    if autocast:
        assert sum(after.values()) < 1.1 * sum(before.values())
    else:
        assert max(after.values()) < 1e-5


def test_frozen_batch_norms_without_gradients(called: list[torch.Size]) -> None:
    model, images = Block(), torch.randn(2, 3, 72, 80)
    expected = model(images)
    for trained in (True, False):
        use_faster_layers(model, trained=trained)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
        model.requires_grad_(False)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert len(called) == 6


def test_results_may_be_written_into() -> None:
    model, images = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True)), torch.randn(1, 16, 40, 40)
    # PyTorch's own gradient of the bias, in float32 and one thread, is no nearer than this.
    expected = gradients(copy.deepcopy(model).double(), images.double())
    for name, gradient in gradients(prepare_for_training(model), images).items():
        torch.testing.assert_close(gradient.double(), expected[name], rtol=0, atol=5e-4, msg=name)


def test_images_without_a_batch() -> None:
    model, image = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 1)), torch.randn(16, 40, 40)
    expected = model(image)
    torch.testing.assert_close(prepare_for_training(model)(image), expected)


def test_plain_again() -> None:
    model = nn.Sequential(module(), Pointwise())
    before = {name: type(x) for name, x in model.named_modules()}
    names = [name for name, _ in model.named_buffers()]
    for trained in (True, False):
        use_faster_layers(model, trained=trained)
        use_plain_layers(model)
        assert {name: type(x) for name, x in model.named_modules()} == before
        assert [name for name, _ in model.named_buffers()] == names


@torch.no_grad()
def test_batch_norms_of_a_trained_model_are_folded_into_their_convolutions(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    model = build_model(tiny_cfg).eval()
    for name, x in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            x.copy_(torch.rand(x.shape) + 0.5)
    images = torch.randn(1, 3, 96, 128)
    expected = model.run_network(images)["pred_masks"]
    fast = optimize_for_inference(prepare_for_training(model))
    assert not [name for name, x in fast.backbone.named_modules() if type(x).__name__ == "FrozenBatchNorm2d"]
    torch.testing.assert_close(fast.run_network(images)["pred_masks"], expected, rtol=0, atol=1e-4)


def test_what_is_not_on_a_cpu() -> None:
    model = prepare_for_training(nn.Sequential(module(), Block()).to("meta"))
    assert [name for name, x in model.named_modules() if isinstance(x, FasterConv2d)] == [
        "1.stem",
        "1.wide",
        "1.narrow",
    ]
    assert {type(x) for x in model.modules() if isinstance(x, FasterConv2d)} == {FasterConv2d}
    model[1](torch.randn(1, 3, 64, 64, device="meta")).sum().backward()
    assert model[1].stem.weight.grad is not None


def test_new_statistics_of_a_frozen_batch_norm_are_used_at_once() -> None:
    model, images = prepare_for_training(Block()), torch.randn(1, 3, 64, 64)
    model(images)
    other = Block()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(images), other(images), rtol=0, atol=1e-5)
    model.stem.norm.running_mean = torch.ones(16)
    other.stem.norm.running_mean = torch.ones(16)
    torch.testing.assert_close(model(images), other(images), rtol=0, atol=1e-5)
    for x in model.buffers():  # which a copy has as well, in another number of steps
        x.add_(0)
    model(images)
    copied = copy.deepcopy(model)
    last = Block()
    for _ in range(4):
        copied.load_state_dict(last.state_dict())
        torch.testing.assert_close(copied(images), last(images), rtol=0, atol=1e-5)
    model.double()
    images = images.double()
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        torch.testing.assert_close(model(images), other.double()(images))


@torch.no_grad()
def test_a_trained_model_is_optimised(tiny_cfg: CfgNode, called: list[torch.Size]) -> None:
    model = build_model(tiny_cfg).eval()
    images = torch.randn(1, 3, 64, 96)
    expected = model.run_network(images)["pred_masks"]
    fast = optimize_for_inference(prepare_for_training(model))
    found = {name: x for name, x in fast.named_modules() if type(x) is WinogradConv2d}
    assert found
    assert all(x.transformed is not None for x in found.values())
    assert not [x for x in model.modules() if type(x) is WinogradConv2d and x.transformed is not None]
    called.clear()
    torch.testing.assert_close(fast.run_network(images)["pred_masks"], expected, rtol=0, atol=1e-4)
    assert len(called) == len(found)


@pytest.mark.parametrize(("dtype", "winograd"), [("float32", True), ("bfloat16", False)])
def test_which_models_use_it(tiny_cfg: CfgNode, dtype: inference.Dtype, winograd: bool) -> None:
    model = build_model(tiny_cfg).eval()
    fast = optimize_for_inference(model, dtype=dtype)
    found = [name for name, x in fast.named_modules() if type(x) is WinogradConv2d]
    assert ("sem_seg_head.pixel_decoder.layer_1" in found) is winograd
    assert any(name.startswith("backbone") for name in found) is winograd
    assert not [x for x in model.modules() if type(x) is WinogradConv2d]


def test_nothing_is_transformed_where_nothing_is_built(tiny_cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mask2former.ops._library.load_library", lambda: False)
    model = optimize_for_inference(build_model(tiny_cfg).eval())
    assert not [x for x in model.modules() if type(x) is WinogradConv2d]


@torch.no_grad()
def test_compiled() -> None:
    model, images = module(), torch.randn(2, 3, 8, 9)
    expected = model(images)
    use_faster_layers(model, trained=False)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(images), expected, rtol=0, atol=1e-5)
    assert compiled(torch.randn(3, 3, 12, 5)).shape == (3, 16, 12, 5)
    assert len(graphs) == 1
    assert sum("winograd_conv2d" in str(node.target) for node in graphs[0].graph.nodes) == 2
