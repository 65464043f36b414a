"""The training command of every data set, with its official configuration and a tiny model, up to the last metric."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

import train_net
from tests.datasets import trees

TINY = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "INPUT.IMAGE_SIZE": 64,
    "INPUT.MIN_SIZE_TRAIN": "(48,)",
    "INPUT.MIN_SIZE_TEST": 48,
    "INPUT.CROP.SIZE": "(32, 32)",
    "INPUT.SIZE_DIVISIBILITY": 32,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "SEED": 3,
}


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Undo what the command does to the loggers."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "mask2former")]
    states = [(logger, logger.level, logger.propagate, logger.handlers.copy()) for logger in loggers]
    yield
    for logger, level, propagate, handlers in states:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def train_and_evaluate(tmp_path: Path, repository: Path) -> Callable[..., dict]:
    """Trains one step, then evaluates the checkpoint by a command of its own; both give the same metrics."""

    def run(config: str, **changes: object) -> dict:
        options = TINY | {"OUTPUT_DIR": tmp_path / "out"} | {key.replace("__", "."): changes[key] for key in changes}
        arguments = ["--config-file", str(repository / "configs" / f"{config}.yaml")]
        pairs = [str(part) for pair in options.items() for part in pair]
        trained = train_net.main(default_argument_parser().parse_args([*arguments, *pairs]))
        weights = ["MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth")]
        evaluated = train_net.main(default_argument_parser().parse_args(["--eval-only", *arguments, *pairs, *weights]))
        assert str(trained) == str(evaluated)  # as text, for NaN is not itself
        return trained

    return run


def test_ade20k(tmp_path, prepare, catalogs, train_and_evaluate):
    trees.write_ade20k(tmp_path)
    for script in ("prepare_ade20k_sem_seg", "prepare_ade20k_pan_seg", "prepare_ade20k_ins_seg"):
        prepare(script, tmp_path)
    catalogs(tmp_path)
    folder = "ade20k/{}-segmentation/maskformer2_R50_bs16_160k"
    assert list(train_and_evaluate(folder.format("semantic"))) == ["sem_seg"]
    assert list(train_and_evaluate(folder.format("instance"))) == ["bbox", "segm"]
    assert list(train_and_evaluate(folder.format("panoptic"))) == ["panoptic_seg", "bbox", "segm", "sem_seg"]


def test_ade20k_full(tmp_path, prepare, catalogs, train_and_evaluate):
    trees.write_ade20k_full(tmp_path)
    prepare("prepare_ade20k_full_sem_seg", tmp_path)
    catalogs(tmp_path)
    results = train_and_evaluate(
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=847,
        DATASETS__TRAIN="('ade20k_full_sem_seg_train',)",
        DATASETS__TEST="('ade20k_full_sem_seg_val',)",
    )
    assert list(results) == ["sem_seg"]


def test_coco(tmp_path, prepare, catalogs, train_and_evaluate):
    trees.write_coco(tmp_path)
    prepare("prepare_coco_semantic_annos_from_panoptic_annos", tmp_path)
    catalogs(tmp_path)
    folder = "coco/{}-segmentation/maskformer2_R50_bs16_50ep"
    assert list(train_and_evaluate(folder.format("instance"))) == ["bbox", "segm"]
    assert list(train_and_evaluate(folder.format("panoptic"))) == ["panoptic_seg", "bbox", "segm", "sem_seg"]


def test_coco_stuff(tmp_path, prepare, catalogs, train_and_evaluate):
    trees.write_coco_stuff(tmp_path)
    prepare("prepare_coco_stuff_10k_v1.0_sem_seg", tmp_path)
    catalogs(tmp_path)
    results = train_and_evaluate(
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=171,
        DATASETS__TRAIN="('coco_2017_train_stuff_10k_sem_seg',)",
        DATASETS__TEST="('coco_2017_test_stuff_10k_sem_seg',)",
    )
    assert list(results) == ["sem_seg"]


def test_cityscapes(tmp_path, prepare, catalogs, train_and_evaluate):
    trees.write_cityscapes(tmp_path)
    prepare("prepare_cityscapes", tmp_path)
    catalogs(tmp_path)
    folder = "cityscapes/{}-segmentation/maskformer2_R50_bs16_90k"
    assert list(train_and_evaluate(folder.format("semantic"))) == ["sem_seg"]
    assert list(train_and_evaluate(folder.format("panoptic"))) == ["panoptic_seg", "segm", "sem_seg"]


def test_cityscapes_instances(tmp_path, catalogs, train_and_evaluate):
    pytest.importorskip("shapely")
    trees.write_cityscapes(tmp_path)
    catalogs(tmp_path)
    results = train_and_evaluate("cityscapes/instance-segmentation/maskformer2_R50_bs16_90k")
    assert list(results) == ["segm"]


@pytest.mark.parametrize(
    ("version", "prefix", "classes"),
    [("v1.2", "mapillary_vistas", (65, 65)), ("v2.0", "mapillary_vistas_v2", (123, 116))],
)
def test_mapillary_vistas(version, prefix, classes, tmp_path, prepare, catalogs, train_and_evaluate):
    trees.write_mapillary_vistas(tmp_path, version)
    prepare("prepare_mapillary_vistas_ins_seg", tmp_path)
    catalogs(tmp_path)
    for task, short, number, num_classes, expected in (
        ("semantic", "sem_seg", "2", classes[0], ["sem_seg"]),
        ("panoptic", "panoptic", "", classes[1], ["panoptic_seg", "bbox", "segm", "sem_seg"]),
    ):
        results = train_and_evaluate(
            f"mapillary-vistas/{task}-segmentation/maskformer{number}_R50_bs16_300k",
            MODEL__SEM_SEG_HEAD__NUM_CLASSES=num_classes,
            MODEL__MASK_FORMER__TEST__INSTANCE_ON=True,
            DATASETS__TRAIN=f"('{prefix}_{short}_train',)",
            DATASETS__TEST=f"('{prefix}_{short}_val',)",
        )
        assert list(results) == expected


def test_lvis(tmp_path, catalogs, train_and_evaluate):
    trees.write_coco(tmp_path)
    trees.write_lvis(tmp_path)
    catalogs(tmp_path)
    results = train_and_evaluate(
        "coco/instance-segmentation/maskformer2_R50_bs16_50ep",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=1203,
        DATASETS__TRAIN="('lvis_v1_train',)",
        DATASETS__TEST="('lvis_v1_val',)",
    )
    assert list(results) == ["bbox", "segm"]
