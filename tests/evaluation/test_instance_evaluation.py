import copy
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from mask2former.evaluation import InstanceSegEvaluator
from mask2former.evaluation.average_precision import read_annotations
from mask2former.evaluation.boundary_evaluation import BoundaryEvaluator


def without_instances(outputs: list[dict]) -> list[dict]:
    return [{"instances": output["instances"][:0]} for output in outputs]


def test_things_at_the_end_of_the_classes_equal_things_at_the_start(make_scene, run, tmp_path):
    scene = make_scene(things=(1, 3))
    found = run(InstanceSegEvaluator(scene.name, output_dir=str(tmp_path / "subset")), scene.inputs, scene.outputs)

    renumbered = copy.deepcopy(scene.outputs)
    for output in renumbered:
        output["instances"].pred_classes = output["instances"].pred_classes // 2  # 1 -> 0, 3 -> 1
    metadata = MetadataCatalog.get(scene.name)
    ids = {dataset_id: i // 2 for dataset_id, i in metadata.thing_dataset_id_to_contiguous_id.items()}
    json_file, names = metadata.json_file, metadata.thing_classes
    MetadataCatalog.get("plain").set(json_file=json_file, thing_classes=names, thing_dataset_id_to_contiguous_id=ids)
    expected = run(COCOEvaluator("plain", output_dir=str(tmp_path / "coco")), scene.inputs, renumbered)
    MetadataCatalog.remove("plain")

    assert found["segm"] == pytest.approx(expected["segm"], nan_ok=True)
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert found["segm"]["AP"] > 10
    saved = [json.loads((tmp_path / who / "coco_instances_results.json").read_text()) for who in ("subset", "coco")]
    assert saved[0] == saved[1]


def test_a_predicted_class_that_is_no_thing_is_an_error(make_scene, run, tmp_path):
    scene = make_scene(things=(1, 3))
    scene.outputs[0]["instances"].pred_classes[0] = 2

    with pytest.raises(ValueError, match=r"instance of class 2, but only \[1, 3\] are things"):
        run(InstanceSegEvaluator(scene.name, output_dir=str(tmp_path)), scene.inputs, scene.outputs)


@pytest.mark.parametrize("evaluator", [partial(InstanceSegEvaluator, backend="reference"), BoundaryEvaluator])
def test_annotations_may_be_numbered_from_0(make_scene, run, tmp_path, evaluator):
    """Which pycocotools takes for no match."""
    scene = make_scene()
    expected = run(evaluator(scene.name, output_dir=str(tmp_path)), scene.inputs, scene.outputs)
    json_file = Path(MetadataCatalog.get(scene.name).json_file)
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    json_file.write_text(json.dumps(content))
    found = run(evaluator(scene.name, output_dir=str(tmp_path)), scene.inputs, scene.outputs)

    for task, metrics in expected.items():
        assert found[task] == pytest.approx(metrics, nan_ok=True)
    assert sorted(read_annotations(str(json_file)).anns) == [a["id"] + 1 for a in content["annotations"]]


@pytest.mark.parametrize("evaluator", [COCOEvaluator, InstanceSegEvaluator])
def test_no_prediction_at_all_is_no_crash(make_scene, run, tmp_path, evaluator):
    scene = make_scene()
    found = run(evaluator(scene.name, output_dir=str(tmp_path)), scene.inputs, without_instances(scene.outputs))

    assert all(math.isnan(found["bbox"][name]) for name in ("AP", "AP50"))
    if evaluator is InstanceSegEvaluator:  # which the best checkpoint is chosen by
        assert math.isnan(found["segm"]["AP"])


@pytest.mark.parametrize("evaluator", [COCOEvaluator, InstanceSegEvaluator])
def test_no_object_at_all_is_no_crash(make_scene, run, tmp_path, evaluator):
    scene = make_scene(images=1)
    instances = scene.outputs[0]["instances"]
    instances = type(instances)(instances.image_size)
    instances.pred_masks = torch.ones(1, *instances.image_size, dtype=torch.bool)
    instances.pred_boxes = type(scene.outputs[0]["instances"].pred_boxes)(torch.tensor([[0.0, 0.0, 60.0, 40.0]]))
    instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([1])
    found = run(evaluator(scene.name, output_dir=str(tmp_path)), scene.inputs, [{"instances": instances}])

    assert math.isnan(found["segm"]["AP"])
