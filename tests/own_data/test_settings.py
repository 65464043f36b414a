"""What is chosen for which data on which machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode

from mask2former.data.inspection import ClassCount, Inspection
from mask2former.engine import load_config
from mask2former.engine.config_files import with_opts
from mask2former.own_data.config_file import write_config
from mask2former.own_data.machine import Machine, count_parameters, images_that_fit, this_machine
from mask2former.own_data.settings import Choice, Plan, choose_settings

REPOSITORY = Path(__file__).parents[2]
GPU = Machine(gpu=True, memory=24e9, cpus=16)
CPU = Machine(gpu=False, memory=16e9, cpus=4)
THING = ClassCount("cat", True, 50, 100, 10**6)
STUFF = ClassCount("sky", False, 50, 50, 10**7)


@pytest.fixture(scope="module")
def base() -> CfgNode:
    return load_config(str(REPOSITORY / "configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"))


@pytest.fixture(scope="module")
def photographs() -> Inspection:
    """A few large objects in each."""
    return Inspection(
        images=2000,
        empty=0,
        heights=(480, 480, 640),
        widths=(480, 640, 640),
        pixels=2000 * 480 * 640,
        classes=(THING,),
        most_segments=12,
        fullest="a.jpg",
        most_in_area=40.0,
        object_sizes=(20.0, 50.0, 100.0, 150.0, 300.0),
        longest_object=400.0,
        crowds=0,
        void=None,
    )


@pytest.fixture(autouse=True)
def _gpus_are_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def values(base: CfgNode, inspection: Inspection, **changes: Any) -> dict[str, Any]:
    plan = Plan(base=base, given={}, parameters=44_000_000, inspection=inspection, panoptic=False, machine=GPU)
    return {choice.key: choice.value for choice in choose_settings(replace(plan, **changes))}


def test_photographs_on_a_gpu(base: CfgNode, photographs: Inspection) -> None:
    chosen = values(base, photographs)
    assert chosen["INPUT.DATASET_MAPPER_NAME"] == "coco_instance_lsj"
    assert chosen["INPUT.IMAGE_SIZE"] == chosen["INPUT.MAX_SIZE_TEST"] == 640
    assert "MODEL.MASK_FORMER.TEST.TILE_SIZE" not in chosen
    assert chosen["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == 1
    assert chosen["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == 100
    assert chosen["SOLVER.IMS_PER_BATCH"] == 4
    assert chosen["SOLVER.BASE_LR"] == pytest.approx(1e-4 * 4 / 16)
    assert chosen["SOLVER.MAX_ITER"] == 50 * 2000 / 4
    assert chosen["SOLVER.STEPS"] == [22500, 23750]
    assert chosen["SOLVER.CHECKPOINT_PERIOD"] == 3130
    assert chosen["TEST.EVAL_PERIOD"] == 1260
    assert chosen["MODEL.MASK_FORMER.IGNORE_VOID"] is True
    assert chosen["TEST.BEST_CHECKPOINT.METRIC"] == "segm/AP"
    assert chosen["SOLVER.AMP.ENABLED"] is True
    assert chosen["SOLVER.CUDA_GRAPHS"] is True
    assert "TEST.EARLY_STOPPING.PATIENCE" not in chosen


@pytest.mark.parametrize(
    ("given", "processes", "expected"),
    [
        ({"MODEL.RESNETS.NORM": "SyncBN"}, 1, True),
        ({"MODEL.RESNETS.NORM": "SyncBN"}, 2, False),
        ({"MODEL.SEM_SEG_HEAD.NORM": "naiveSyncBN"}, 2, False),
        ({"MODEL.TIMM.NORM": "SyncBN"}, 2, False),
        ({"MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING": ["backbone"]}, 1, False),
        ({"SOLVER.FSDP.ENABLED": True}, 2, False),
        ({"MODEL.META_ARCHITECTURE": "MaskFormerOfAProject"}, 1, False),
        ({}, 4, True),
    ],
)
def test_graphs_go_with_most(
    base: CfgNode, photographs: Inspection, given: dict[str, Any], processes: int, expected: bool
) -> None:
    chosen = values(base, photographs, given=given, processes=processes)
    assert ("SOLVER.CUDA_GRAPHS" in chosen) == expected
    assert "SOLVER.CUDA_GRAPHS" not in values(base, photographs, given=given, machine=CPU)


def test_graphs_are_for_gpus_of_nvidia(base: CfgNode, photographs: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "SOLVER.CUDA_GRAPHS" not in values(base, photographs)


def test_more_memory_and_more_gpus_take_more_images(base: CfgNode, photographs: Inspection) -> None:
    large = values(base, photographs, machine=replace(GPU, memory=80e9))
    assert large["SOLVER.IMS_PER_BATCH"] == 16
    assert large["SOLVER.BASE_LR"] == pytest.approx(1e-4)
    four = values(base, photographs, processes=4)
    assert four["SOLVER.IMS_PER_BATCH"] == 16
    small = values(base, photographs, machine=replace(GPU, memory=6e9))
    assert small["INPUT.IMAGE_SIZE"] < 640


def test_a_cpu(base: CfgNode, photographs: Inspection) -> None:
    chosen = values(base, photographs, machine=CPU)
    assert chosen["INPUT.IMAGE_SIZE"] == 512
    assert chosen["SOLVER.IMS_PER_BATCH"] <= 4
    assert chosen["SOLVER.AMP.ENABLED"] is False
    assert chosen["DATALOADER.NUM_WORKERS"] == 1
    assert values(base, photographs, machine=replace(CPU, cpus=1))["DATALOADER.NUM_WORKERS"] == 0


def test_what_the_user_sets_is_left_alone_and_counts(base: CfgNode, photographs: Inspection) -> None:
    given = {"SOLVER.IMS_PER_BATCH": 2, "INPUT.IMAGE_SIZE": 320, "SOLVER.MAX_ITER": 600}
    chosen = values(base, photographs, given=given)
    assert not given.keys() & chosen.keys()
    assert chosen["SOLVER.BASE_LR"] == pytest.approx(1e-4 * 2 / 16)
    assert chosen["INPUT.MIN_SIZE_TEST"] == 320
    assert chosen["SOLVER.STEPS"] == [540, 570]
    assert chosen["TEST.EVAL_PERIOD"] == 600  # no more often than once in all images


def test_schedule(base: CfgNode, photographs: Inspection) -> None:
    few = values(base, replace(photographs, images=100))
    assert few["SOLVER.MAX_ITER"] == 16_000 / few["SOLVER.IMS_PER_BATCH"]
    trained = with_opts(base, ["MODEL.WEIGHTS", "a.pth"])
    tuned = values(trained, replace(photographs, images=100), fine_tuned=True)
    assert tuned["SOLVER.MAX_ITER"] == few["SOLVER.MAX_ITER"] / 2
    assert tuned["MODEL.WEIGHTS"] == "a.pth"
    short = values(base, photographs, given={"SOLVER.MAX_ITER": 3}, patience=4)
    assert (short["SOLVER.STEPS"], short["TEST.EVAL_PERIOD"]) == ([], 3)
    assert short["TEST.EARLY_STOPPING.PATIENCE"] == 4
    alone = values(base, photographs, validation=False)
    assert alone["TEST.EVAL_PERIOD"] == 0
    assert "TEST.BEST_CHECKPOINT.ENABLED" not in alone


@pytest.mark.parametrize(
    ("classes", "panoptic", "task", "switches"),
    [
        ((THING,), False, "instance", (False, True, False)),
        ((THING, STUFF), True, "panoptic", (True, True, True)),
        ((STUFF, replace(STUFF, name="sea")), True, "semantic", (False, False, True)),
    ],
)
def test_tasks(
    base: CfgNode, photographs: Inspection, classes: tuple, panoptic: bool, task: str, switches: tuple
) -> None:
    chosen = values(base, replace(photographs, classes=classes), panoptic=panoptic)
    assert chosen["INPUT.DATASET_MAPPER_NAME"] == f"coco_{task}_lsj"
    names = ("PANOPTIC", "INSTANCE", "SEMANTIC")
    assert tuple(chosen[f"MODEL.MASK_FORMER.TEST.{name}_ON"] for name in names) == switches
    assert chosen["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == len(classes)


def test_one_class_without_instances_is_nothing_to_tell_apart(base: CfgNode, photographs: Inspection) -> None:
    road = replace(photographs, classes=(STUFF,))
    with pytest.raises(ValueError, match=r"the data have one class, 'sky', and no instances, .* or give it instances"):
        values(base, road, panoptic=True)


def test_small_objects_in_large_pictures_are_seen_in_tiles(base: CfgNode, photographs: Inspection) -> None:
    aerial = replace(
        photographs,
        heights=(4000, 4000, 4000),
        widths=(6000, 6000, 6000),
        most_segments=900,
        most_in_area=37.5,
        object_sizes=(8.0, 12.0, 20.0, 30.0, 60.0),
        longest_object=70.0,
    )
    chosen = values(base, aerial, machine=replace(GPU, memory=80e9))
    scale, tile = chosen["INPUT.TEST_SCALE"], chosen["MODEL.MASK_FORMER.TEST.TILE_SIZE"]
    assert scale == 1.25  # 20 pixels are few
    assert tile == chosen["INPUT.IMAGE_SIZE"] == 1024
    assert chosen["INPUT.SCALE_REFERENCE"] == "image"
    assert chosen["MODEL.MASK_FORMER.TEST.TILE_OVERLAP"] == 96
    assert chosen["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == 100
    assert chosen["TEST.DETECTIONS_PER_IMAGE"] == 1100
    dense = values(base, replace(aerial, most_in_area=800.0), machine=replace(GPU, memory=80e9))
    tile = dense["MODEL.MASK_FORMER.TEST.TILE_SIZE"]
    assert 800 * (tile / 1.25) ** 2 / 1e6 <= 100
    assert tile % 32 == 0
    denser = values(
        base, replace(aerial, most_in_area=80_000.0, longest_object=20.0), machine=replace(GPU, memory=80e9)
    )
    assert denser["MODEL.MASK_FORMER.TEST.TILE_SIZE"] == 192  # no smaller, though it has more segments than queries
    long = values(base, replace(aerial, longest_object=3000.0), machine=replace(GPU, memory=80e9))
    assert long["MODEL.MASK_FORMER.TEST.TILE_OVERLAP"] == long["MODEL.MASK_FORMER.TEST.TILE_SIZE"] / 2


def test_pictures_of_very_many_large_segments_are_seen_in_tiles(base: CfgNode, photographs: Inspection) -> None:
    chosen = values(base, replace(photographs, most_segments=300, most_in_area=1000.0, longest_object=60.0))
    assert chosen["MODEL.MASK_FORMER.TEST.TILE_SIZE"] == 288  # up to 83 segments
    assert chosen["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == 100
    assert chosen["TEST.DETECTIONS_PER_IMAGE"] == 400


def test_many_large_segments_take_more_queries(base: CfgNode, photographs: Inspection) -> None:
    chosen = values(base, replace(photographs, most_segments=150))
    assert chosen["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"] == 200
    assert chosen["TEST.DETECTIONS_PER_IMAGE"] == 200


def test_a_base_that_sees_tiles(base: CfgNode, photographs: Inspection) -> None:
    tiled = base.clone()
    tiled.defrost()
    tiled.INPUT.TEST_SCALE, tiled.INPUT.SCALE_REFERENCE, tiled.MODEL.MASK_FORMER.TEST.TILE_SIZE = 1.5, "image", 192
    chosen = values(tiled, photographs)
    assert (chosen["INPUT.TEST_SCALE"], chosen["INPUT.SCALE_REFERENCE"]) == (0, "crop")
    assert chosen["MODEL.MASK_FORMER.TEST.TILE_SIZE"] == 0


def test_memory(base: CfgNode) -> None:
    parameters = count_parameters(base)
    assert 43e6 < parameters < 45e6
    at_512 = images_that_fit(GPU, parameters, 512, 10, amp=True)
    at_1024 = images_that_fit(GPU, parameters, 1024, 10, amp=True)
    assert 3.5 < at_512 / at_1024 < 4.5
    assert at_512 > images_that_fit(GPU, parameters, 512, 10, amp=False)
    assert at_512 > images_that_fit(GPU, parameters, 512, 100, amp=True)
    assert images_that_fit(replace(GPU, memory=1e9), parameters, 512, 10, amp=True) == 0
    machine = this_machine("cpu", 2)
    assert not machine.gpu
    assert machine.cpus >= 1
    assert 1e7 < machine.memory < this_machine("cpu", 1).memory * 1.01


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  4000 kB"}, 2048e3),
        ({"/proc/meminfo": "MemAvailable: 4000 kB", "/sys/fs/cgroup/memory.max": "max"}, 2048e3),
        ({"/proc/meminfo": "MemAvailable: 4000 kB", "/sys/fs/cgroup/memory.max": "1000000"}, 5e5),
        ({"/proc/meminfo": "MemTotal: 9 kB"}, 4e9),
        ({}, 4e9),
    ],
)
def test_half_of_the_memory_that_is_known_to_be_free(
    files: dict[str, str], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask2former.own_data.machine._read", lambda path: files.get(path, ""))
    assert this_machine("cpu", 1).memory == expected
    assert this_machine("cpu", 4).memory == expected / 4


def test_config_file(tmp_path: Path) -> None:
    choices = [
        Choice("SOLVER.BASE_LR", 0.0000125, "a long reason " * 12),
        Choice("SOLVER.STEPS", [1, 2], "why"),
        Choice("INPUT.MIN_SCALE", 0.5, "same"),
        Choice("INPUT.MAX_SCALE", 2.0, "same"),
        Choice("DATASETS.CUSTOM", {"own": {"FORMAT": "labelme", "CLASS_NAMES": ["a: b", "#é", "true"]}}, "data"),
    ]
    write_config(tmp_path / "a.yaml", "base.yaml", choices, "first line\nsecond line")
    text = (tmp_path / "a.yaml").read_text("utf-8")
    assert text.startswith("# first line\n# second line\n_BASE_: base.yaml\n")
    assert text.count("# same") == 1
    assert max(map(len, text.splitlines())) <= 120
    assert yaml.safe_load(text) == {
        "_BASE_": "base.yaml",
        "SOLVER": {"BASE_LR": 0.0000125, "STEPS": [1, 2]},
        "INPUT": {"MIN_SCALE": 0.5, "MAX_SCALE": 2.0},
        "DATASETS": {"CUSTOM": {"own": {"FORMAT": "labelme", "CLASS_NAMES": ["a: b", "#é", "true"]}}},
    }


def test_gradients_that_are_accumulated(base: CfgNode, photographs: Inspection) -> None:
    alone = values(base, photographs)
    given = {"SOLVER.GRADIENT_ACCUMULATION_STEPS": 4}
    chosen = values(base, photographs, given=given, processes=2)
    assert chosen["SOLVER.IMS_PER_BATCH"] == 8 * alone["SOLVER.IMS_PER_BATCH"]
    assert chosen["SOLVER.BASE_LR"] == pytest.approx(8 * alone["SOLVER.BASE_LR"])
    with pytest.raises(
        ValueError, match=r"SOLVER\.IMS_PER_BATCH is 4, expected a multiple of 8: 2 process\(es\) times"
    ):
        values(base, photographs, given={**given, "SOLVER.IMS_PER_BATCH": 4}, processes=2)
