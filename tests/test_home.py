from pathlib import Path

import pytest

from mask2former.home import expand_home


def test_only_homes_that_there_are_take_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expand_home("~/a.png") == expand_home(Path("~/a.png")) == Path("/home/ada/a.png")
    for name in ("~a.png", "~nobody-at-all/a.png", "a/~/b", "a.png"):
        assert expand_home(name) == Path(name)
