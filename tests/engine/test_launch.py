import pytest
import torch

from mask2former.engine import launch


def test_one_process_is_this_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls = []
    launch(lambda *args: calls.append(args), 1, args=("a", 2))

    assert calls == [("a", 2)]


def test_no_process_is_an_error():
    with pytest.raises(ValueError, match="--num-gpus is 0; expected at least 1"):
        launch(print, 0)


@pytest.mark.parametrize("url", [None, "auto"])
def test_several_machines_need_an_address(monkeypatch, url):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"--dist-url is {url!r}, but there are 2 machines"):
        launch(print, 1, 2, 0, url)


def test_more_gpus_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(ValueError, match="--num-gpus is 4 but this machine has 1"):
        launch(print, 4)
