"""Weights inside installed packages, as package:// addresses."""

import zipfile
from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager

import mask2former.weights  # noqa: F401  registers the addresses


@pytest.fixture(params=["folder", "zip"])
def packages(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two importable packages, in a folder or a zip file: one with one file of weights, one with two."""
    suffix = request.param
    files = {
        f"one_model_{suffix}/models/net.pth": "one",
        f"one_model_{suffix}/readme.txt": "",
        f"two_models_{suffix}/a.pth": "a",
        f"two_models_{suffix}/deep/b.safetensors": "b",
    }
    files |= {f"{package}_{suffix}/__init__.py": "" for package in ("one_model", "two_models")}
    root = tmp_path / "site"
    if suffix == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(root))
    return suffix


def test_package_addresses(packages: str) -> None:
    assert Path(PathManager.get_local_path(f"package://one_model_{packages}/models/net.pth")).read_text() == "one"
    assert Path(PathManager.get_local_path(f"package://one_model_{packages}")).read_text() == "one"
    assert Path(PathManager.get_local_path(f"package://two_models_{packages}/deep/b.safetensors")).read_text() == "b"
    with PathManager.open(f"package://one_model_{packages}/models/net.pth", "rb") as file:
        assert file.read() == b"one"
    with PathManager.open(f"package://one_model_{packages}/models/net.pth") as file:
        assert file.read() == "one"
    assert PathManager.isfile(f"package://one_model_{packages}")
    assert not PathManager.exists(f"package://one_model_{packages}/other.pth")


def test_package_address_errors(packages: str) -> None:
    cases = {
        f"package://one_model_{packages}/net.pth": r"has no file 'net\.pth'; its weights are \['models/net\.pth'\]",
        f"package://two_models_{packages}": r"expected one .*, found \['a\.pth', 'deep/b\.safetensors'\]; name it",
        "package://no_such_package/net.pth": r"'no_such_package' is not installed; try: pip install no-such-package",
    }
    for address, message in cases.items():
        with pytest.raises(FileNotFoundError, match=message):
            PathManager.get_local_path(address)
    with pytest.raises(ValueError, match="mode 'w', but files of packages can only be read"):
        PathManager.open(f"package://one_model_{packages}", "w")
