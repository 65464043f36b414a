import argparse
import logging

import pytest
import torch

from mask2former.engine import load_config, setup
from tests.small_disk import disk_of


def test_options_override_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.5\n")
    cfg = load_config(str(file), ["SOLVER.MAX_ITER", "7"])

    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 0.5)
    assert cfg.is_frozen()


@pytest.mark.parametrize(
    ("opts", "reason"),
    [
        (["SOLVER.MAXITER", "3"], "Non-existent key: SOLVER.MAXITER"),
        (["NOTHING", "3"], "Non-existent key: NOTHING"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
        (["SOLVER.STEPS", "many"], "Type mismatch"),
    ],
)
def test_options_that_are_none_are_one_kind_of_error(opts, reason):
    with pytest.raises(ValueError, match=reason):
        load_config(opts=opts)


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        cfg = load_config(opts=["MODEL.DEVICE", "cuda"])

    assert cfg.MODEL.DEVICE == "cpu"
    (record,) = (record for record in caplog.records if "running on the CPU" in record.message)
    assert record.levelno == logging.WARNING  # it was asked for, not the configuration's default


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "'gpu', expected"), ("mps", "which PyTorch does not have here"), ("cuda:2", "2 GPUs")],
)
def test_devices_that_this_machine_does_not_have(device, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    (tmp_path / "a.yaml").write_text(f"MODEL: {{DEVICE: {device}}}")
    with pytest.raises(ValueError, match=message):
        load_config(str(tmp_path / "a.yaml"))
    assert load_config(opts=["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"


def test_setup_prepares_the_output_folder_and_the_seed(tmp_path):
    args = argparse.Namespace(config_file="", opts=["OUTPUT_DIR", str(tmp_path / "out"), "SEED", "3"], eval_only=False)
    setup(args)
    drawn = torch.rand(())
    torch.manual_seed(3)

    assert drawn == torch.rand(())
    assert (tmp_path / "out" / "config.yaml").is_file()
    logging.getLogger("mask2former.test").info("a line of ours")
    assert "a line of ours" in (tmp_path / "out" / "log.txt").read_text()


def test_no_half_of_a_configuration_is_left_on_a_full_disk(tmp_path):
    args = argparse.Namespace(config_file="", opts=["OUTPUT_DIR", str(tmp_path / "out")], eval_only=True)
    with disk_of(1000), pytest.raises(OSError, match=r"File too large: '.*out/config\.yaml'"):
        setup(args)
    assert not (tmp_path / "out/config.yaml").exists()
    (tmp_path / "out/config.yaml").write_text("of a training")
    with disk_of(1000), pytest.raises(OSError, match="File too large"):
        setup(args)
    assert (tmp_path / "out/config.yaml").read_text() == "of a training"
