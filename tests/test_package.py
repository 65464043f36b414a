"""What `import mask2former` does."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from PIL import Image

import mask2former
from mask2former.modeling import TRANSFORMER_DECODER_REGISTRY


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_components_and_data_sets_are_registered() -> None:
    assert META_ARCH_REGISTRY.get("MaskFormer") is mask2former.MaskFormer
    for name in ("MaskFormerHead", "MSDeformAttnPixelDecoder"):
        assert name in SEM_SEG_HEADS_REGISTRY
    for name in ("D2SwinTransformer", "TimmBackbone"):
        assert name in BACKBONE_REGISTRY
    assert "MultiScaleMaskedTransformerDecoder" in TRANSFORMER_DECODER_REGISTRY
    assert "coco_2017_val_panoptic_with_sem_seg" in DatasetCatalog.list()


def test_every_public_name_exists() -> None:
    assert all(hasattr(mask2former, name) for name in mask2former.__all__)


def test_import_is_silent() -> None:
    run = run_python("import mask2former")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "role"), [("detectron2", "extends Detectron2"), ("panopticapi", "evaluates with panopticapi")]
)
def test_what_is_missing_gives_the_command_that_installs_it(module: str, role: str) -> None:
    run = run_python(f"import sys; sys.modules[{module!r}] = None; import mask2former")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: Mask2Former {role}, which is not installed here: run `python tools/install_detectron2.py`."
    )


def test_detectron2s_model_zoo_works_without_pkg_resources() -> None:
    run = run_python(
        "import sys; sys.modules['pkg_resources'] = None\n"
        "import mask2former; from detectron2 import model_zoo\n"
        "assert 'pkg_resources' not in sys.modules\n"
        "print(model_zoo.get_config('COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml').MODEL.META_ARCHITECTURE)"
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "GeneralizedRCNN\n", "")


def test_detectron2s_evaluator_of_semantic_segmentation_reads_maps(tmp_path: Path) -> None:
    """Which is what the official train_net.py has; NumPy 2 refuses how Detectron2 reads them."""
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    assert load_image_into_numpy_array(str(tmp_path / "labels.png"), dtype=int).tolist() == labels.tolist()


ROOT = Path(__file__).parents[1]
FOLDERS = ("", "datasets", "demo", "tools", "tools/benchmarks")
PROGRAMS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py") if path.name != "setup.py")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_import_the_package_before_detectron2(program: Path) -> None:
    """Which otherwise warns of its age, and where it is missing gives no advice."""
    statements = ast.parse(program.read_text()).body
    modules = []
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            modules.append(str(statement.module))
        elif isinstance(statement, ast.Import):
            modules += [alias.name for alias in statement.names]
    packages = [module.partition(".")[0] for module in modules]
    if "detectron2" in packages:
        assert "mask2former" in packages[: packages.index("detectron2")]
