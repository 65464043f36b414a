"""The same through Ray Data, with two actors on this machine."""

import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former.inference.many import Done, Settings, Workers, predict_many, read_results
from tests.inference.many.conftest import a_killer

ray: Any = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # else Ray writes one into the home folder
        patch.setenv("RAY_worker_niceness", "0")  # or whatever else runs here goes first
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("_cluster")
def test_a_worker_is_killed(settings: Settings, pictures: Path, tmp_path: Path, truth: dict[str, Any]) -> None:
    out = tmp_path / "out"
    with a_killer(out) as killed:
        assert predict_many(pictures, out, settings, Workers(2, "local"), part_size=2) == Done(6, 0, 0)
    assert len(killed) == 1
    assert {record["file_name"]: record["annotations"] for record in read_results(out)} == truth
    assert sorted(path.name for path in (out / "parts").glob("[0-9]*")) == [f"{i:06d}" for i in range(6)]
    assert predict_many(pictures, out, settings, Workers(2, "local"), part_size=2) == Done(6, 6, 0)


@pytest.mark.usefixtures("_cluster")
def test_what_ray_does_not_have(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 workers with --cpus-per-worker 1 need 3 CPUs, and Ray has 2"):
        predict_many(pictures, tmp_path / "a", settings, Workers(3, "local"))
    with pytest.raises(ValueError, match=r"2 workers with --gpus-per-worker 1 need 2 GPUs, and Ray has 0"):
        predict_many(pictures, tmp_path / "b", settings, Workers(2, "local", gpus=1))


@pytest.mark.slow  # another worker that imports everything
@pytest.mark.usefixtures("_cluster")
def test_an_error_of_the_model_ends_the_job(settings: Settings, pictures: Path, tmp_path: Path) -> None:
    weights = tmp_path / "wrong.pth"
    weights.write_bytes(b"nothing")
    wrong = replace(settings, weights=str(weights))
    with pytest.raises(RuntimeError, match=r"(?s)wrong\.pth cannot be read.*the same command goes on from here"):
        predict_many(pictures, tmp_path / "c", wrong, Workers(1, "local"))


def test_without_ray(settings: Settings, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mask2former\[ray\]'"):
        predict_many(pictures, tmp_path / "out", settings, Workers(1, "local"))
