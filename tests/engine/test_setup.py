import argparse
import logging

import pytest
import torch

from mask2former.engine import load_config, setup


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
        (["SOLVER.MAX_ITER"], "odd length"),
        (["SOLVER.STEPS", "many"], "Type mismatch"),
    ],
)
def test_options_that_are_none_are_one_kind_of_error(opts, reason):
    with pytest.raises(ValueError, match=f"KEY VALUE pairs '{' '.join(opts)}' do not change .*{reason}"):
        load_config(opts=opts)


def test_without_a_gpu_the_device_is_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        cfg = load_config(opts=["MODEL.DEVICE", "cuda"])

    assert cfg.MODEL.DEVICE == "cpu"
    assert [record.message for record in caplog.records if "running on the CPU" in record.message]


def test_setup_prepares_the_output_folder_and_the_seed(tmp_path):
    args = argparse.Namespace(config_file="", opts=["OUTPUT_DIR", str(tmp_path / "out"), "SEED", "3"], eval_only=False)
    setup(args)
    drawn = torch.rand(())
    torch.manual_seed(3)

    assert drawn == torch.rand(())
    assert (tmp_path / "out" / "config.yaml").is_file()
    logging.getLogger("mask2former.test").info("a line of ours")
    assert "a line of ours" in (tmp_path / "out" / "log.txt").read_text()
