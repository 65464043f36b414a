"""The training batches: an endless sequence in which batch ``i`` depends only on the run's seed and ``i``.

And those of evaluations. A file that is gone or damaged is told by all loaders as if they had no workers.
"""

import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch import Generator
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from mask2former.data import check_config_against_data
from mask2former.engine.random_state import derive_seed, isolated_rng
from mask2former.image_io import UnreadableImage

__all__ = ["FILE_ERRORS", "TrainLoader", "build_test_loader", "build_train_loader"]

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]
# Of a picture or a map of labels, which tell all there is to know: PyTorch would add the worker's stack.
FILE_ERRORS = (FileNotFoundError, UnreadableImage)
_REPEATS = RepeatFactorTrainingSampler.__name__
SampleKey = tuple[int, int]  # position in the global sequence of samples, index into the data set


class TrainLoader:
    """Endless batches of mapped samples, the same for any ``num_workers``, which can start at any batch.

    A sample's augmentation is seeded by its position in the global sequence of samples. With several processes, rank r
    of W takes positions r, r + W, ..., so that they see together what one process with the whole batch would see.

    Args:
        records: dataset dicts, or a map-style data set of them.
        mapper: turns a record into the model's input; for None, another record is drawn in its place.
        sampler: endless indices into ``records`` for this rank, the same each time it is iterated.
        batch_size: samples a batch, for this rank.
        wider_than_tall: of each record; given, a batch is made of records of one kind, which saves padding.
        num_workers: loader processes; 0 loads in this one.
        seed: of the run.
    """

    def __init__(
        self,
        records: list[dict[str, Any]] | Dataset,
        mapper: Mapper,
        sampler: Sampler,
        batch_size: int,
        *,
        wider_than_tall: Sequence[bool] | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        dataset = DatasetFromList(records, copy=False) if isinstance(records, list) else records
        self.dataset = _SeededDataset(dataset, mapper, seed)
        self.sampler = sampler
        self.batch_size = batch_size
        self.wider_than_tall = wider_than_tall
        self.num_workers = num_workers
        self.first_batch = 0  # where the next iteration over this loader starts

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=itertools.islice(self._batches(), self.first_batch, None),
            num_workers=self.num_workers,
            collate_fn=_keep_list,
            worker_init_fn=_ignore_interrupts,
            generator=Generator(),  # else the loader would draw from the model's random numbers
        )
        return map(_raise_errors, loader)

    def _batches(self) -> Iterator[list[SampleKey]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        keys = ((rank + i * world_size, int(index)) for i, index in enumerate(self.sampler))
        waiting: dict[bool, list[SampleKey]] = {False: [], True: []}
        for key in keys:
            kind = self.wider_than_tall is not None and self.wider_than_tall[key[1]]
            waiting[kind].append(key)
            if len(waiting[kind]) == self.batch_size:
                yield waiting[kind]
                waiting[kind] = []


class _SeededDataset(Dataset):
    """Maps (position, index) to a sample whose augmentation is drawn from the seed of its position."""

    def __init__(self, records: Dataset, mapper: Mapper, seed: int) -> None:
        self.records = records
        # From Python 3.14 on, workers get a pickled copy, of a closure as well.
        self.mapper = PicklableWrapper(_Telling(mapper))
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        position, index = key
        sample = self._map(index, derive_seed(self.seed, position))
        attempt = 0
        while sample is None:
            attempt += 1
            seed = derive_seed(self.seed, position, attempt)
            index = seed % len(self.records)  # type: ignore[arg-type]
            if attempt % 10 == 0:
                logger.warning(
                    f"The dataset mapper returned no sample {attempt} times in a row; does it refuse all images?"
                )
            sample = self._map(index, seed)
        return sample

    def _map(self, index: int, seed: int) -> dict[str, Any] | None:
        with isolated_rng(seed):
            return self.mapper(self.records[index])


class _TestLoader(DataLoader):
    """Detectron2's loader for an evaluation, with a mapper that is a :class:`_Telling` one."""

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]  # PyTorch's is a class of its own
        return map(_raise_errors, super().__iter__())


class _Telling:
    """A mapper that gives a file's error in place of its sample, for :func:`_raise_errors`."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | Exception | None:
        try:
            return self._mapper(record)
        except FILE_ERRORS as error:
            return error


def _raise_errors(batch: list[dict[str, Any] | Exception]) -> list[dict[str, Any]]:
    for sample in batch:
        if isinstance(sample, Exception):
            raise sample
    return batch  # type: ignore[return-value]


def build_train_loader(cfg: CfgNode, mapper: Mapper) -> TrainLoader:
    """Build the loader of ``cfg.DATASETS.TRAIN``, with Detectron2's samplers and filters.

    A batch is ``SOLVER.IMS_PER_BATCH`` over the number of processes and ``SOLVER.GRADIENT_ACCUMULATION_STEPS``.

    Raises:
        TypeError: if the data set is a stream.
        ValueError: if the batch cannot be divided like that, or the sampler finds no classes.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if isinstance(records, IterableDataset):
        raise TypeError(
            f"{cfg.DATASETS.TRAIN} give an IterableDataset, which cannot continue where a run stopped; register a list "
            "of dicts or a map-style Dataset."
        )
    # Samplers without a seed of their own take one from NumPy's generator.
    with isolated_rng(derive_seed(seed)):
        sampler = _repeat_rare_classes(cfg, records, seed) if cfg.DATALOADER.SAMPLER_TRAIN == _REPEATS else None
        parts = build_detection_train_loader.from_config(cfg, mapper=mapper, dataset=records, sampler=sampler)
    if isinstance(records, list):
        check_config_against_data(cfg, records, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))
    return TrainLoader(
        records,
        mapper,
        parts["sampler"],
        _micro_batch_size(cfg),
        wider_than_tall=_wider_than_tall(records) if parts["aspect_ratio_grouping"] else None,
        num_workers=parts["num_workers"],
        seed=seed,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str, mapper: Mapper) -> DataLoader:
    """Build Detectron2's loader of one of ``cfg.DATASETS.TEST``, each image once."""
    loader = build_detection_test_loader(cfg, dataset_name, mapper=_Telling(mapper))
    loader.worker_init_fn = _ignore_interrupts
    loader.__class__ = _TestLoader
    return loader


def _repeat_rare_classes(cfg: CfgNode, records: Iterable[dict[str, Any]], seed: int) -> RepeatFactorTrainingSampler:
    """Detectron2's sampler of that name, which alone would look at instances only, for segments as well."""
    found = [record.get("annotations", record.get("segments_info")) for record in records]
    if None in found:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN {_REPEATS} repeats images of rare classes, but not all records of "
            f'{cfg.DATASETS.TRAIN} tell their classes, in "annotations" or "segments_info"; choose TrainingSampler.'
        )
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [{"annotations": segments} for segments in found],
        cfg.DATALOADER.REPEAT_THRESHOLD,
        sqrt=cfg.DATALOADER.REPEAT_SQRT,
    )
    return RepeatFactorTrainingSampler(factors, seed=seed)


def _ignore_interrupts(_: int) -> None:
    """For a loader's workers: Ctrl-C reaches them too, but it is their program that ends them, without an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _micro_batch_size(cfg: CfgNode) -> int:
    images, steps, processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.GRADIENT_ACCUMULATION_STEPS, comm.get_world_size()
    if steps < 1 or images < 1 or images % (steps * processes):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}, which {processes} process(es) times SOLVER.GRADIENT_ACCUMULATION_STEPS "
            f"= {steps} cannot share equally; make it a multiple of {max(steps, 1) * processes}."
        )
    return images // (steps * processes)


def _wider_than_tall(records: list[dict[str, Any]] | Dataset) -> list[bool] | None:
    if not isinstance(records, list) or not all("width" in record and "height" in record for record in records):
        logger.info("Images are not grouped by aspect ratio: the data set does not tell their sizes.")
        return None
    return [record["width"] > record["height"] for record in records]


def _keep_list(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return samples
