"""Saved predictions beside the truth: which images, in which order, and what is drawn."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import visualize_predictions
from detectron2.data import MetadataCatalog
from PIL import Image

from mask2former.evaluation import build_evaluator, evaluate_groups
from mask2former.visualization import draw_instances, draw_panoptic, draw_semantic
from tests.evaluation.conftest import HEIGHT, WIDTH, Scene, config, make_scene, run  # noqa: F401

IMAGES = 6


@pytest.fixture
def saved(make_scene: Callable[..., Scene], config: Callable, run: Callable, tmp_path: Path) -> tuple[Scene, Path]:  # noqa: F811
    """A scene with pictures, and the folder of its predictions."""
    scene = make_scene(images=IMAGES)
    for i, record in enumerate(scene.inputs):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * i, dtype=np.uint8)).save(record["file_name"])
    run(build_evaluator(config(), scene.name), scene.inputs, scene.outputs)
    return scene, tmp_path / "out" / "inference"


@pytest.fixture
def draw(
    saved: tuple[Scene, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[str], list[np.ndarray]]]:
    """Run the tool; returns the lines that it prints and the drawings."""
    scene, folder = saved

    def run_tool(*words: object) -> tuple[list[str], list[np.ndarray]]:
        drawn = []
        given = ["--dataset", scene.name, "--predictions", folder, "--output", tmp_path / "drawn", *words]
        with pytest.MonkeyPatch.context() as patch:
            save = visualize_predictions.save_drawings
            patch.setattr(
                visualize_predictions,
                "save_drawings",
                lambda drawings, *args, **options: save((drawn.append(d) or d for d in drawings), *args, **options),
            )
            visualize_predictions.main([str(word) for word in given])
        return capsys.readouterr().out.splitlines(), [drawing for _, drawing, _ in drawn]

    return run_tool


def test_a_file_for_each_and_a_sheet(draw: Callable, saved: tuple[Scene, Path], tmp_path: Path) -> None:
    lines, drawings = draw("--number", 4, "--sheet")
    assert len(drawings) == 4
    assert {drawing.shape for drawing in drawings} == {(HEIGHT, 2 * WIDTH + 4, 3)}
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert [line.partition(":")[0] for line in lines[:4]] == names[:4]
    assert names[4:] == ["sheet.jpg"]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_left_is_the_prediction(task: str, draw: Callable, saved: tuple[Scene, Path]) -> None:
    scene, _ = saved
    metadata = MetadataCatalog.get(scene.name)
    _, drawings = draw("--task", task, "--number", IMAGES, "--threshold", 0.4)
    for i, (drawing, output) in enumerate(zip(drawings, scene.outputs, strict=True)):
        image = np.full((HEIGHT, WIDTH, 3), 20 * i, dtype=np.uint8)
        if task == "panoptic":
            expected = draw_panoptic(image, *output["panoptic_seg"], metadata)
        elif task == "semantic":
            expected = draw_semantic(image, output["sem_seg"].argmax(0), metadata)
        else:
            kept = output["instances"][output["instances"].scores >= 0.4]
            kept = kept[kept.scores.argsort(descending=True)]
            expected = draw_instances(image, kept.pred_masks, kept.pred_classes, kept.scores, metadata)
        np.testing.assert_array_equal(drawing[:, :WIDTH], expected)


def test_right_is_the_truth(draw: Callable, saved: tuple[Scene, Path]) -> None:
    scene, _ = saved
    metadata = MetadataCatalog.get(scene.name)
    _, drawings = draw("--task", "semantic", "--number", IMAGES)
    for i, (drawing, record) in enumerate(zip(drawings, scene.inputs, strict=True)):
        image = np.full((HEIGHT, WIDTH, 3), 20 * i, dtype=np.uint8)
        truth = np.asarray(Image.open(record["sem_seg_file_name"]))
        np.testing.assert_array_equal(drawing[:, -WIDTH:], draw_semantic(image, truth, metadata))
    # Void, or no thing: the picture itself.
    _, drawings = draw("--task", "panoptic", "--number", IMAGES)
    assert (drawings[-1][:, -WIDTH:] == 20 * (IMAGES - 1)).all()
    assert (drawings[0][:, -WIDTH:] != 0).any()


@pytest.mark.parametrize(("task", "metric"), [("panoptic", "PQ"), ("instance", "AP"), ("semantic", "mIoU")])
@pytest.mark.parametrize("how", ["worst", "best"])
def test_worst_and_best(task: str, metric: str, how: str, draw: Callable, saved: tuple[Scene, Path]) -> None:
    scene, folder = saved
    metrics = evaluate_groups(scene.name, folder, {r["image_id"]: [r["image_id"]] for r in scene.inputs})
    scores = {r["file_name"]: metrics[r["image_id"]][metric] for r in scene.inputs}
    expected = sorted((v for v in scores.values() if not math.isnan(v)), reverse=how == "best")
    lines, _ = draw("--task", task, "--choose", how, "--number", IMAGES)
    found = [line.split(": ")[1].split(", ") for line in lines[:-1]]
    assert [name for name, _ in found] == [f"{metric} {scores[file]:.1f}" for _, file in found]
    assert [name for name, _ in found][: len(expected)] == [f"{metric} {value:.1f}" for value in expected]
    assert len(found) == IMAGES


def test_the_random_choice_has_a_seed(draw: Callable) -> None:
    first, again, other = (draw("--number", 2, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("words", "message"),
    [([], r"DATASETS\.TEST is empty; name a data set"), (["--dataset", "toi"], "there is no data set 'toi'")],
)
def test_data_sets_that_are_none(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        visualize_predictions.main(["--predictions", str(tmp_path), "--output", str(tmp_path / "drawn"), *words])
