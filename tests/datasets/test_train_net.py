"""The training command of every data set, with its official configuration and a tiny model, up to the last metric."""

import re
import shlex
from collections.abc import Callable
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


@pytest.fixture
def train_and_evaluate(tmp_path: Path) -> Callable[..., dict]:
    """Trains one step, then evaluates the checkpoint by a command of its own; both give the same metrics."""

    def run(arguments: list[str]) -> dict:
        options = TINY | {"OUTPUT_DIR": tmp_path / "out"}
        pairs = [str(part) for pair in options.items() for part in pair]
        trained = train_net.main(default_argument_parser().parse_args([*arguments, *pairs]))
        weights = ["MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth")]
        evaluated = train_net.main(default_argument_parser().parse_args(["--eval-only", *arguments, *pairs, *weights]))
        assert str(trained) == str(evaluated)  # as text, for NaN is not itself
        return trained

    return run


@pytest.fixture
def train_config(train_and_evaluate: Callable[..., dict], repository: Path) -> Callable[..., dict]:
    """The same for a configuration; ``A__B=value`` changes the key A.B."""

    def run(config: str, **changes: object) -> dict:
        pairs = [str(part) for key, value in changes.items() for part in (key.replace("__", "."), value)]
        return train_and_evaluate(["--config-file", str(repository / "configs" / f"{config}.yaml"), *pairs])

    return run


def readme_commands(repository: Path, section: str) -> list[list[str]]:
    """The words of the commands that a section of datasets/README.md tells to type."""
    text = (repository / "datasets/README.md").read_text()
    body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    blocks = "".join(re.findall(r"```bash\n(.*?)```", body, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines()]


@pytest.mark.parametrize(
    ("section", "write", "metrics"),
    [
        ("COCO", trees.write_coco, ["panoptic_seg", "bbox", "segm", "sem_seg"]),
        ("COCO-Stuff 10k", trees.write_coco_stuff, ["sem_seg"]),
        ("LVIS", lambda root: (trees.write_coco(root), trees.write_lvis(root)), ["bbox", "segm"]),
        ("ADE20K", trees.write_ade20k, ["panoptic_seg", "bbox", "segm", "sem_seg"]),
        ("ADE20K-Full", trees.write_ade20k_full, ["sem_seg"]),
        ("Cityscapes", trees.write_cityscapes, ["panoptic_seg", "segm", "sem_seg"]),
        ("Mapillary Vistas", lambda root: trees.write_mapillary_vistas(root, "v1.2"), ["panoptic_seg", "sem_seg"]),
    ],
)
def test_commands_of_the_readme(
    section, write, metrics, tmp_path, prepare, catalogs, train_and_evaluate, repository, monkeypatch
):
    """Preparation, training, evaluation, as they stand there."""
    write(tmp_path)
    monkeypatch.chdir(repository)
    *scripts, (python, train, *arguments) = readme_commands(repository, section)
    for script in scripts:
        assert script[0] == "python"
        prepare(Path(script[1]).stem, tmp_path, *script[2:])
    catalogs(tmp_path)
    assert (python, train) == ("python", "train_net.py")
    if "--num-gpus" in arguments:
        at = arguments.index("--num-gpus")
        del arguments[at : at + 2]
    assert list(train_and_evaluate(arguments)) == metrics


def test_ade20k(tmp_path, prepare, catalogs, train_config):
    trees.write_ade20k(tmp_path)
    for script in ("prepare_ade20k_sem_seg", "prepare_ade20k_pan_seg", "prepare_ade20k_ins_seg"):
        prepare(script, tmp_path)
    catalogs(tmp_path)
    folder = "ade20k/{}-segmentation/maskformer2_R50_bs16_160k"
    assert list(train_config(folder.format("semantic"))) == ["sem_seg"]
    assert list(train_config(folder.format("instance"))) == ["bbox", "segm"]


def test_coco(tmp_path, prepare, catalogs, train_config):
    trees.write_coco(tmp_path)
    prepare("prepare_coco_semantic_annos_from_panoptic_annos", tmp_path)
    catalogs(tmp_path)
    folder = "coco/{}-segmentation/maskformer2_R50_bs16_50ep"
    assert list(train_config(folder.format("instance"))) == ["bbox", "segm"]
    assert list(train_config(folder.format("semantic"))) == ["sem_seg"]


def test_cityscapes(tmp_path, prepare, catalogs, train_config):
    trees.write_cityscapes(tmp_path)
    prepare("prepare_cityscapes", tmp_path)
    catalogs(tmp_path)
    folder = "cityscapes/{}-segmentation/maskformer2_R50_bs16_90k"
    assert list(train_config(folder.format("semantic"))) == ["sem_seg"]


def test_cityscapes_instances(tmp_path, catalogs, train_config):
    pytest.importorskip("shapely")
    trees.write_cityscapes(tmp_path)
    catalogs(tmp_path)
    results = train_config("cityscapes/instance-segmentation/maskformer2_R50_bs16_90k")
    assert list(results) == ["segm"]


@pytest.mark.parametrize(
    ("version", "prefix", "task", "classes", "metrics"),
    [
        ("v1.2", "mapillary_vistas", "semantic", 65, ["sem_seg"]),
        ("v2.0", "mapillary_vistas_v2", "semantic", 123, ["sem_seg"]),
        ("v2.0", "mapillary_vistas_v2", "panoptic", 116, ["panoptic_seg", "bbox", "segm", "sem_seg"]),
    ],
)
def test_mapillary_vistas(version, prefix, task, classes, metrics, tmp_path, prepare, catalogs, train_config):
    trees.write_mapillary_vistas(tmp_path, version)
    prepare("prepare_mapillary_vistas_ins_seg", tmp_path)
    catalogs(tmp_path)
    short, number = {"semantic": ("sem_seg", "2"), "panoptic": ("panoptic", "")}[task]
    results = train_config(
        f"mapillary-vistas/{task}-segmentation/maskformer{number}_R50_bs16_300k",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=classes,
        MODEL__MASK_FORMER__TEST__INSTANCE_ON=True,
        DATASETS__TRAIN=f"('{prefix}_{short}_train',)",
        DATASETS__TEST=f"('{prefix}_{short}_val',)",
    )
    assert list(results) == metrics
