import argparse
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser

import train_net
from mask2former.engine import run
from tests.tiny_model import tiny_config  # noqa: F401

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


def test_eval_only_takes_no_model_with_a_new_head(tiny_config, tmp_path):  # noqa: F811
    options = [
        "OUTPUT_DIR",
        str(tmp_path),
        "DATASETS.TEST",
        "('coco_2017_val',)",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        "7",
    ]
    with pytest.raises(ValueError, match=r"lacks 2 parameters of the head, .*class_embed.*; name a trained model"):
        train_net.main(parse(["--eval-only", "--config-file", str(tiny_config), *options]))


def test_eval_only_says_that_a_model_is_untrained_or_knows_other_classes(toy, toy_data, tmp_path, caplog):
    MetadataCatalog.get("toy_of_others").set(thing_classes=["hat"], stuff_classes=["hat"])
    options = toy.options(OUTPUT_DIR=tmp_path, DATASETS__TRAIN="('toy_of_others',)")
    logging.getLogger("mask2former").addHandler(caplog.handler)
    try:
        train_net.main(parse(["--eval-only", *options]))
    finally:
        logging.getLogger("mask2former").removeHandler(caplog.handler)
    assert "MODEL.WEIGHTS is empty, so an untrained model is evaluated; name a trained model" in caplog.text
    assert re.search(r"toy has other classes \(.*\) than toy_of_others \(hat\)", caplog.text)


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_data_sets_are_looked_for_before_the_first_step(toy, toy_data, tmp_path, split):
    options = toy.options(OUTPUT_DIR=tmp_path, **{f"DATASETS__{split}": "('toi',)"})
    with pytest.raises(ValueError, match=r"there is no data set 'toi'; of \d+, the closest are toy"):
        train_net.main(parse(options))


def test_eval_only_optimises_the_model_if_asked_to(toy, one_process, tmp_path):
    options = toy.options(
        OUTPUT_DIR=tmp_path, MODEL__WEIGHTS=one_process / "model_final.pth", MODEL__INFERENCE__OPTIMIZE=True
    )
    with pytest.raises(ValueError, match="only MaskFormer models can be optimised for inference"):
        train_net.main(parse(["--eval-only", *options]))


def test_training_on_a_cpu_keeps_freed_memory(toy, toy_data, training, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(run, "keep_freed_memory_of_program", lambda: calls.append("kept"))
    options = toy.options(OUTPUT_DIR=tmp_path, **{**training, "SOLVER__MAX_ITER": 1})
    train_net.main(parse(options))
    train_net.main(parse(["--eval-only", *options]))  # which has blocks of many sizes

    assert calls == ["kept"]


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


def test_two_processes_train_the_real_model_on_images_with_and_without_targets(toy, run_toy, tmp_path):
    """Four steps of an image for each process: all eight pictures, one of which has no instance."""
    options = toy.options(
        OUTPUT_DIR=tmp_path, **{key.replace(".", "__"): value for key, value in toy.MASK_FORMER.items()}
    )
    run_toy(["--num-gpus", "2", "--dist-url", "auto", *options])

    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = next(line for line in lines if "total_loss" in line)
    assert {f"loss_{name}_{i}" for name in ("ce", "mask", "dice") for i in range(3)} <= losses.keys()
    assert any("segm/AP" in line for line in lines)


AUGMENTED = {
    "MODEL__META_ARCHITECTURE": "ToyMaskFormer",
    "INPUT__FORMAT": "RGB",
    "INPUT__MIN_SIZE_TEST": 96,
    "TEST__AUG__ENABLED": True,
    "TEST__AUG__MIN_SIZES": "(72, 96, 144)",
    "TEST__AUG__MAX_SIZE": 200,
}


def test_test_time_augmentation_after_the_usual_evaluation(toy, toy_data, run_toy, tmp_path):
    results = train_net.main(parse(["--eval-only", *toy.options(OUTPUT_DIR=tmp_path, **AUGMENTED)]))

    tasks = {"panoptic_seg", "bbox", "segm", "sem_seg"}
    assert results.keys() == tasks | {f"{task}_TTA" for task in tasks}
    for task, metric in (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU")):
        assert results[task][metric] > 95
        assert results[f"{task}_TTA"][metric] > 90  # resizing blurs the edges of objects of eight pixels
    assert (tmp_path / "inference_TTA" / "panoptic_predictions.json").is_file()
    # Two processes get the same, or exit with an error.
    expected = [
        [task, name, results[task][name], 1e-6] for task, name in (("panoptic_seg_TTA", "PQ"), ("segm_TTA", "AP"))
    ]
    options = toy.options(OUTPUT_DIR=tmp_path / "two", TEST__EXPECTED_RESULTS=expected, **AUGMENTED)
    run_toy(["--eval-only", "--num-gpus", "2", "--dist-url", "auto", *options])


@pytest.mark.parametrize(
    ("task", "name", "metric"),
    [("SEMANTIC", "sem_seg", "mIoU"), ("INSTANCE", "segm", "AP"), ("PANOPTIC", "panoptic_seg", "PQ")],
)
def test_test_time_augmentation_of_each_task_alone_and_of_two_data_sets(toy, toy_data, tmp_path, task, name, metric):
    toy.register_dataset(toy_data, "toy_again")
    switches = {
        f"MODEL__MASK_FORMER__TEST__{other}_ON": other == task for other in ("SEMANTIC", "INSTANCE", "PANOPTIC")
    }
    datasets = {"DATASETS__TEST": "('toy', 'toy_again')"}
    results = train_net.main(
        parse(["--eval-only", *toy.options(OUTPUT_DIR=tmp_path, **AUGMENTED, **switches, **datasets)])
    )

    assert results.keys() == {"toy", "toy_again", "toy_TTA", "toy_again_TTA"}
    assert results["toy_TTA"][name][metric] == results["toy_again_TTA"][name][metric] > 90
    assert {folder.name for folder in (tmp_path / "inference_TTA").iterdir()} == {"toy", "toy_again"}


def test_impossible_augmentation_is_refused_before_the_usual_evaluation(toy, toy_data, tmp_path):
    tiles = {"MODEL__MASK_FORMER__TEST__TILE_SIZE": 64, "MODEL__MASK_FORMER__TEST__TILE_OVERLAP": 32}
    with pytest.raises(ValueError, match="Set TILE_SIZE 0"):
        train_net.main(parse(["--eval-only", *toy.options(OUTPUT_DIR=tmp_path, **AUGMENTED, **tiles)]))
    assert not (tmp_path / "inference").exists()


@pytest.mark.parametrize(
    ("options", "hint"), [([], ": --resume goes on from the last checkpoint"), (["--eval-only"], "")]
)
def test_ctrl_c_has_one_line(monkeypatch, capsys, tmp_path, options, hint):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "launch", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run.run(parse([*options, "OUTPUT_DIR", str(tmp_path)]))
    assert stopped.value.code == 130
    assert capsys.readouterr().err == f"Interrupted{hint}.\n"


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ([], "auto"),
        (["--dist-url", "tcp://127.0.0.1:2"], "tcp://127.0.0.1:2"),
        (["--num-machines", "2"], parse([]).dist_url),
    ],
)
def test_programs_that_run_at_once_have_ports_of_their_own(monkeypatch, tmp_path, options, url):
    urls = []
    monkeypatch.setattr(run, "launch", lambda *given, args: urls.append(given[-1]))
    run.run(parse([*options, "OUTPUT_DIR", str(tmp_path)]))
    assert urls == [url]
