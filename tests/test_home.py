from pathlib import Path

import pytest

from mask2former import cli
from mask2former.home import expand_home


def test_only_homes_that_there_are_take_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expand_home("~/a.png") == expand_home(Path("~/a.png")) == Path("/home/ada/a.png")
    for name in ("~a.png", "~nobody-at-all/a.png", "a/~/b", "a.png"):
        assert expand_home(name) == Path(name)


def test_an_empty_path_is_not_the_working_directory(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable that is not set."""
    for words in (
        ["predict", "a.png", "--model", "m"],
        ["browse", "--config-file", "a.yaml"],
        ["train"],
        ["export", "m"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--output", ""])
        assert ended.value.code == 2
        assert "--output: the path is empty; '.' stands for the working directory" in capsys.readouterr().err
