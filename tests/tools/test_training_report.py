import sys
from pathlib import Path

import pytest
import torch
import training_report

from mask2former.engine import Trainer
from tests.engine.conftest import toy, toy_config, toy_data  # noqa: F401


def test_a_training_of_another_kind(
    toy_config,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = toy_config(SOLVER__MAX_ITER=2)
    trainer = Trainer(cfg)
    trainer.train()
    (tmp_path / "out/config.yaml").write_text(cfg.dump())
    evaluate, models = Trainer.test, []
    monkeypatch.setattr(Trainer, "test", lambda cfg, model: models.append(model) or evaluate(cfg, model))
    monkeypatch.setattr(sys, "argv", ["training_report.py", str(tmp_path / "out")])
    training_report.main()
    (model,) = models
    trained = trainer.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'out/report.html'}\n")
    page = (tmp_path / "out/report.html").read_text()
    assert "panoptic segmentation" in page
    assert page.count('<figure class="pair">') == 8
    assert "Settings" not in page  # they are told where they were chosen only
    assert "<dt>started from</dt><dd>nothing</dd>" in page
    evaluated: list[Path] = []
    monkeypatch.setattr("mask2former.own_data.report.write.evaluate_best", lambda output, cfg: evaluated.append(output))
    training_report.main()
    assert not evaluated
    assert (tmp_path / "out/report.html").read_text() == page
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--evaluate"])
    training_report.main()
    assert evaluated == [tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["training_report.py", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        training_report.main()
