"""Install Detectron2 from PyPI, where it stands under another name and with too narrow a tag.

    python tools/install_detectron2.py

Does nothing where ``import detectron2`` already works, so that a build of your own stays. Otherwise it downloads the
wheel of ``sal-detectron2``, a complete Detectron2 0.7.2, compares its checksum, and installs it for the running Python.
The wheel is tagged for CPython 3.10 because of one compiled file, ``detectron2/_C*.so``, which Mask2Former never uses;
without that file it is plain Python and runs on any version.

Needs the standard library and pip only. What Detectron2 itself depends on is installed with Mask2Former.
"""

import base64
import csv
import hashlib
import importlib.util
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["main"]

REQUIREMENT = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# Of the files in the wheel: the compiled one, and Detectron2's scripts, which would become a top-level package `tools`.
LEFT_OUT = ("detectron2/_C", "tools/")


def main() -> None:
    """Install Detectron2 unless it is there. Exits with one sentence where that is not possible."""
    if importlib.util.find_spec("detectron2") is not None:
        print(f"Detectron2 {_imported_version()} is already installed; nothing to do.")
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder))
        verify(wheel)
        _pip("install", "--no-deps", str(retag(wheel)))
    print(f"Installed Detectron2 {_imported_version()}.")


def download(folder: Path) -> Path:
    """Download the wheel into ``folder`` and return its path."""
    _pip("download", "--no-deps", "--only-binary=:all:", "--python-version=3.10", f"--dest={folder}", REQUIREMENT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def verify(wheel: Path) -> None:
    """Exit unless ``wheel`` is, byte for byte, the file that was tested."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(
            f"{wheel.name} has the SHA-256 {found}, but {SHA256} was expected: not installed. "
            "Try again; if it stays so, your package index serves another file than the one that was tested."
        )


def retag(wheel: Path) -> Path:
    """Write the wheel anew, beside the old one, as plain Python for every version and platform.

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
    """Run pip of the running Python; on failure its own message stands above ours."""
    run = subprocess.run([sys.executable, "-m", "pip", "--quiet", command, *arguments], check=False)
    if run.returncode:
        sys.exit(f"`pip {command}` failed (see above): Detectron2 is not installed. Is there a network and a pip?")


def _imported_version() -> str:
    """Import Detectron2 in a fresh Python, which sees what was just installed, and return its version."""
    command = [sys.executable, "-c", "import detectron2; print(detectron2.__version__)"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(
            f"{run.stderr.strip()}\nDetectron2 is installed but cannot be imported (see above). Install Mask2Former's "
            "requirements, PyTorch among them, or uninstall Detectron2 and run this script again."
        )
    return run.stdout.strip()


if __name__ == "__main__":
    main()
