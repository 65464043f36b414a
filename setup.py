"""Metadata is in pyproject.toml. This file is for what that cannot say: compiled operators, files from outside."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ModuleNotFoundError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

OPS = Path("mask2former/ops")


class BuildOps(Command):
    """Compiles the native operators where that is possible: the package works without them, more slowly."""

    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None
        self.libraries: list[Path] = []

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        spec = importlib.util.spec_from_file_location("build_ops", OPS / "_build.py")
        build_ops = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build_ops)
        folder = OPS if self.editable_mode else Path(self.build_lib) / OPS
        try:
            self.make(folder / build_ops.library_name(), build_ops.build)
        except build_ops.BuildError as error:
            print(f"Mask2Former installs without its native operators, and runs more slowly: {error}", file=sys.stderr)
            return
        try:
            self.make(folder / build_ops.cuda_library_name(), build_ops.build_cuda)
        except build_ops.BuildError as error:
            print(f"Mask2Former installs without its operators for NVIDIA's GPUs: {error}", file=sys.stderr)

    def make(self, library: Path, build_library: Callable[[Path], Path]) -> None:
        """Builds a library, unless the checkout has it: its name tells of which sources it is."""
        if not (self.editable_mode and library.is_file()):
            self.libraries.append(build_library(library.parent))

    # What setuptools asks of a step of a build.
    def get_source_files(self) -> list[str]:
        return [str(path) for path in sorted((OPS / "csrc").rglob("*")) if path.is_file()]

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode else [str(library) for library in self.libraries]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildPy(build_py):
    """Takes along what names of the model zoo need; a checkout has it beside the package."""

    def run(self) -> None:
        super().run()
        for folder in ("configs", "model_zoo"):
            if not self.editable_mode and Path(folder).is_dir():
                self.copy_tree(folder, str(Path(self.build_lib, "mask2former", folder)))


class BdistWheel(bdist_wheel):
    """A wheel with the library is for one platform, but for every Python: the library does not know of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        self.root_is_pure = not self.get_finalized_command("build_ops").libraries
        return ("py3", "none", super().get_tag()[2])


build.sub_commands = [*build.sub_commands, ("build_ops", None)]
setup(cmdclass={"build_py": BuildPy, "build_ops": BuildOps, "bdist_wheel": BdistWheel})
