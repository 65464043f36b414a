import json
import random
from collections import Counter

import pytest
import yaml
from detectron2.config import get_cfg

from mask2former import add_maskformer2_config
from mask2former.engine.config_files import merge_yaml
from mask2former.engine.setup import load_config
from tests.mutations import ROUNDS, at_every_path, mutate_bytes


def read(path) -> dict:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    merge_yaml(cfg, str(path))
    return cfg


SIZES = "[int(x * 0.1 * 512) for x in range(5, 21)]"


@pytest.mark.parametrize("expression", ["[1, 2]", f"{SIZES} + [print()]", "__import__('os').getcwd()"])
@pytest.mark.parametrize("based", [False, True])
def test_yaml_that_would_run_code_is_refused(tmp_path, based, expression):
    unsafe = tmp_path / "unsafe.yaml"
    unsafe.write_text(f'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["{expression}"]\n')
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: unsafe.yaml\n")

    with pytest.raises(ValueError, match=r"not plain data: .* is code(.|\n)*line 2(.|\n)*write the result"):
        read(child if based else unsafe)


def test_other_tags_are_refused(tmp_path):
    file = tmp_path / "unsafe.yaml"
    file.write_text('OUTPUT_DIR: !!python/object/apply:os.getenv ["HOME"]\n')

    with pytest.raises(ValueError, match="not plain data: could not determine a constructor"):
        read(file)


def test_the_sizes_of_official_files_are_understood(tmp_path, contract_dir):
    """As the official release resolves them."""
    file = tmp_path / "official.yaml"
    file.write_text(f'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["{SIZES}"]\n')
    configs = json.loads((contract_dir / "configs.json").read_text())
    official = configs["ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"]["INPUT.MIN_SIZE_TRAIN"]

    assert list(read(file).INPUT.MIN_SIZE_TRAIN) == official == [int(x * 0.1 * 512) for x in range(5, 21)]


def test_reading_configurations_leaves_other_peoples_yaml_alone():
    with pytest.raises(yaml.constructor.ConstructorError, match="could not determine a constructor"):
        yaml.safe_load(f'!!python/object/apply:eval ["{SIZES}"]')


def test_sizes_in_a_file_that_another_is_based_on(tmp_path):
    (tmp_path / "base.yaml").write_text(f'INPUT:\n  MIN_SIZE_TRAIN: !!python/object/apply:eval ["{SIZES}"]\n')
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml\nOUTPUT_DIR: there\n")
    cfg = read(tmp_path / "child.yaml")
    assert (cfg.INPUT.MIN_SIZE_TRAIN[0], cfg.OUTPUT_DIR) == (256, "there")


WRONG = [None, True, -1, 1.5, 10**30, float("nan"), "../x", "(" * 300, "[1, 2", [], {}, [[]], {"a": 1}]


def outcome(file):
    """Any error that is not the project's own is raised."""
    try:
        load_config(str(file))
    except Exception as error:
        if type(error) not in (ValueError, OSError, FileNotFoundError) or not str(error):
            raise
        return "refused"
    return "read"


def test_damaged_files_end_in_one_kind_of_error(tmp_path):
    file, base = tmp_path / "a.yaml", tmp_path / "base.yaml"
    base.write_text("SOLVER:\n  BASE_LR: 0.5\n")
    content = {
        "_BASE_": "base.yaml",
        "MODEL": {"DEVICE": "cpu", "PIXEL_MEAN": [1.0, 2.0], "MASK_FORMER": {"NHEADS": 8, "PRE_NORM": False}},
        "DATASETS": {
            "TRAIN": ["own"],
            "CUSTOM": {"own": {"FORMAT": "id_png", "IMAGES": "a", "INSTANCES": "b", "CLASS_NAMES": ["c"]}},
        },
        "VERSION": 2,
    }
    outcomes = Counter()
    for where, changed in at_every_path(content, WRONG):
        file.write_text(yaml.safe_dump(changed))
        try:
            outcomes[outcome(file)] += 1
        except Exception as error:
            raise AssertionError(where) from error
    good = yaml.safe_dump(content).encode()
    rng = random.Random(0)
    for _ in range(2 * ROUNDS):
        file.write_bytes(mutate_bytes(good, rng))
        outcomes[outcome(file)] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 20


def test_a_key_with_two_values_is_an_error(tmp_path):
    """PyYAML would forget the first section."""
    (tmp_path / "base.yaml").write_text("SOLVER:\n  BASE_LR: 0.5\nVERSION: 2\nSOLVER:\n  MAX_ITER: 3\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(ValueError, match="line 4 has SOLVER again, with another value; keep one"):
        read(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", ["", "# nothing\n", "- MODEL\n", "words\n", "3\n"])
@pytest.mark.parametrize("based", [False, True])
def test_files_without_keys(tmp_path, content, based):
    (tmp_path / "a.yaml").write_text(content)
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match=r"a\.yaml holds .*, expected keys and their values"):
        read(tmp_path / ("b.yaml" if based else "a.yaml"))


@pytest.mark.parametrize("value", ["", "3", "[1]"])
@pytest.mark.parametrize("section", ["SOLVER", "MODEL.MASK_FORMER"])
def test_sections_without_keys(tmp_path, section, value):
    lines = section.split(".")
    text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(lines))
    (tmp_path / "a.yaml").write_text(f"{text.rstrip()} {value}\n")
    with pytest.raises(ValueError, match=rf" {section} is .{{1,9}}, expected keys below it; leave it out") as caught:
        read(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 300


def test_the_same_value_twice(tmp_path):
    (tmp_path / "a.yaml").write_text("VERSION: 2\nSEED: 3\nSEED: 3\n")
    assert read(tmp_path / "a.yaml").SEED == 3


def test_detectron2_reads_older_versions(tmp_path):
    (tmp_path / "a.yaml").write_text("VERSION: 1\nMODEL:\n  WEIGHT: there.pth\n")
    assert read(tmp_path / "a.yaml").MODEL.WEIGHTS == "there.pth"


def test_a_file_that_is_based_on_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: a.yaml\n")
    assert outcome(tmp_path / "a.yaml") == "refused"
