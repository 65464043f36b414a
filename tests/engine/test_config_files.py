import json

import pytest
from detectron2.config import get_cfg

from mask2former import add_maskformer2_config
from mask2former.engine.config_files import merge_yaml


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
