"""The installer of Detectron2 and panopticapi, on a small wheel of the same shape and without a network."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import setuptools  # noqa: F401  before Python 3.12, it could not be imported after the installer has looked for pip

SCRIPT = Path(__file__).parents[2] / "tools" / "install_detectron2.py"
INFO = "sal_tiny-0.1.dist-info"
METADATA = """\
Metadata-Version: 2.1
Name: sal-tiny
Version: 0.1
Requires-Dist: numpy<2.0.0,>=1.23.5
Requires-Dist: numpy-groupies<2
"""


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "sal_tiny-0.1-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("detectron2/__init__.py", "__version__ = '0.1'\n")
        archive.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"\x7fELF")
        archive.writestr("detectron2/a,b.txt", "a comma in a name is quoted in RECORD")
        archive.writestr("tools/__init__.py", "")
        archive.writestr(f"{INFO}/METADATA", METADATA)
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n")
        archive.writestr(f"{INFO}/RECORD", "detectron2/_C.cpython-310-x86_64-linux-gnu.so,sha256=x,4\n")
    return path


def test_retagged_wheel_is_plain_python(installer: ModuleType, wheel: Path) -> None:
    retagged = installer.retag(wheel)
    assert retagged.name == "sal_tiny-0.1-py3-none-any.whl"
    with zipfile.ZipFile(retagged) as archive:
        assert set(archive.namelist()) == {
            "detectron2/__init__.py",
            "detectron2/a,b.txt",
            f"{INFO}/METADATA",
            f"{INFO}/WHEEL",
            f"{INFO}/RECORD",
        }
        assert "Tag: py3-none-any" in archive.read(f"{INFO}/WHEEL").decode().splitlines()
        assert "Root-Is-Purelib: true" in archive.read(f"{INFO}/WHEEL").decode().splitlines()
        required = [line for line in archive.read(f"{INFO}/METADATA").decode().splitlines() if "Requires" in line]
        assert required == ["Requires-Dist: numpy", "Requires-Dist: numpy-groupies<2"]


def test_pip_installs_the_retagged_wheel(installer: ModuleType, wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-compile", f"--target={target}"]
    subprocess.run([*pip, "install", *options, str(installer.retag(wheel))], check=True)
    (distribution,) = importlib.metadata.distributions(path=[str(target)])
    recorded = {str(file): file.hash.value for file in distribution.files or [] if file.hash is not None}
    assert {"detectron2/__init__.py", "detectron2/a,b.txt"} <= recorded.keys()
    for file, value in recorded.items():
        digest = hashlib.sha256((target / file).read_bytes()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == value


def test_another_file_than_the_tested_one_is_refused(installer: ModuleType, wheel: Path) -> None:
    with pytest.raises(SystemExit, match=r"sal_tiny.*whl has the SHA-256 .* was expected: not installed"):
        installer.verify(wheel, hashlib.sha256(b"another").hexdigest())


def test_what_is_installed_is_left_alone(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer, "_pip", lambda *_: pytest.fail("pip was called"))
    installer.main()
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"detectron2 0\.\S+ is already installed; nothing to do\.", first)
    assert second == "panopticapi is already installed; nothing to do."


def test_what_is_missing_is_downloaded_verified_and_installed(
    installer: ModuleType, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[str, ...]] = []

    def pip(command: str, *arguments: str) -> None:
        commands.append((command, *arguments))
        if command == "download":
            (folder,) = (a.removeprefix("--dest=") for a in arguments if a.startswith("--dest="))
            (Path(folder) / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(installer, "_pip", pip)
    monkeypatch.setattr(installer, "_import", lambda module: f"{module} 0.1")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(installer, "PACKAGES", [package._replace(sha256=sha256) for package in installer.PACKAGES])
    installer.main()
    assert [command[0] for command in commands] == ["download", "install"] * 2
    assert [command[-1] for command in commands[::2]] == ["sal-detectron2==0.7.2", "panopticapi-lite==0.2.0"]
    assert all(command[-1].endswith("sal_tiny-0.1-py3-none-any.whl") for command in commands[1::2])
    assert capsys.readouterr().out == "Installed detectron2 0.1.\nInstalled panopticapi 0.1.\n"


def test_a_failing_pip_is_reported(installer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"`pip install` failed .* nothing is installed"):
        installer._pip("install", "--no-index", str(tmp_path / "absent-1.0-py3-none-any.whl"))


def test_uv_brings_a_pip_where_there_is_none(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    installer._pip("download", "--help")
    assert not (tmp_path / "arguments").exists()
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda _: None)
    installer._pip("download", "sal-tiny==0.1")
    expected = ["tool", "run", "--quiet", "pip", "--python", sys.executable, "--quiet", "download", "sal-tiny==0.1"]
    assert (tmp_path / "arguments").read_text().splitlines() == expected


def test_a_broken_detectron2_is_reported(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="detectron2 is installed but cannot be imported"):
        installer._import("detectron2")
