"""Compiles the operators' bindings with the headers of the oldest PyTorch that is supported.

    python tools/check_oldest_torch.py            # downloads PyTorch's wheel by pip, half a gigabyte
    python tools/check_oldest_torch.py --wheel torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl

The machine's own PyTorch is mostly a later one, whose headers have more in them. Kernels need no PyTorch and are left
out; nothing is linked. Exits with 0 if all is well, and prints what the compiler says otherwise.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mask2former.ops import _build

__all__ = ["main"]

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if a file does not compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="of the oldest PyTorch, in place of a download")
    wheel = parser.parse_args(arguments).wheel
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = wheel or download(oldest(), folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [x for x in archive.namelist() if x.startswith("torch/include/")])
        commands = _build.check_commands(folder / "torch/include")
        failed = [source for source, command in commands.items() if subprocess.run(command).returncode]
    print(f"{wheel.name}: {', '.join(failed) or 'nothing'} failed")
    return int(bool(failed))


def oldest() -> str:
    """The version in pyproject.toml."""
    match = re.search(r'^  "torch>=([\d.]+)"', PYPROJECT.read_text(), re.MULTILINE)
    assert match is not None, f"{PYPROJECT} does not say which PyTorch is needed"
    return match[1]


def download(version: str, folder: Path) -> Path:
    """PyTorch's wheel for this Python."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*command, f"torch=={version}.*"], check=True)
    return next(folder.glob("torch-*.whl"))


if __name__ == "__main__":
    sys.exit(main())
