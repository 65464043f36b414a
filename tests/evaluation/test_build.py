import importlib.util
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from mask2former.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    InstanceSegEvaluator,
    LVISEvaluator,
    PanopticEvaluator,
    SemSegEvaluator,
    build_evaluator,
)

ALL = {"PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_ON"}


def kinds(cfg, scene) -> list[type]:
    return [type(evaluator) for evaluator in build_evaluator(cfg, scene.name)._evaluators]


@pytest.mark.parametrize(
    ("evaluator_type", "switches", "expected"),
    [
        ("coco", ALL, [InstanceSegEvaluator]),
        ("lvis", ALL, [LVISEvaluator]),
        ("sem_seg", ALL, [SemSegEvaluator]),
        ("coco_panoptic_seg", ALL, [PanopticEvaluator, InstanceSegEvaluator, SemSegEvaluator]),
        ("coco_panoptic_seg", {"PANOPTIC_ON"}, [PanopticEvaluator]),
        ("coco_panoptic_seg", {"SEMANTIC_ON"}, [SemSegEvaluator]),
        ("ade20k_panoptic_seg", ALL, [PanopticEvaluator, InstanceSegEvaluator, SemSegEvaluator]),
        ("mapillary_vistas_panoptic_seg", ALL, [PanopticEvaluator, InstanceSegEvaluator, SemSegEvaluator]),
        ("cityscapes_instance", ALL, [CityscapesInstanceEvaluator]),
        ("cityscapes_sem_seg", ALL, [CityscapesSemSegEvaluator]),
        (
            "cityscapes_panoptic_seg",
            ALL,
            [PanopticEvaluator, CityscapesInstanceEvaluator, CityscapesSemSegEvaluator],
        ),
    ],
)
def test_the_table(make_scene, config, tmp_path, evaluator_type, switches, expected):
    scene = make_scene(evaluator_type=evaluator_type, gt_dir=str(tmp_path))
    for kind in ("instanceIds", "labelIds"):  # of Cityscapes
        (tmp_path / "city").mkdir(exist_ok=True)
        (tmp_path / "city" / f"a_gtFine_{kind}.png").touch()
    cfg = config(**{f"MODEL__MASK_FORMER__TEST__{switch}": switch in switches for switch in ALL})

    assert kinds(cfg, scene) == expected


def test_an_unknown_type_is_an_error(make_scene, config):
    scene = make_scene(evaluator_type="pascal")

    with pytest.raises(ValueError, match=r"evaluator_type 'pascal'; expected one of \['ade20k_.*Set it with"):
        build_evaluator(config(), scene.name)


def test_no_type_is_an_error(config):
    with pytest.raises(ValueError, match="'nameless' has evaluator_type None"):
        build_evaluator(config(), "nameless")
    MetadataCatalog.remove("nameless")


def test_nothing_to_evaluate_is_an_error(make_scene, config):
    scene = make_scene(evaluator_type="sem_seg")

    with pytest.raises(ValueError, match=r"can be evaluated for SEMANTIC_ON, but .*TEST turns these off"):
        build_evaluator(config(MODEL__MASK_FORMER__TEST__SEMANTIC_ON=False), scene.name)


def test_one_pass_gives_all_results(make_scene, config, run, tmp_path):
    scene = make_scene()
    results = run(build_evaluator(config(DATASETS__TEST=(scene.name,)), scene.name), scene.inputs, scene.outputs)

    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    assert results["segm"]["AP"] > 10
    assert (tmp_path / "out" / "inference" / "coco_instances_results.json").is_file()


def test_annotations_that_are_in_no_file(make_scene, config, run):
    """Detectron2 writes one where a data set has the annotations in its dicts alone."""
    scene = make_scene(evaluator_type="coco")
    expected = run(build_evaluator(config(), scene.name), scene.inputs, scene.outputs)
    metadata = MetadataCatalog.get(scene.name)
    to_contiguous = metadata.thing_dataset_id_to_contiguous_id
    for annotation in json.loads(Path(metadata.json_file).read_text())["annotations"]:
        category_id = to_contiguous[annotation["category_id"]]
        record = DatasetCatalog.get(scene.name)[annotation["image_id"] - 1]
        record.setdefault("annotations", []).append(
            {**annotation, "category_id": category_id, "bbox_mode": BoxMode.XYWH_ABS}
        )
    del metadata.json_file
    found = run(build_evaluator(config(), scene.name), scene.inputs, scene.outputs)

    assert found["segm"] == pytest.approx(expected["segm"], nan_ok=True)


def test_several_test_sets_have_a_folder_each(make_scene, config, run, tmp_path):
    scene = make_scene()
    cfg = config(DATASETS__TEST=(scene.name, "another"))
    run(build_evaluator(cfg, scene.name), scene.inputs, scene.outputs)

    assert (tmp_path / "out" / "inference" / scene.name / "coco_instances_results.json").is_file()


def test_the_backend_is_that_of_the_configuration(make_scene, config):
    scene = make_scene()
    for evaluator in build_evaluator(config(TEST__EVALUATION_BACKEND="reference"), scene.name)._evaluators[:2]:
        assert evaluator._backend == "reference"


def test_more_detections_than_coco_s_100_count(make_scene, config):
    scene = make_scene()
    evaluator = build_evaluator(config(TEST__DETECTIONS_PER_IMAGE=375), scene.name)._evaluators[1]

    assert evaluator._max_dets_per_image == [1, 10, 375]


@pytest.mark.skipif(importlib.util.find_spec("detectron2._C") is not None, reason="Detectron2 has its compiled part")
def test_without_compiled_code_pycocotools_computes_ap(make_scene, config):
    scene = make_scene()

    assert not build_evaluator(config(), scene.name)._evaluators[1]._use_fast_impl
