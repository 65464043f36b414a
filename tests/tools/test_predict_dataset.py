from pathlib import Path

import predict_dataset
import pytest
from detectron2.config import CfgNode

from mask2former.inference.many import read_results


def test_command(tiny_files: tuple[CfgNode, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = tiny_files
    pictures, out = folder / "pictures", tmp_path / "out"
    words = [
        "--model",
        str(folder / "config.yaml"),
        "--task",
        "semantic",
        "--part-size",
        "1",
        "--opts",
        "MODEL.DEVICE",
        "cpu",
    ]
    assert predict_dataset.main([str(pictures), "--output", str(out), *words]) == 0
    assert capsys.readouterr().out == f"2 parts -> {out}\n"
    assert [record["file_name"] for record in read_results(out)] == ["high.png", "wide.png"]
    assert predict_dataset.main([str(pictures), "--output", str(out), *words]) == 0
    assert capsys.readouterr().out == f"2 parts (2 of them before) -> {out}\n"
    (pictures / "bad.png").write_bytes(b"bad")
    assert predict_dataset.main([str(pictures), "--output", str(out), *words]) == 1
    assert "has results of another job, which differs in pictures.parts (was 2, now 3)" in capsys.readouterr().err
    assert predict_dataset.main([str(pictures), "--output", f"{out}2", *words]) == 1
    assert capsys.readouterr().err.endswith(f"error: 1 pictures could not be segmented: {out}2/bad_pictures.jsonl\n")


def test_ctrl_c_has_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_dataset, "predict_many", interrupt)
    assert predict_dataset.main([str(tmp_path), "--output", str(tmp_path / "out"), "--model", "a"]) == 130
    assert capsys.readouterr().err == "error: interrupted; the same command goes on with the parts that are left\n"
