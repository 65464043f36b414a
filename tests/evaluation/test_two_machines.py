"""Every evaluator on two machines that share no folder: the results are those of one process."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, build_evaluator
from tests.evaluation import city

MACHINE = Path(__file__).with_name("machine.py")


def start(folder: Path, repository: Path, rank: int, port: int) -> subprocess.Popen:
    """Start one of the two machines."""
    world = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    settings = {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": repository, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **{key: str(value) for key, value in (world | settings).items()}}
    command = [sys.executable, str(MACHINE), str(folder)]
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def copy_scene(scene, folder: Path) -> None:
    """Give a machine files of its own."""

    def move(value: object) -> object:
        return json.loads(json.dumps(value).replace(str(scene.folder), str(folder)))

    shutil.copytree(scene.folder, folder)
    metadata = MetadataCatalog.get(scene.name).as_dict()
    del metadata["name"]
    # JSON has no keys that are numbers.
    numbers = {key: metadata.pop(key) for key in list(metadata) if key.endswith("contiguous_id")}
    content = {"records": move(scene.inputs), "outputs": scene.outputs, "metadata": {**move(metadata), **numbers}}
    torch.save(content, folder / "scene.pth")


@pytest.fixture
def alone(make_scene, config, run, tmp_path):
    """The scene, and the results of one process."""
    scene = make_scene(seed=5)
    cfg = config(TEST__BOUNDARY_AP=True, TEST__SEMANTIC_PQ=True)
    results = run(build_evaluator(cfg, scene.name), scene.inputs, scene.outputs)
    pictures = city.write(tmp_path / "city")
    for kind in (CityscapesInstanceEvaluator, CityscapesSemSegEvaluator):
        found = run(kind("cityscapes_scene"), *pictures)
        results.update({f"cityscapes/{task}": metrics for task, metrics in found.items()})
    MetadataCatalog.remove("cityscapes_scene")
    return scene, results


def test_results_are_those_of_one_process(alone, repository, tmp_path):
    scene, expected = alone
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        copy_scene(scene, folder)
    shutil.rmtree(scene.folder)
    port = free_port()
    for process in [start(folder, repository, rank, port) for rank, folder in enumerate(folders)]:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]

    results, nothing = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert list(results) == list(expected)
    assert len(expected) == 8
    for task, metrics in expected.items():
        assert results[task] == pytest.approx(metrics, nan_ok=True), task
        assert any(0 < value < 100 for value in metrics.values()), task
    assert nothing == {}
    kept = [{path.name for path in (folder / "out/inference/panoptic_predictions").iterdir()} for folder in folders]
    assert kept == [{"1.png", "3.png", "5.png"}, {"2.png", "4.png", "6.png"}]
