"""What the scripts ``datasets/prepare_*.py`` share: arguments, processes with a progress bar, and whole files.

A file is written under another name and then renamed, so what exists is complete, and a script that is run again goes
on with what is missing.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from mask2former.home import expand_home
from mask2former.processors import count_usable_cores

__all__ = ["Job", "present", "run_script", "whole_file", "write_image", "write_json"]

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What the command line asks for.

    Attributes:
        root: Folder of all data sets.
        workers: How many processes.
        overwrite: Make again what is there already.
    """

    root: Path
    workers: int
    overwrite: bool = False

    def must_make(self, output: Path) -> bool:
        """Whether a file is not there, or is to be made again."""
        return self.overwrite or not output.exists()

    def missing(self, tasks: Iterable[Task], output: Callable[[Task], Path]) -> list[Task]:
        """The tasks whose output has to be made."""
        return [task for task in tasks if self.must_make(output(task))]

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task], description: str) -> list[Result]:
        """``[function(task) for task in tasks]`` in processes, with a progress bar on a terminal.

        Args:
            function: A function of a module, or a partial of one; processes need to find it by name.
            tasks: Its arguments.
            description: Of the bar.
        """
        bar = tqdm(total=len(tasks), desc=description, unit="image", disable=None)
        results = []
        with bar, _mapper(min(self.workers, len(tasks))) as mapper:
            for result in mapper(function, tasks):
                results.append(result)
                bar.update()
        return results


def run_script(prepare: Callable[[Job], None], description: str | None) -> None:
    """Read the command line and prepare a data set; what is missing or wrong ends the script with one line.

    Args:
        prepare: Does it.
        description: The script's docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        help="folder of all data sets (default: $DETECTRON2_DATASETS, else ./datasets; now %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=count_usable_cores(), help="processes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    arguments = parser.parse_args()
    try:
        prepare(Job(expand_home(arguments.root), arguments.workers, arguments.overwrite))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def present(splits: dict[str, list[Path]], hint: str) -> list[str]:
    """The splits of which all inputs exist; a split of which some or all are missing is left out and named.

    Args:
        splits: The inputs of each split.
        hint: Where they come from.

    Raises:
        FileNotFoundError: No split is complete.
    """
    missing = {name: [path for path in paths if not path.exists()] for name, paths in splits.items()}
    found = [name for name, paths in missing.items() if not paths]
    if not found:
        every = ", ".join(str(path) for paths in missing.values() for path in paths)
        raise FileNotFoundError(
            f"not found: {every}. {hint} Set DETECTRON2_DATASETS (or --root) to the folder that holds all data sets; "
            "datasets/README.md shows the tree."
        )
    for name, paths in missing.items():
        if paths:
            print(f"Leaving out {name}, for there is no {', '.join(map(str, paths))}.")
    return found


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when the block ends well and disappears when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o644)  # mkstemp's files are private
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an array as the picture that the suffix of ``path`` says."""
    with whole_file(path) as unfinished:
        Image.fromarray(pixels).save(unfinished)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content))


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    if workers <= 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers)
    try:
        yield lambda function, tasks: pool.map(function, tasks, chunksize=max(1, min(16, len(tasks) // (4 * workers))))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, what has not begun does not begin
