import argparse
import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net

METRICS = ["panoptic_seg/PQ", "bbox/AP", "segm/AP", "segm/AP50", "sem_seg/mIoU"]


def parse(arguments: list[str]) -> argparse.Namespace:
    return default_argument_parser().parse_args(arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def final_metrics(folder: Path) -> dict[str, float]:
    """The last evaluation that metrics.json has."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return next({name: line[name] for name in METRICS} for line in reversed(lines) if METRICS[0] in line)


@pytest.fixture(scope="module")
def training(toy) -> dict[str, object]:
    """A run in which two processes must do what one does: the model draws no random numbers of its own."""
    return {"MODEL__MASK_FORMER__DROPOUT": 0.0, "SOLVER__MAX_ITER": 40, "SOLVER__BASE_LR": 0.05}


@pytest.fixture(scope="module")
def one_process(toy, toy_data, training, tmp_path_factory) -> Path:
    """Output folder of the run in this process."""
    folder = tmp_path_factory.mktemp("one")
    results = train_net.main(parse(toy.options(OUTPUT_DIR=folder, **training)))
    assert results["panoptic_seg"]["PQ"] > 30  # else equal results would say little
    return folder


def test_training_leaves_what_users_look_for(one_process):
    files = {file.name for file in one_process.iterdir()}

    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint", "inference"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert {file.name for file in (one_process / "inference").iterdir()} >= {
        "coco_instances_results.json",
        "panoptic_predictions.json",
        "panoptic_predictions",
        "sem_seg_predictions.json",
    }


def test_eval_only_gives_the_results_of_training(toy, one_process, tmp_path):
    options = toy.options(OUTPUT_DIR=tmp_path, MODEL__WEIGHTS=one_process / "model_final.pth")
    results = train_net.main(parse(["--eval-only", *options]))

    found = {name: results[name.split("/")[0]][name.split("/")[1]] for name in METRICS}
    assert found == final_metrics(one_process)


def test_resume_goes_on_from_the_command_line(toy, one_process, training, tmp_path):
    options = toy.options(OUTPUT_DIR=tmp_path, **training)
    train_net.main(parse([*options, "SOLVER.CHECKPOINT_PERIOD", "25"]))
    (tmp_path / "last_checkpoint").write_text("model_0000024.pth")
    (tmp_path / "model_final.pth").unlink()
    train_net.main(parse(["--resume", *options]))

    assert all(torch.equal(value, weights(one_process)[name]) for name, value in weights(tmp_path).items())


def test_two_processes_train_and_evaluate_as_one(toy, run_toy, one_process, training, tmp_path):
    run_toy(["--num-gpus", "2", "--dist-url", "auto", *toy.options(OUTPUT_DIR=tmp_path, **training)])

    assert (tmp_path / "log.txt.rank1").is_file()
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, weights(one_process)[name], rtol=1e-3, atol=1e-5)
    assert final_metrics(tmp_path) == pytest.approx(final_metrics(one_process), abs=1e-6)


def test_torchrun_trains_with_accumulation(toy, run_toy, one_process, training, tmp_path):
    options = toy.options(OUTPUT_DIR=tmp_path, **{**training, "SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 3})
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run_toy([*options, "SOLVER.GRADIENT_ACCUMULATION_STEPS", "2"], torchrun)
    alone = tmp_path / "alone"
    train_net.main(parse([*options, "OUTPUT_DIR", str(alone)]))

    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=1e-3, atol=1e-5)
