"""Test-time augmentation: what the views are, and what comes of them."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import Instances
from torch import Tensor, nn

from mask2former import SemanticSegmentorWithTTA
from mask2former.engine import SegmentorWithTTA, load_config
from tests.modeling.conftest import make_tiny_cfg

BuildConfig = Callable[..., CfgNode]
TOY = {"MODEL__META_ARCHITECTURE": "ToyMaskFormer", "INPUT__FORMAT": "RGB"}


def _picture(height: int, width: int) -> Tensor:
    """Blue ground with a red rectangle and a green one, (3, H, W) uint8; edges at multiples of 8."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[...] = (40, 40, 220)
    image[8:40, 16:48] = (220, 40, 40)
    image[24:56, width - 40 : width - 8] = (40, 220, 40)
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def _by_score(instances: Instances) -> Instances:
    return instances[instances.scores.argsort(descending=True, stable=True)]


def _assert_same(ours: dict[str, Any], plain: dict[str, Any]) -> None:
    assert ours.keys() == plain.keys() == {"sem_seg", "panoptic_seg", "instances"}
    # At the edge where the padding begins, masks are interpolated between it and the image; mirrored, that is another.
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours["sem_seg"][inside], plain["sem_seg"][inside], rtol=0, atol=1e-5)
    regions = [
        {(s["category_id"], s["isthing"]): ids == s["id"] for s in infos}
        for ids, infos in (ours["panoptic_seg"], plain["panoptic_seg"])
    ]
    assert regions[0].keys() == regions[1].keys()
    assert all(torch.equal(mask, regions[1][kind]) for kind, mask in regions[0].items())
    found, expected = _by_score(ours["instances"]), _by_score(plain["instances"])
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.fixture
def toy_model(toy_config: BuildConfig) -> Any:
    return build_model(toy_config(**TOY)).eval()


@pytest.fixture
def tiny_model() -> Any:
    return build_model(make_tiny_cfg()).eval()


@pytest.mark.parametrize("size", [(64, 96), (71, 101)])
def test_one_view_of_the_size_that_the_image_has_is_the_plain_model(tiny_model: Any, size: tuple[int, int]) -> None:
    entry = {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8), "height": 50, "width": 77}
    augmented = SegmentorWithTTA(tiny_model, min_sizes=[min(size)], max_size=1000, flip=False)
    with torch.no_grad():
        plain = tiny_model([entry])[0]
    ours = augmented([entry])[0]
    assert torch.equal(ours["sem_seg"], plain["sem_seg"])
    assert torch.equal(ours["panoptic_seg"][0], plain["panoptic_seg"][0])
    assert ours["panoptic_seg"][1] == plain["panoptic_seg"][1]
    for name, value in plain["instances"].get_fields().items():
        found = ours["instances"].get(name)
        assert torch.equal(getattr(found, "tensor", found), getattr(value, "tensor", value)), name


@pytest.mark.parametrize(("size", "output"), [((64, 96), (64, 96)), ((64, 128), (100, 200)), ((80, 104), (40, 52))])
def test_mirror_images_change_nothing_for_a_model_that_does_not_see_them(
    toy_model: Any, size: tuple[int, int], output: tuple[int, int]
) -> None:
    entry = {"image": _picture(*size), "height": output[0], "width": output[1]}
    with torch.no_grad():
        plain = toy_model([entry])[0]
        mirrored = toy_model([{**entry, "image": entry["image"].flip(-1)}])[0]
    assert plain["panoptic_seg"][1] != mirrored["panoptic_seg"][1]  # the queries have another order
    assert len(plain["panoptic_seg"][1]) == 3
    augmented = SegmentorWithTTA(toy_model, min_sizes=[min(size)], max_size=1000, flip=True)
    _assert_same(augmented([entry])[0], plain)


def test_several_sizes_agree_on_what_is_there(toy_model: Any) -> None:
    entry = {"image": _picture(64, 96)}
    with torch.no_grad():
        plain = toy_model([entry])[0]
    result = SegmentorWithTTA(toy_model, min_sizes=[96, 64, 128], max_size=1000, flip=True)([entry])[0]
    ids, segments = result["panoptic_seg"]
    assert sorted(s["category_id"] for s in segments) == [0, 1, 2]
    assert (result["sem_seg"].argmax(0) == plain["sem_seg"].argmax(0)).float().mean() > 0.98
    assert (ids > 0).float().mean() > 0.98
    found, expected = (_by_score(r["instances"])[:2] for r in (result, plain))
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    overlap = (found.pred_masks & expected.pred_masks).flatten(1).sum(1)
    assert (overlap > 0.95 * (found.pred_masks | expected.pred_masks).flatten(1).sum(1)).all()
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.02)


@pytest.mark.parametrize("flip", [False, True])
def test_class_scores_are_the_mean_over_detectron2_s_views(tiny_model: Any, flip: bool) -> None:
    """As the official release: Detectron2's mapper makes the views, and scores of mirror images are turned back."""
    model = tiny_model.with_outputs({"semantic"})
    sizes = {"min_sizes": (40, 64, 90), "max_size": 120, "flip": flip}
    entry = {"image": torch.randint(0, 256, (3, 60, 85), dtype=torch.uint8), "height": 33, "width": 47}
    scores = []
    with torch.no_grad():
        for number, view in enumerate(DatasetMapperTTA(**sizes)(entry)):
            seen = model([view])[0]["sem_seg"]
            scores.append(seen.flip(-1) if flip and number % 2 else seen)
    result = SegmentorWithTTA(model, **sizes)([entry])[0]
    assert result.keys() == {"sem_seg"}
    torch.testing.assert_close(result["sem_seg"], torch.stack(scores).mean(0), rtol=1e-5, atol=1e-6)
    both = SegmentorWithTTA(tiny_model, **sizes)([entry])[0]  # together with segments
    torch.testing.assert_close(both["sem_seg"], result["sem_seg"], rtol=1e-5, atol=1e-6)


class _Recorder(nn.Module):
    """Gives zeros, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.seen += batch
        return [{"sem_seg": torch.zeros(2, entry["height"], entry["width"])} for entry in batch]


def _views(cfg: CfgNode, height: int, width: int) -> list[Tensor]:
    recorder = _Recorder()
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    result = SegmentorWithTTA(cfg, recorder)([{"image": image}])[0]
    assert result["sem_seg"].shape == (2, height, width)
    assert all((entry["height"], entry["width"]) == (height, width) for entry in recorder.seen)
    return [entry["image"] for entry in recorder.seen]


ADE20K = "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"
ADE20K_640 = "ade20k/semantic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_160k_res640.yaml"
CITYSCAPES = "cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml"


@pytest.mark.parametrize(
    ("file", "image", "sizes"),
    [
        (ADE20K, (50, 100), [(256, 512), (384, 768), (512, 1024), (640, 1280), (768, 1536), (896, 1792)]),
        (ADE20K, (20, 200), [(256, 2560), (358, 3584), (358, 3584), (358, 3584), (358, 3584), (358, 3584)]),
        (ADE20K_640, (40, 40), [(s, s) for s in (320, 480, 640, 800, 960, 1120)]),
        (CITYSCAPES, (64, 128), [(s, 2 * s) for s in (512, 768, 1024, 1280, 1536, 1792)]),
    ],
)
def test_the_paper_s_sizes(repository: Any, file: str, image: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    views = _views(load_config(str(repository / "configs" / file)), *image)
    assert [tuple(view.shape[-2:]) for view in views] == [size for size in reversed(sizes) for _ in range(2)]
    assert all(torch.equal(first.flip(-1), second) for first, second in zip(views[::2], views[1::2], strict=True))


def test_scales_are_relative_to_the_image(toy_config: BuildConfig) -> None:
    cfg = toy_config(TEST__AUG__SCALES="[1.0, 0.5, 1.5]", TEST__AUG__FLIP=False)
    assert [tuple(view.shape) for view in _views(cfg, 30, 51)] == [(3, 45, 76), (3, 30, 51), (3, 15, 26)]


def test_float_and_gray_images(toy_config: BuildConfig) -> None:
    cfg = toy_config(TEST__AUG__SCALES="[1.0, 2.0]")
    for image in (torch.rand(3, 20, 30) * 255, torch.randint(0, 256, (1, 20, 30), dtype=torch.uint8)):
        recorder = _Recorder()
        SegmentorWithTTA(cfg, recorder)([{"image": image}])
        assert torch.equal(recorder.seen[2]["image"], image)
        assert recorder.seen[0]["image"].shape == (len(image), 40, 60)
        assert recorder.seen[0]["image"].dtype == image.dtype


def test_the_official_name(toy_config: BuildConfig) -> None:
    assert isinstance(SemanticSegmentorWithTTA(toy_config(), _Recorder()), SegmentorWithTTA)


def test_other_outputs(toy_model: Any) -> None:
    augmented = SegmentorWithTTA(toy_model, min_sizes=[64], max_size=100, flip=True)
    entry = {"image": _picture(64, 96)}
    semantic = augmented.with_outputs({"semantic"}, lazy_class_scores=True)([entry])[0]
    assert {name: type(value) for name, value in semantic.items()} == {"sem_seg": torch.Tensor}
    every, probable = (
        augmented.with_outputs({"instance"}, instance_threshold=threshold)([entry])[0]["instances"]
        for threshold in (0.0, 0.4)
    )
    assert 0 < len(probable) < len(every)
    assert torch.equal(probable.scores[probable.scores >= 0.4], every.scores[every.scores >= 0.4])
    nothing = augmented.with_outputs({"panoptic"}, object_mask_threshold=0.99, panoptic_scores=True)([entry])[0]
    assert nothing["panoptic_seg"][1] == []
    scored = augmented.with_outputs({"panoptic"}, panoptic_scores=True)([entry])[0]["panoptic_seg"][1]
    assert all(0.5 < segment["score"] < 1 for segment in scored)
    assert augmented([entry])[0].keys() == {"sem_seg", "panoptic_seg", "instances"}  # as it was


@pytest.mark.parametrize(
    "sizes",
    [
        {"min_sizes": [], "max_size": 100},
        {"min_sizes": [0, 64], "max_size": 100},
        {"min_sizes": [64], "max_size": 0},
        {"min_sizes": [64], "max_size": 100, "scales": [-1.0]},
    ],
)
def test_impossible_sizes(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"TEST\.AUG has MIN_SIZES .*; expected at least one size or scale"):
        SegmentorWithTTA(_Recorder(), flip=False, **sizes)


def test_tiles_are_for_class_scores_only(toy_config: BuildConfig) -> None:
    tiles = {"MODEL__MASK_FORMER__TEST__TILE_SIZE": 64, "MODEL__MASK_FORMER__TEST__TILE_OVERLAP": 32}
    model = build_model(toy_config(**TOY, **tiles)).eval()
    with pytest.raises(ValueError, match=r"TILE_SIZE cuts images into tiles\. Set TILE_SIZE 0 .*or turn PANOPTIC_ON"):
        SegmentorWithTTA(model, min_sizes=[64], max_size=200, flip=False)
    model = model.with_outputs({"semantic"})
    entry = {"image": _picture(64, 96)}
    with torch.no_grad():
        plain = model([entry])[0]["sem_seg"]
    result = SegmentorWithTTA(model, min_sizes=[64], max_size=200, flip=True)([entry])[0]["sem_seg"]
    torch.testing.assert_close(result, plain, rtol=0, atol=1e-5)


def test_segments_of_other_models_are_refused(toy: ModuleType) -> None:
    augmented = SegmentorWithTTA(toy.ToySegmenter().eval(), min_sizes=[64], max_size=200, flip=False)
    with pytest.raises(ValueError, match=r"ToySegmenter gives \['instances', 'panoptic_seg', 'sem_seg'\], but"):
        augmented([{"image": _picture(64, 96)}])


def test_a_forward_of_ones_own_is_not_passed_by(toy_model: Any) -> None:
    """Its queries say nothing of what it makes of them."""

    class OwnForward(type(toy_model)):  # type: ignore[misc]
        def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**result, "sem_seg": result["sem_seg"] + 1} for result in super().forward(batched_inputs)]

    toy_model.__class__ = OwnForward
    entry = {"image": _picture(64, 96)}
    augmented = SegmentorWithTTA(toy_model, min_sizes=[64], max_size=1000, flip=False)
    with pytest.raises(ValueError, match=r"OwnForward gives \['instances', 'panoptic_seg', 'sem_seg'\]"):
        augmented([entry])
    toy_model.panoptic_on = toy_model.instance_on = False
    (found,) = SegmentorWithTTA(toy_model, min_sizes=[64], max_size=1000, flip=False)([entry])
    assert found.keys() == {"sem_seg"}
    assert found["sem_seg"].min() >= 1
