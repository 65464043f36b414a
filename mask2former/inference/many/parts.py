"""Parts on disk: whole or not there, and each written once."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from mask2former.durable_files import replace_file, sync

__all__ = ["MOST_LOSSES", "RESULTS_FILE", "Parts", "read_results", "write_json_lines"]

BAD_FILE = "bad_pictures.jsonl"
RESULTS_FILE = "results.jsonl"
MOST_LOSSES = 3


class Parts:
    """The folder ``parts`` of an output, which has one folder for every part that is finished.

    Args:
        output: The output.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / "parts"

    def of(self, number: int) -> Path:
        """The folder of a part."""
        return self.folder / f"{number:06d}"

    def unfinished(self, numbers: Collection[int]) -> list[int]:
        """Those that are not there yet."""
        return [number for number in numbers if not self.of(number).is_dir()]

    def write(self, number: int, fill: Callable[[Path], None]) -> None:
        """Let ``fill`` write the files of a part into a folder, which gets its name when all of it is on the disk.

        What another process has finished in the meantime stays.

        Raises:
            RuntimeError: So many processes were lost over it that another one would be too.
        """
        target = self.of(number)
        if len(list(self.folder.glob(f".{target.name}.*"))) >= MOST_LOSSES:
            raise RuntimeError(
                f"part {number} has lost its worker {MOST_LOSSES} times: killed, or out of memory. Try a smaller "
                "--batch-size, fewer workers, or a smaller --part-size in another --output."
            )
        unfinished = self.folder / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex}"
        unfinished.mkdir(parents=True)
        try:
            fill(unfinished)
            for path in (*unfinished.iterdir(), unfinished):
                sync(path)
            try:
                unfinished.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
            sync(self.folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # gone already if all went well

    def remove_unfinished(self) -> None:
        """Remove what processes that were killed have left behind; none may be at work."""
        for path in self.folder.glob(".??????.*"):
            shutil.rmtree(path, ignore_errors=True)

    def collect_bad(self, numbers: Collection[int]) -> int:
        """Write the pictures of all parts that could not be segmented into one file; returns their number."""
        count = 0
        with replace_file(self.output / BAD_FILE) as file:
            for number in sorted(numbers):
                lines = (self.of(number) / BAD_FILE).read_bytes()
                file.write(lines)
                count += lines.count(b"\n")
        return count


def write_json_lines(path: Path, records: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    """Write one object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_results(output: str | Path) -> Iterator[dict[str, Any]]:
    """The results of an output, finished or not, in the order of its parts.

    Yields:
        For each picture ``image_id``, ``file_name``, ``height``, ``width``, and what its task gives, as told in
        ``docs/many_pictures.md``.
    """
    for folder in sorted((Path(output) / "parts").glob("[0-9]*")):
        with (folder / RESULTS_FILE).open(encoding="utf-8") as file:
            yield from map(json.loads, file)
