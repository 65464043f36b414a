"""The official release's results, from deterministic weights (shared/contract)."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask2former import add_maskformer2_config
from mask2former.modeling.postprocessing import MaskGeometry, QueryPrediction

# What float32's rounding may move in a whole network, relative to the range of the values (measured: 3e-6). It depends
# on the processor and on the number of threads, so the reference itself has pixels that another machine decides anew.
ROUNDING = 1e-5
CASES = ["r50_panoptic", "swin_t_semantic"]


def _seeded(contract_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", contract_dir / "seeded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_cfg(repository: Path, config: str, options: list[Any]) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(repository / "configs" / config), allow_unsafe=False)
    cfg.merge_from_list([*options, "MODEL.DEVICE", "cpu"])
    return cfg


def _seeded_model(cfg: CfgNode, seeded: ModuleType) -> nn.Module:
    model = build_model(cfg).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing = model.load_state_dict(seeded.seeded_state_dict(shapes), strict=False).missing_keys
    assert all(name.endswith(("empty_weight", "relative_position_index")) for name in missing)
    return model


def _assert_within_range(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-4) -> None:
    """Largest difference relative to the range of the expected values."""
    expected_tensor = torch.from_numpy(np.asarray(expected)).float()
    assert actual.shape == expected_tensor.shape
    span = expected_tensor.max() - expected_tensor.min()
    assert (actual.float() - expected_tensor).abs().max() < tolerance * span


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, contract_dir: Path, repository: Path) -> dict[str, Any]:
    """Expected and computed results of one golden case."""
    expected = np.load(contract_dir / "golden" / f"{request.param}.npz")
    meta = json.loads(str(expected["meta"]))
    seeded = _seeded(contract_dir)
    model = _seeded_model(_load_cfg(repository, meta["config"], meta["opts"]), seeded)
    image = seeded.seeded_image(request.param, *meta["image"])
    height, width = meta["output"]
    logits, masks = (torch.from_numpy(expected[name]).float() for name in ("pred_logits", "pred_masks"))
    with torch.no_grad():
        features = model.backbone(model._normalise_and_pad([{"image": image}]).tensor)
        mask_features, _, multi_scale = model.sem_seg_head.pixel_decoder.forward_features(features)
        model.sem_seg_head.predictor.train()  # for the auxiliary predictions
        predictions = model.sem_seg_head.predictor(multi_scale, mask_features)
        model.eval()
        result = model([{"image": image, "height": height, "width": width}])[0]
        padded_size = tuple(model._normalise_and_pad([{"image": image}]).tensor.shape[-2:])
        geometry = MaskGeometry(padded_size, image_size=(image.shape[1], image.shape[2]), output_size=(height, width))
        result_of_reference = model.postprocess(QueryPrediction(logits, masks, geometry))
    return {
        "model": model,
        "expected": expected,
        "reference_logits": logits,
        "reference_masks": geometry.to_output(masks),
        "result_of_reference": result_of_reference,
        "mask_features": mask_features,
        "multi_scale": multi_scale,
        "predictions": predictions,
        "result": result,
    }


def test_pixel_decoder(case: dict[str, Any]) -> None:
    for index, feature in enumerate(case["multi_scale"]):
        _assert_within_range(feature[0, :, ::4, ::4], case["expected"][f"multi_scale_{index}"])
    _assert_within_range(case["mask_features"][0, :, ::16, ::16], case["expected"]["mask_features_corner"])


def test_every_prediction(case: dict[str, Any]) -> None:
    expected, predictions = case["expected"], case["predictions"]
    _assert_within_range(predictions["pred_logits"][0], expected["pred_logits"])
    _assert_within_range(predictions["pred_masks"][0], expected["pred_masks"])
    assert len(predictions["aux_outputs"]) == len(expected["aux_pred_logits"]) == 9
    for index, auxiliary in enumerate(predictions["aux_outputs"]):
        _assert_within_range(auxiliary["pred_logits"][0], expected["aux_pred_logits"][index])
        _assert_within_range(auxiliary["pred_masks"][0, :, ::8, ::8], expected["aux_pred_masks_sub"][index])


def test_post_processing_of_the_reference_s_predictions(case: dict[str, Any]) -> None:
    """No rounding of a network lies between: every pixel is the official one."""
    expected, result = case["expected"], case["result_of_reference"]
    assert np.array_equal(result["sem_seg"].argmax(0).numpy(), expected["sem_seg_argmax"])
    _assert_within_range(result["sem_seg"][:, ::8, ::8], expected["sem_seg_sub"], 1e-5)
    if "panoptic_seg" not in expected:
        assert set(result) == {"sem_seg"}
        return
    ids, segments = result["panoptic_seg"]
    assert np.array_equal(ids.numpy(), expected["panoptic_seg"])
    assert segments == json.loads(str(expected["segments_info"]))
    instances = result["instances"]
    assert np.array_equal(instances.pred_classes.numpy(), expected["inst_classes"])
    assert np.array_equal(instances.pred_masks.flatten(1).numpy(), _instance_masks(expected))
    assert np.array_equal(instances.pred_masks.sum((1, 2)).numpy(), expected["inst_area"])
    _assert_within_range(instances.scores, expected["inst_scores"], 1e-5)


def test_semantic_result(case: dict[str, Any]) -> None:
    scores = case["result"]["sem_seg"]
    best, second = case["result_of_reference"]["sem_seg"].topk(2, dim=0).values
    _assert_equal_but_for_ties(scores.argmax(0), case["expected"]["sem_seg_argmax"], (best - second) / best.max())
    _assert_within_range(scores[:, ::8, ::8], case["expected"]["sem_seg_sub"])


def test_panoptic_result(case: dict[str, Any]) -> None:
    expected, result = case["expected"], case["result"]
    if "panoptic_seg" not in expected:
        pytest.skip("a semantic model")
    ids, segments = result["panoptic_seg"]
    assert segments == json.loads(str(expected["segments_info"]))
    scores, labels = case["reference_logits"].softmax(-1).max(-1)
    kept = (labels != case["reference_logits"].shape[-1] - 1) & (scores > case["model"].object_mask_threshold)
    masks = case["reference_masks"][kept]
    (best, second), (winner, _) = (scores[kept, None, None] * masks.sigmoid()).topk(2, dim=0)
    # A pixel is undecided between two queries, or between the winner and void.
    margin = torch.minimum(best - second, masks.gather(0, winner[None])[0].abs() / _span(masks))
    _assert_equal_but_for_ties(ids, expected["panoptic_seg"], margin)


def test_instance_results(case: dict[str, Any]) -> None:
    expected, result = case["expected"], case["result"]
    if "inst_classes" not in expected:
        pytest.skip("a semantic model")
    instances = result["instances"]
    assert np.array_equal(instances.pred_classes.numpy(), expected["inst_classes"])
    _assert_within_range(instances.scores, expected["inst_scores"])
    probabilities = case["reference_logits"].softmax(-1)[:, :-1]
    pairs = probabilities.flatten().topk(case["model"].test_topk_per_image, sorted=False).indices
    is_thing = [pair % probabilities.shape[1] in case["model"]._thing_classes for pair in pairs.tolist()]
    masks = case["reference_masks"][pairs[is_thing] // probabilities.shape[1]]
    expected_masks = _instance_masks(expected).reshape(masks.shape)
    _assert_equal_but_for_ties(instances.pred_masks, expected_masks, masks.abs() / _span(masks))


def _instance_masks(expected: Any) -> np.ndarray:
    """(N, H * W) bool."""
    area = expected["sem_seg_argmax"].size
    return np.unpackbits(expected["inst_masks_packed"], axis=1)[:, :area].astype(bool)


def _span(values: Tensor) -> Tensor:
    return values.max() - values.min()


def _assert_equal_but_for_ties(actual: Tensor, expected: np.ndarray, margin: Tensor) -> None:
    """Only what the reference decided by less than the rounding of a network may differ, and that a few pixels at most.

    Args:
        actual: (..., H, W).
        expected: the same shape.
        margin: the same shape, by how much the reference decided as it did, relative to the range of what it compared.
    """
    different = actual.numpy() != expected
    assert margin[torch.from_numpy(different)].le(ROUNDING).all()
    assert different.sum() <= 5


@pytest.mark.timeout(900)  # each draw computes all ten predictions' losses at the paper's 12,544 points
def test_loss_terms_within_three_standard_errors(contract_dir: Path, repository: Path) -> None:
    golden = json.loads((contract_dir / "golden" / "r50_panoptic_loss.json").read_text())
    meta = golden["meta"]
    seeded = _seeded(contract_dir)
    model = _seeded_model(_load_cfg(repository, meta["config"], []), seeded).train()
    labels, masks = seeded.seeded_targets(meta["case"], *meta["image"], meta["instances"], meta["num_classes"])
    image = seeded.seeded_image(meta["case"], *meta["image"])
    draws: dict[str, list[float]] = {}
    count = 20
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(model._normalise_and_pad([{"image": image}]).tensor))
        for draw in range(count):
            torch.manual_seed(draw)
            for name, value in model.criterion(outputs, [{"labels": labels, "masks": masks}]).items():
                draws.setdefault(name, []).append(float(value))
    assert set(draws) == set(golden["mean"])
    deviations, spreads = [], []
    for name, values in draws.items():
        # The standard error of the difference of two sample means. The variance is that of both samples together: an
        # assignment that one draw in twenty finds may be missing in either.
        variance = (count * np.var(values) + meta["draws"] * golden["std"][name] ** 2) / (count + meta["draws"])
        error = np.sqrt(variance * (1 / count + 1 / meta["draws"]))
        difference = abs(np.mean(values) - golden["mean"][name])
        assert difference < 3 * error + 1e-5, name  # they are rounded to five decimals
        if golden["std"][name] > 0:
            deviations.append(difference / error)
            spreads.append(np.std(values) / golden["std"][name])
    # What three errors of a single term would hide: a small bias of all terms, or points that are fewer or elsewhere.
    assert np.sqrt(np.mean(np.square(deviations))) < 1.3
    assert np.median(spreads) == pytest.approx(1, abs=0.15)
