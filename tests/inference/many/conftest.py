"""A small model, some pictures, and somebody who kills workers."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import mask2former as m2f
from mask2former.inference.many import Settings
from tests.tiny_model import tiny_config  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have, for the same results to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def settings(tiny_config: Path, tmp_path: Path) -> Settings:  # noqa: F811
    """Of the tiny model, with names of classes that every process finds in the configuration."""
    own = {"FORMAT": "id_png", "IMAGES": "absent", "INSTANCES": "absent", "CLASSES": "absent"}
    own |= {"CLASS_NAMES": ["cat", "dog", "sky"], "THINGS": ["cat", "dog"]}
    config = yaml.safe_load(tiny_config.read_text())
    config["DATASETS"] = {"TRAIN": ["many_tiny"], "TEST": ["many_tiny"], "CUSTOM": {"many_tiny": own}}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(config))
    return Settings(str(tmp_path / "many.yaml"), task="instance", threshold=0.1, threads=1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of two sizes, some of them in a folder below."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures/more").mkdir(parents=True)
    for i in range(12):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        size = (120, 90) if i % 2 else (64, 80)
        cv2.imwrite(str(tmp_path / "pictures" / ("more" if i > 8 else "") / f"{i:02d}.png"), cv2.resize(coarse, size))
    return tmp_path / "pictures"


@contextmanager
def a_killer(output: Path, number: int = 1) -> Iterator[list[int]]:
    """Kill as many processes as said, each while it works on a part; the list gets their ids."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set() and len(killed) < number:
            for path in (output / "parts").glob(".*"):
                pid = int(re.fullmatch(r"\.\d{6}\.(\d+)\.\w+", path.name)[1])
                if (path / "results.jsonl").exists() and pid not in killed and len(killed) < number:
                    assert pid != os.getpid()
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.fixture
def truth(settings: Settings, pictures: Path) -> dict[str, Any]:
    """What single pictures give, by their names."""
    model = m2f.load(settings.model)
    return {
        path.relative_to(pictures).as_posix(): model.predict(path, task="instance", threshold=0.1).to_coco(number)
        for number, path in enumerate(sorted(pictures.rglob("*.png")), 1)
    }
