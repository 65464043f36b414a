"""Several processes do what one does: with compressed gradients, a static graph, and shared-out parameters."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.engine.parallel import parallelize
from mask2former.engine.sharding import find_units, gather, is_sharded

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(toy: ModuleType, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have run everything in ``two_processes.py``, on seven images."""
    folder = tmp_path_factory.mktemp("two")
    toy.write_dataset(folder / "data", images=7)
    (folder / "out").mkdir()
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(folder / "data"), str(folder / "out")]
    environment = {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "out"


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """The results of the two processes."""
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(toy: ModuleType, folder: Path) -> ModuleType:
    """The scenarios' functions, to run them in this process."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import two_processes
    finally:
        sys.path.pop(0)
    return two_processes


def assert_close(found: Tensors, expected: Tensors, **tolerances: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, n=name: f"{n}: {text}", **tolerances)


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("scenario", ["one_process_has_a_nan", "one_process_has_a_nan_sharded"])
def test_a_nan_in_one_process_skips_the_step_in_both(both: list[dict], scenario: str) -> None:
    first, second = (results[scenario] for results in both)
    assert first["skipped"] == second["skipped"] == {"total": 2, "in_a_row": 1}
    for step in (1, 3):
        assert_equal(first["weights"][step], first["weights"][step - 1])
    assert not torch.equal(first["weights"][2]["layers.0.weight"], first["weights"][1]["layers.0.weight"])
    for a, b in zip(first["weights"], second["weights"], strict=True):
        assert_equal(a, b)
    for told in (first["told"], second["told"]):
        assert len(told) == 2
        assert re.search(r"iteration 3 \(process 1: {'loss': nan}, images \['broken3.png'.*2 so far", told[1])


def test_too_many_nans_in_one_process_end_both(both: list[dict]) -> None:
    for results in both:
        error = results["one_process_has_too_many"]["error"]
        assert re.search("iteration 2 .process 1.*broken2.png.*2 steps in a row.*MAX_SKIPPED_STEPS is 1", error)


@pytest.mark.parametrize("scenario", ["one_process_overflows", "one_process_overflows_sharded"])
def test_an_overflow_in_one_process_lowers_the_scale_in_both(both: list[dict], scenario: str) -> None:
    for results in both:
        result = results[scenario]
        assert result["skipped"] == {"total": 1, "in_a_row": 0}
        assert result["scale"] == 2**15
        assert_equal(result["weights"][1], result["weights"][0])


@pytest.mark.parametrize(
    ("scenario", "precision"),
    [
        ("plain", None),
        ("static_graph", None),
        ("bfloat16_compression", 2**-8),
        ("float16_compression_of_a_static_graph", 2**-11),
        ("sharded", None),
        ("sharded_with_bfloat16_gradients", 2**-8),
    ],
)
def test_gradients_are_those_of_one_process(
    both: list[dict], alone: ModuleType, scenario: str, precision: float | None
) -> None:
    """Up to the rounding of those that travel: two summands and their sum, whose sizes are those of the largest."""
    for accumulation, found in enumerate(both[0][scenario], start=1):
        expected = alone.train_line(1 if precision else 3, accumulation)
        for ours, theirs in zip(found["gradients"], expected["gradients"], strict=False):
            largest = max(value.abs().max().item() for value in theirs.values())
            if precision is None:
                assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
            else:
                assert_close(ours, theirs, rtol=0, atol=4 * precision * largest)
                assert any(not torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6) for name in ours)


def test_both_processes_hold_a_share_of_the_parameters(both: list[dict], alone: ModuleType) -> None:
    (first, of), (second, _) = (results["shares"]["held"] for results in both)
    assert first + second == of == 3 * 8 + 8 + 8 + 1
    assert first > 16 > second - 1
    assert both[0]["shares"]["alone"] == pytest.approx(alone.Line()(alone.samples(2))["loss"].item(), rel=1e-6)


def losses(both: list[dict], scenario: str) -> list[float]:
    return list(both[0][scenario]["losses"].values())


def test_a_sharded_training_has_the_losses_and_the_results_of_others(both: list[dict], folder: Path) -> None:
    assert losses(both, "toy_sharded") == pytest.approx(losses(both, "toy_plain"), rel=1e-6)
    evaluations = [both[0][name]["evaluation"]["panoptic_seg"]["PQ"] for name in ("toy_sharded", "toy_plain")]
    assert evaluations[0] == pytest.approx(evaluations[1])
    assert evaluations[0] > 5
    assert losses(both, "toy_sharded_with_bfloat16") == pytest.approx(losses(both, "toy_plain"), rel=5e-3)
    assert losses(both, "toy_sharded_with_bfloat16") != pytest.approx(losses(both, "toy_plain"), rel=1e-6)
    files = {file.name for file in (folder / "toy_sharded").iterdir()}
    assert {"model_0000002.pth", "model_best.pth", "model_final.pth"} <= files


def test_checkpoints_are_the_same_sharded_and_not(folder: Path) -> None:
    """Names, shapes, types, and numbers, of weights and of the optimizer's state."""
    sharded, plain = (
        torch.load(folder / name / "model_0000002.pth", weights_only=True) for name in ("toy_sharded", "toy_plain")
    )
    assert list(sharded["model"]) == list(plain["model"])
    assert_close(sharded["model"], plain["model"], rtol=1e-5, atol=1e-6)
    ours, theirs = (c["trainer"]["_trainer"]["optimizer"] for c in (sharded, plain))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number in ours["state"]:
        assert_close(ours["state"][number], theirs["state"][number], rtol=1e-4, atol=1e-6)


def test_a_sharded_training_resumes_exactly(both: list[dict]) -> None:
    assert losses(both, "toy_sharded_stopped") == losses(both, "toy_sharded")[:4]
    assert losses(both, "toy_sharded_resumed") == losses(both, "toy_sharded")[3:]


@pytest.mark.parametrize("scenario", ["toy_sharded_resumes_plain", "toy_plain_resumes_sharded"])
def test_either_kind_of_training_resumes_the_other(both: list[dict], scenario: str) -> None:
    assert losses(both, scenario) == pytest.approx(losses(both, "toy_plain")[3:], rel=1e-6)


def test_a_sharded_training_begins_with_the_first_queries_of_a_checkpoint(both: list[dict]) -> None:
    for results in both:
        for before, after in results["more_queries_sharded"].values():
            assert torch.equal(after, torch.cat([torch.ones(3, 4), before[3:]]))


def test_a_parameter_without_a_gradient_needs_a_static_graph(both: list[dict]) -> None:
    for results in both:
        plain, static = results["a_parameter_without_a_gradient"]
        assert "get no gradients, since nothing reads what they give" in plain
        assert "set SOLVER.DDP.STATIC_GRAPH True" in plain
        assert static == "none"


def test_no_whole_checkpoint_ends_all_processes(both: list[dict]) -> None:
    for results in both:
        error = results["no_whole_checkpoint"]
        assert "has no whole checkpoint to resume from: last_checkpoint is missing or empty; model_0000001.pth" in error


def test_mask2former_itself_with_a_static_graph_and_sharded(both: list[dict]) -> None:
    before, plain, static, sharded = both[0]["real_model"]
    assert_equal(static, plain)
    assert list(sharded) == list(plain)
    moved = sum((plain[name] - before[name]).square().sum().item() for name in plain) ** 0.5
    apart = sum((plain[name] - sharded[name]).square().sum().item() for name in plain) ** 0.5
    assert moved > 0.1
    assert apart < 1e-3 * moved  # other rounding, since its convolutions have channels first


def test_units_are_the_smallest_blocks_that_are_large_enough() -> None:
    block = lambda width: nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU())  # noqa: E731
    model = nn.ModuleDict(
        {
            "stages": nn.ModuleList([nn.ModuleList([block(4), block(4)]), nn.ModuleList([block(2), block(2)])]),
            "head": nn.Linear(9, 9),
        }
    )
    large = [stage[0] for stage in model["stages"][0]]
    assert find_units(model, 16) == large
    assert find_units(model, 4) == [*large, *(stage[0] for stage in model["stages"][1])]
    assert find_units(model, 17) == []


def test_one_process_is_left_alone(toy_config) -> None:
    model = nn.Linear(1, 1)
    assert parallelize(toy_config(SOLVER__FSDP__ENABLED=True), model) is model
    assert not is_sharded(model)
    assert gather({"a": [model.weight]}, keep=True)["a"][0] is model.weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"SOLVER__DDP__COMPRESSION": "int8"},
            r"COMPRESSION is 'int8'; expected one of \['none', 'bfloat16', 'float16'\]",
        ),
        ({"SOLVER__FSDP__ENABLED": True, "SOLVER__DDP__STATIC_GRAPH": True}, "STATIC_GRAPH True .*use either"),
        ({"SOLVER__FSDP__ENABLED": True, "SOLVER__DDP__COMPRESSION": "float16"}, "COMPRESSION 'float16', .*either"),
    ],
)
def test_impossible_settings_are_errors(toy_config, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallelize(toy_config(**changes), nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PARAM_DTYPE": "float16"}, "PARAM_DTYPE is 'float16'; expected 'float32' or 'bfloat16'"),
        ({"REDUCE_DTYPE": "half"}, "REDUCE_DTYPE is 'half'; expected"),
        ({"PARAM_DTYPE": "bfloat16"}, "PARAM_DTYPE is 'bfloat16', which needs SOLVER.AMP.ENABLED True"),
    ],
)
def test_impossible_types_are_errors(toy_config, monkeypatch, changes: dict[str, str], message: str) -> None:
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    cfg = toy_config(SOLVER__FSDP__ENABLED=True, **{f"SOLVER__FSDP__{key}": value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        parallelize(cfg, nn.Linear(1, 1))
