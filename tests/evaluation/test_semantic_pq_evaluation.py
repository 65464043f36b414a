import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from mask2former.evaluation import (
    SemanticPQEvaluator,
    SemSegEvaluator,
    build_evaluator,
    evaluate_saved_semantic_pq,
)
from tools import evaluate_pq_for_semantic_segmentation

NUM_CLASSES, VOID = 4, 255


def _as_panoptic(folder: Path, name: str, classes: np.ndarray) -> dict:
    """Write a class map as segments, with the class plus one as their ids."""
    folder.mkdir(exist_ok=True)
    present = [c for c in np.unique(classes).tolist() if c != VOID]
    Image.fromarray(id2rgb(np.where(classes == VOID, 0, classes + 1))).save(folder / name)
    infos = [{"id": c + 1, "category_id": c, "iscrowd": 0, "area": int((classes == c).sum())} for c in present]
    return {"image_id": name, "file_name": name, "segments_info": infos}


def _by_panopticapi(scene, folder: Path) -> dict[str, float]:
    """PQ of the class maps written as panoptic annotations."""
    pairs = []
    for record, output in zip(scene.inputs, scene.outputs, strict=True):
        name = Path(record["file_name"]).name
        truth = np.array(Image.open(record["sem_seg_file_name"]), dtype=np.int64)
        predicted = output["sem_seg"].argmax(0).numpy()
        pairs.append((_as_panoptic(folder / "truth", name, truth), _as_panoptic(folder / "found", name, predicted)))
    categories = {c: {"id": c, "isthing": 0} for c in range(NUM_CLASSES)}
    stat: PQStat = pq_compute_single_core(0, pairs, str(folder / "truth"), str(folder / "found"), categories)
    result, _ = stat.pq_average(categories, isthing=None)
    return {name.upper(): 100 * result[name] for name in ("pq", "sq", "rq")}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_panopticapi_on_classes_as_segments(make_scene, run, tmp_path, seed, capsys):
    scene = make_scene(images=8, seed=seed)
    for output in scene.outputs:  # large regions, so that some are hit
        background = int(torch.randint(0, NUM_CLASSES, ()))
        output["sem_seg"][background] += 0.5
        output["sem_seg"][background - 1] = -1  # a class of which there is none
    found = run(SemanticPQEvaluator(scene.name), scene.inputs, scene.outputs)

    assert found["semantic_pq"] == pytest.approx(_by_panopticapi(scene, tmp_path))
    assert 5 < found["semantic_pq"]["PQ"] < 95


def test_saved_predictions_give_the_same(make_scene, run, tmp_path, capsys):
    scene = make_scene()
    found = run(SemanticPQEvaluator(scene.name), scene.inputs, scene.outputs)
    run(SemSegEvaluator(scene.name, str(tmp_path)), scene.inputs, scene.outputs)
    file = tmp_path / "sem_seg_predictions.json"

    assert evaluate_saved_semantic_pq(scene.name, file) == found["semantic_pq"]
    evaluate_pq_for_semantic_segmentation.main(["--dataset-name", scene.name, "--json-file", str(file)])
    assert capsys.readouterr().out.splitlines() == [f"{k} {v:.2f}" for k, v in found["semantic_pq"].items()]


def test_predictions_of_other_images_are_an_error(make_scene, tmp_path):
    scene = make_scene()
    file = tmp_path / "sem_seg_predictions.json"
    file.write_text(json.dumps([]))
    message = r"no prediction of 6 of the 6 images of 'scene', such as .*1\.png; it must be of the same data set"

    with pytest.raises(ValueError, match=message):
        evaluate_saved_semantic_pq(scene.name, file)
    file.write_text(json.dumps([{"image_id": 1, "category_id": 1}]))  # such as instances
    with pytest.raises(ValueError, match=message):
        evaluate_saved_semantic_pq(scene.name, file)
    with pytest.raises(ValueError, match="no prediction of 6"):
        evaluate_pq_for_semantic_segmentation.main(["--dataset-name", scene.name, "--json-file", str(file)])
    with pytest.raises(ValueError, match="there is no data set 'another'"):
        evaluate_pq_for_semantic_segmentation.main(["--dataset-name", "another", "--json-file", str(file)])


def test_nothing_annotated_is_nan(make_scene, run):
    scene = make_scene(images=1)
    found = run(SemanticPQEvaluator(scene.name), scene.inputs, scene.outputs)

    assert all(math.isnan(value) for value in found["semantic_pq"].values())


def test_the_configuration_turns_it_on(make_scene, config, run):
    scene = make_scene()
    results = run(build_evaluator(config(TEST__SEMANTIC_PQ=True), scene.name), scene.inputs, scene.outputs)

    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg", "semantic_pq"]
    switches = {"TEST__SEMANTIC_PQ": True, "MODEL__MASK_FORMER__TEST__SEMANTIC_ON": False}
    with pytest.raises(
        ValueError, match=r"TEST\.SEMANTIC_PQ is on, but .*Turn MODEL.*SEMANTIC_ON on, or TEST.SEMANTIC_PQ off"
    ):
        build_evaluator(config(**switches), scene.name)
