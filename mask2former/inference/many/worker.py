"""What one worker does: load the model once, and segment one part after the other."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mask2former.data.panoptic_png import write_panoptic_png
from mask2former.inference.loading import model_config
from mask2former.inference.many.parts import BAD_FILE, RESULTS_FILE, Parts, write_json_lines
from mask2former.inference.many.shards import PictureSource, Shard
from mask2former.inference.pictures import Picture
from mask2former.inference.result import Result
from mask2former.inference.result_files import id_map, write_image
from mask2former.inference.segmenter import Segmenter
from mask2former.visualization import Task

__all__ = ["Settings", "Worker"]


@dataclass(frozen=True)
class Settings:
    """What to segment with, and how.

    Attributes:
        model: As :func:`mask2former.load` takes it.
        weights: A checkpoint to take instead of the model's own.
        opts: ``KEY VALUE`` pairs that change the configuration.
        task: "panoptic", "instance" or "semantic"; None takes the first that the model's configuration turns on.
        threshold: Least score, as of :meth:`~mask2former.Segmenter.predict`.
        size: Pixels of the shorter edge that the network sees, likewise.
        batch_size: Pictures that go through the network together.
        threads: Of each worker; 0 divides the processors among the workers.
    """

    model: str
    weights: str | None = None
    opts: tuple[str, ...] = ()
    task: Task | None = None
    threshold: float | None = None
    size: int | None = None
    batch_size: int = 1
    threads: int = 0


class Worker:
    """Holds the model.

    Args:
        settings: What with, ``task`` and ``threads`` included.
        output: The folder of the whole job.
    """

    def __init__(self, settings: Settings, output: Path) -> None:
        assert settings.task is not None
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.model = Segmenter(model_config(settings.model, settings.weights, settings.opts))
        self.settings = settings
        self.task: Task = settings.task
        self.parts = Parts(output)

    def predict(self, shard: Shard) -> None:
        """Segment a part into its files."""
        self.parts.write(shard.number, lambda folder: self._fill(folder, shard))

    def _fill(self, folder: Path, shard: Shard) -> None:
        bad: list[dict[str, Any]] = []
        segmented = enumerate(self._segment(shard, bad), 1)
        write_json_lines(
            folder / RESULTS_FILE,
            (self._describe(result, source, folder, shard.number, number) for number, (source, result) in segmented),
        )
        write_json_lines(folder / BAD_FILE, bad)

    def _segment(self, shard: Shard, bad: list[dict[str, Any]]) -> Iterator[tuple[PictureSource, Result]]:
        """The results of the pictures that can be read; the others are added to ``bad``."""
        waiting: deque[tuple[PictureSource, np.ndarray]] = deque()
        refused: deque[Exception] = deque()

        def pictures() -> Iterator[Picture]:
            sources = shard.pictures()
            while True:
                source = None
                try:
                    source = next(sources, None)
                    if source is None:
                        return
                    image = source.read()
                except (OSError, ValueError) as error:
                    bad.append(_complaint(source, error))
                    continue  # after an error of the archive itself, there is no next
                waiting.append((source, image))
                yield Picture(image, Path(source.name))

        def refuse() -> None:
            source, _ = waiting.popleft()
            bad.append(_complaint(source, refused.popleft()))

        options = {name: getattr(self.settings, name) for name in ("threshold", "size", "batch_size")}
        for result in self.model.stream(pictures(), task=self.task, on_error=refused.append, **options):
            while waiting[0][1] is not result.image:  # results come in order, but for pictures that cannot be resized
                refuse()
            yield waiting.popleft()[0], result
        while waiting:
            refuse()

    def _describe(self, result: Result, source: PictureSource, folder: Path, part: int, number: int) -> dict[str, Any]:
        """One line of the results; maps of segments are written beside it."""
        height, width = result.size
        record: dict[str, Any] = {
            "image_id": source.image_id,
            "file_name": source.name,
            "height": height,
            "width": width,
        }
        segments = result.to_coco(source.image_id, task=self.task)
        if self.task == "instance":
            return {**record, "annotations": segments}
        png = folder / f"{number:06d}.png"
        ids = id_map(result.predictions, self.task)
        if self.task == "panoptic":
            write_panoptic_png(png, ids)
        else:
            write_image(png, ids.astype(np.uint16))
        record["png"] = f"{self.parts.folder.name}/{self.parts.of(part).name}/{png.name}"
        left_out = ("image_id", "segmentation")
        record["segments_info"] = [{key: s[key] for key in s if key not in left_out} for s in segments]
        return record


def _complaint(source: PictureSource | None, error: Exception) -> dict[str, Any]:
    if source is None:  # the archive
        return {"image_id": None, "file_name": None, "error": str(error)}
    return {"image_id": source.image_id, "file_name": source.name, "error": str(error)}
