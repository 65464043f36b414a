"""Downloads from a server on this machine: kept, checked, and removed where they are wrong."""

import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mask2former.weights.download import download
from tests.website import Site

WEIGHTS = pickle.dumps({"model": {"a": np.arange(5)}, "__author__": "someone"})


def digest(algorithm: str, length: int) -> str:
    return hashlib.new(algorithm, WEIGHTS).hexdigest()[:length]


def test_a_file_is_downloaded_once_with_a_progress_bar(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytes(2**20)
    address = site.put("folder/model.pkl", content)
    path = download(address, sha256=hashlib.sha256(content).hexdigest())
    assert Path(path).read_bytes() == content
    assert "model.pkl: 100%" in capsys.readouterr().err
    assert download(address) == path
    assert site.asked == ["folder/model.pkl"]


def test_another_file_is_removed_and_a_repetition_works(site: Site, downloaded: Callable[[], list[str]]) -> None:
    address = site.put("model.pkl", b"something else")
    with pytest.raises(ValueError, match=r"R50 from http://.*model\.pkl has SHA-256 [0-9a-f]{64}, expected .* removed"):
        download(address, sha256=digest("sha256", 64), name="R50")
    assert downloaded() == []
    site.put("model.pkl", WEIGHTS)
    assert Path(download(address, sha256=digest("sha256", 64))).read_bytes() == WEIGHTS


def test_a_download_that_is_cut_short(site: Site, downloaded: Callable[[], list[str]]) -> None:
    address = site.put("model.pkl", WEIGHTS)
    site.promised["model.pkl"] = len(WEIGHTS) + 1
    with pytest.raises(OSError, match=r"cannot be downloaded from http://.*model\.pkl \(.*retrieval incomplete.*\)\."):
        download(address)
    assert downloaded() == []
    site.promised.clear()
    assert Path(download(address)).read_bytes() == WEIGHTS


def test_what_is_not_there(site: Site, downloaded: Callable[[], list[str]]) -> None:
    with pytest.raises(
        OSError, match=r"R50 cannot be downloaded .*absent\.pkl \(HTTP Error 404.*\)\. Check the address"
    ):
        download(f"{site.address}/absent.pkl", name="R50")
    with pytest.raises(OSError, match="Connection refused"):
        download("http://127.0.0.1:9/model.pkl")
    with pytest.raises(OSError, match=r"cannot be downloaded from .* \(URL can't contain control characters"):
        download("http://127.0.0.1:9/my model.pkl")
    with pytest.raises(FileNotFoundError, match="gopher://a/b: there is no such file"):
        download("gopher://a/b")
    assert downloaded() == []


@pytest.mark.parametrize("length", [8, 64])
def test_sha256_in_a_name_as_pytorch_writes_it(length: int, site: Site) -> None:
    assert download(site.put(f"resnet50-{digest('sha256', length)}.pth", WEIGHTS))
    with pytest.raises(ValueError, match="expected 0123456f"):
        download(site.put("resnet50-0123456f.pth", WEIGHTS))


def test_dates_are_no_hashes(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert download(site.put("model-20240131.pth", WEIGHTS))
    assert download(site.put("iter_160000.pkl", WEIGHTS))
    assert warnings(caplog) == []


@pytest.mark.parametrize("algorithm", ["md5", "sha256", "sha1"])
def test_digits_in_a_name_as_detectron2_writes_it(algorithm: str, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert download(site.put(f"model_final_{digest(algorithm, 6)}.pkl", WEIGHTS))
    assert warnings(caplog) == []


def test_other_digits_of_a_checkpoint_are_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert download(site.put("model_final_abcdef.pkl", WEIGHTS))
    (warning,) = warnings(caplog)
    assert "neither MD5, SHA-256 nor SHA-1 begins with abcdef" in warning


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", WEIGHTS[:-9], b""])
def test_other_digits_of_what_is_no_checkpoint(content: bytes, site: Site, downloaded: Callable[[], list[str]]) -> None:
    address = site.put("model_final_abcdef.pkl", content)
    with pytest.raises((ValueError, OSError), match=r"is not a checkpoint.* abcdef .* removed|an empty file"):
        download(address)
    assert downloaded() == []
    site.put("model_final_abcdef.pkl", WEIGHTS)
    assert download(address)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
