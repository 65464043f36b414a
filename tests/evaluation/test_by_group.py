import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from mask2former.evaluation import build_evaluator, evaluate_groups


@pytest.fixture
def evaluated(make_scene, config, run):
    """A scene with saved predictions, and the evaluation's results."""
    scene = make_scene(images=8)
    results = run(build_evaluator(config(), scene.name), scene.inputs, scene.outputs)
    return scene, results


def test_all_images_give_the_evaluation_s_results(evaluated, tmp_path):
    scene, results = evaluated
    groups = {"all": [image["image_id"] for image in scene.inputs]}
    found = evaluate_groups(scene.name, tmp_path / "out" / "inference", groups)["all"]

    assert found["AP"] == pytest.approx(results["segm"]["AP"])
    assert found["AP50"] == pytest.approx(results["segm"]["AP50"])
    assert found["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])
    assert {name: found[name] for name in results["panoptic_seg"]} == pytest.approx(results["panoptic_seg"])


def test_a_group_gives_what_a_data_set_of_it_would(evaluated, make_scene, config, run, tmp_path):
    scene, _ = evaluated
    part = make_scene("part", images=9, seed=0)  # the same first eight, the eighth not empty
    keep = [1, 4, 5]
    found = evaluate_groups(scene.name, tmp_path / "out" / "inference", {"part": keep})["part"]

    metadata = MetadataCatalog.get(part.name)
    for key in ("json_file", "panoptic_json"):
        file = Path(getattr(metadata, key))
        content = json.loads(file.read_text())
        content["images"] = [image for image in content["images"] if image["id"] in keep]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in keep]
        file.write_text(json.dumps(content))
    indices = [i - 1 for i in keep]
    inputs, outputs = [part.inputs[i] for i in indices], [scene.outputs[i] for i in indices]
    results = run(build_evaluator(config(OUTPUT_DIR=str(tmp_path / "part_out")), part.name), inputs, outputs)

    assert found["AP"] == pytest.approx(results["segm"]["AP"])
    assert found["PQ_th"] == pytest.approx(results["panoptic_seg"]["PQ_th"])
    assert found["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"])


def test_only_what_was_saved_is_evaluated(evaluated, tmp_path):
    scene, _ = evaluated
    folder = tmp_path / "out" / "inference"
    (folder / "panoptic_predictions.json").unlink()
    (folder / "sem_seg_predictions.json").unlink()

    assert evaluate_groups(scene.name, folder, {"a": [1, 2]}).keys() == {"a"}
    assert evaluate_groups(scene.name, folder, {"a": [1, 2]})["a"].keys() == {"AP", "AP50"}


def test_an_empty_folder_is_an_error(make_scene, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no predictions; run train_net.py --eval-only"):
        evaluate_groups(make_scene().name, tmp_path, {"all": [1]})
