import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.config import CfgNode

from mask2former.engine import load_config

TOY = Path(__file__).with_name("toy.py")


def _load_toy() -> ModuleType:
    if "toy" not in sys.modules:  # its model can be registered once only
        spec = importlib.util.spec_from_file_location("toy", TOY)
        sys.modules["toy"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["toy"])
    return sys.modules["toy"]


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return _load_toy()


@pytest.fixture(scope="session")
def toy_data(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the toy data set, registered as "toy"."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    toy.write_dataset(folder)
    toy.register_dataset(folder)
    return folder


@pytest.fixture
def toy_config(toy: ModuleType, toy_data: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    """Builds the toy's configuration; ``A__B=value`` changes the key A.B."""

    def build(**changes: object) -> CfgNode:
        return load_config(opts=toy.options(**{"OUTPUT_DIR": tmp_path / "out", **changes}))

    return build


@pytest.fixture
def run_toy(toy_data: Path, repository: Path) -> Callable[..., str]:
    """Runs ``toy.py`` as a program, after ``launcher`` if given; returns what it printed."""

    def run(arguments: list[str], launcher: tuple[str, ...] = ()) -> str:
        environment = {
            **os.environ,
            "TOY_DATA": str(toy_data),
            "PYTHONPATH": str(repository),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, *launcher, str(TOY), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run
