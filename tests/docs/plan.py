"""Commands and Python that the pages' tests do not run here, each with the reason; and those that are slow.

A command that is in neither table runs in the miniature directory of tests/docs/world.py, in its page's order. All are
checked without being run: program, options, files, keys.
"""

import re

from tests.docs.pages import REPOSITORY, Command

# The first that fits the command's text. A reason that names a test file says that it is run there.
NOT_RUN = {
    r"pip install .*": "installs packages",
    r"make .*": "makes an environment; .ci/run runs `make demo` and `make test`",
    r"python tools/install_detectron2\.py": "tests/tools/test_install_detectron2.py",
    r"python demo/demo\.py( --output output/first)?": "CI's `make demo`: a large picture",
    r".* MODEL\.INFERENCE\.KEEP_MEMORY True": "changes this process for good; tests/modeling/optimize/test_memory.py",
    r"python -m mask2former\.ops\.build": "compiles for minutes; tests/ops/test_native.py",
    r"mask2former demo --web .*": "serves until Ctrl-C; tests/web/test_page.py opens the page",
    r"python datasets/prepare_shapes\.py": "draws 1200 pictures; tests/datasets/test_prepare_shapes.py draws some",
    r"python train_net\.py \S+ configs/coco/panoptic\S+/maskformer2_R50_bs16_50ep\.yaml --num-gpus 8": (
        "tests/datasets/test_train_net.py"
    ),
    r"python datasets/prepare_.*": "tests/datasets/test_train_net.py",
    r"python tools/run_ablations\.py .*": "trains for days; tests/tools/test_run_ablations.py trains for two steps",
    r"python tools/benchmarks/paper_tables\.py.*": "takes minutes; tests/tools/test_paper_tables.py",
    r"python tools/benchmarks/.*": "measures for minutes; tests/tools/test_benchmarks.py",
    r"mask2former benchmark .*": "measures; tests/inference/test_benchmark.py",
    r"python tools/predict_dataset\.py .*": "starts processes; tests/tools/test_predict_dataset.py",
    r"torchrun .*": "for several machines; tests/tools/test_slurm.py",
    r"tools/run_on_arm\.sh .*": "needs root and an emulator, for hours",
    r"sbatch .*": "needs Slurm; tests/tools/test_slurm.py",
    r"mask2former convert \S+ for_transformers/ .*": "needs a large model; tests/inference/test_convert.py",
    r"mask2former convert swin_tiny.*": "of Microsoft's file; tests/modeling/checkpoint_compat/test_backbones.py",
}
# Commands of these sections of datasets/README.md run in tests/datasets/test_train_net.py.
DATA_SETS = ("COCO", "COCO-Stuff 10k", "LVIS", "ADE20K", "ADE20K-Full", "Cityscapes", "Mapillary Vistas")
# What blocks of Python need that stands before them on the page, or in another file.
BEFORE_PYTHON = {
    "docs/export.md": """
from mask2former import cli
assert cli.main(["export", "coco/panoptic/R50", "--images", "folder", "--output", "nuclei.onnx"]) in (0, None)
""",
    "docs/many_pictures.md": """
from pathlib import Path
Path("results").mkdir()
""",
    "docs/test_time_augmentation.md": "import mask2former as m2f",
    "demo/README.md": """
import sys, cv2
from mask2former.engine import load_config
sys.path.insert(0, "demo")
cfg = load_config("configs/examples/nuclei_panoptic_lite0.yaml",
    ["MODEL.WEIGHTS", "model_zoo/nuclei_panoptic_lite0.pth"])
""",
}
# More than some seconds: `make test-slow`.
SLOW_PYTHON = ("docs/export.md",)
SLOW = (
    r"mask2former export .*",
    r"python tools/evaluate_exported\.py .*",
    r"python examples/.*",
    r"python train_net\.py --config-file output/mine/own_data\.yaml .*",
    r"mask2former train --data \S+ --output output/(mine --resume|longer .*)",
    r"mask2former train --data \S+ --weights .*",
)


def reason_not_to_run(command: Command) -> str | None:
    """Why a command is not run here; None if it is."""
    for pattern, reason in NOT_RUN.items():
        if re.fullmatch(pattern, command.text):
            return reason
    if command.page == "datasets/README.md" and section(command) in DATA_SETS:
        return "tests/datasets/test_train_net.py"
    return None


def is_slow(command: Command) -> bool:
    return any(re.fullmatch(pattern, command.text) for pattern in SLOW)


def section(command: Command) -> str:
    """The heading of the second level above a command."""
    lines = (REPOSITORY / command.page).read_text("utf-8").splitlines()[: command.line]
    return next((line.removeprefix("## ") for line in reversed(lines) if line.startswith("## ")), "")
