import itertools
import pickle
import random
import re
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from torch.utils.data import IterableDataset

from mask2former.data import read_image
from mask2former.engine.data_loader import TrainLoader, build_test_loader, build_train_loader

RECORDS = [{"file_name": str(i), "width": 4 + i % 3, "height": 5} for i in range(10)]


def jitter(record: dict) -> dict:
    """Draws from all three generators, as augmentations do."""
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def make(batch_size: int = 2, mapper=jitter, **options) -> TrainLoader:
    return TrainLoader(RECORDS, mapper, TrainingSampler(len(RECORDS), seed=3), batch_size, **options)


def take(loader: TrainLoader, batches: int) -> list[list[dict]]:
    return list(itertools.islice(iter(loader), batches))


def test_batches_hold_every_record_once_an_epoch():
    batches = take(make(), 5)

    assert [len(batch) for batch in batches] == [2] * 5
    assert sorted(sample["file_name"] for batch in batches for sample in batch) == [str(i) for i in range(10)]


def test_epochs_differ_in_order_and_augmentation():
    samples = [sample for batch in take(make(), 10) for sample in batch]

    assert [s["file_name"] for s in samples[:10]] != [s["file_name"] for s in samples[10:]]
    assert len({s["drawn"] for s in samples}) == 20


def test_workers_change_nothing():
    assert take(make(num_workers=2), 7) == take(make(), 7)


def test_ctrl_c_is_left_to_the_program_that_has_the_workers():
    def tell(record: dict) -> dict:
        return {**record, "on_ctrl_c": signal.getsignal(signal.SIGINT)}

    ((sample, _),) = take(make(mapper=tell, num_workers=1), 1)
    assert sample["on_ctrl_c"] is signal.SIG_IGN


def test_a_closure_reaches_workers_that_are_not_forked():
    dataset = pickle.loads(pickle.dumps(make(mapper=lambda record: {**record, "mapped": True}).dataset))

    assert dataset[0, 4] == {**RECORDS[4], "mapped": True}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_late_gives_what_an_uninterrupted_run_gives(num_workers):
    late = make(num_workers=num_workers)
    late.first_batch = 4

    assert take(late, 5) == take(make(), 9)[4:]


def test_the_run_s_seed_changes_the_augmentation():
    assert take(make(seed=1), 1)[0][0]["drawn"] != take(make(seed=2), 1)[0][0]["drawn"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_model_s_random_numbers_alone(num_workers):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(make(num_workers=num_workers), 2)

    assert torch.equal(torch.rand(3), expected)


def test_two_processes_see_together_what_one_sees(monkeypatch):
    alone = take(make(batch_size=4), 5)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take(make(batch_size=2), 5))

    for whole, first, second in zip(alone, *shares, strict=True):
        assert whole[0::2] == first
        assert whole[1::2] == second


def test_batches_of_one_aspect_ratio_equal_a_naive_grouping():
    wide = [record["width"] > record["height"] for record in RECORDS]
    batches = take(make(wider_than_tall=wide), 12)

    ungrouped = [sample for batch in take(make(), 20) for sample in batch]
    expected, buckets = [], {True: [], False: []}
    for sample in ungrouped:
        bucket = buckets[sample["width"] > sample["height"]]
        bucket.append(sample)
        if len(bucket) == 2:
            expected.append(bucket.copy())
            bucket.clear()
    assert batches == expected[:12]
    assert any(batch[0]["width"] > batch[0]["height"] for batch in batches)


def test_refused_samples_are_replaced_the_same_way_each_time():
    def refuse_odd(record: dict) -> dict | None:
        return None if int(record["file_name"]) % 2 else jitter(record)

    batches = take(make(mapper=refuse_odd), 10)

    assert all(int(sample["file_name"]) % 2 == 0 for batch in batches for sample in batch)
    assert batches == take(make(mapper=refuse_odd), 10)


def test_every_tenth_refusal_in_a_row_is_told(monkeypatch):
    told = []
    monkeypatch.setattr("mask2former.engine.data_loader.logger.warning", told.append)
    refusals = iter([None] * 25)
    take(make(batch_size=1, mapper=lambda record: next(refusals, record)), 2)

    assert [re.search(r"no sample (\d+) times in a row", line)[1] for line in told] == ["10", "20"]


def test_built_loader_takes_the_batch_apart(toy_config):
    cfg = toy_config(SOLVER__IMS_PER_BATCH=6, SOLVER__GRADIENT_ACCUMULATION_STEPS=3)
    loader = build_train_loader(cfg, lambda record: record)

    assert len(next(iter(loader))) == 2


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_built_loader_depends_on_the_seed_alone(toy_config, sampler):
    def names(seed: int) -> list[str]:
        cfg = toy_config(SEED=seed, DATALOADER__SAMPLER_TRAIN=sampler, DATALOADER__REPEAT_THRESHOLD=0.5)
        loader = build_train_loader(cfg, lambda record: record)
        return [sample["file_name"] for batch in take(loader, 8) for sample in batch]

    first = names(1)
    np.random.rand(5)

    assert names(1) == first
    assert names(2) != first


@pytest.mark.parametrize("key", ["annotations", "segments_info"])
def test_images_of_rare_classes_are_repeated(toy_config, key):
    records = [{"file_name": str(i), key: [{"category_id": int(i == 3)}]} for i in range(16)]
    DatasetCatalog.register("rare", lambda: records)
    sampler = {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD": 4 / 16}
    cfg = toy_config(DATASETS__TRAIN="('rare',)", **{f"DATALOADER__{name}": value for name, value in sampler.items()})
    try:
        loader = build_train_loader(cfg, lambda record: record)
        epoch = [sample["file_name"] for batch in take(loader, 9) for sample in batch][:17]
        assert sorted(epoch, key=int) == sorted([*map(str, range(16)), "3"], key=int)  # twice: the root of 4/16 to 1/16
        del records[5][key]
        with pytest.raises(ValueError, match=r"repeats images of rare classes, but not all records of .*rare"):
            build_train_loader(cfg, lambda record: record)
    finally:
        DatasetCatalog.remove("rare")


def test_a_batch_that_cannot_be_shared_is_an_error(toy_config):
    cfg = toy_config(SOLVER__IMS_PER_BATCH=4, SOLVER__GRADIENT_ACCUMULATION_STEPS=3)

    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 4.*make it a multiple of 3"):
        build_train_loader(cfg, lambda record: record)


def test_an_iterable_data_set_is_an_error(toy_config):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(RECORDS)

    DatasetCatalog.register("stream", Stream)
    try:
        with pytest.raises(TypeError, match=r"IterableDataset.*list of dicts"):
            build_train_loader(toy_config(DATASETS__TRAIN="('stream',)"), lambda record: record)
    finally:
        DatasetCatalog.remove("stream")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_file_that_is_lost_is_told_without_the_worker_s_stack(num_workers, damage, tmp_path, toy_config):
    path = tmp_path / "a.png"
    if damage == "damaged":
        path.write_bytes(b"\x89PNG")
    error, message = {
        "gone": (FileNotFoundError, f"{path}: no such file. Check the folders of the data set."),
        "damaged": (ValueError, f"{path}: cannot be read as an image"),
    }[damage]

    def read(record: dict) -> dict:
        return {"image": read_image(path)}

    cfg = toy_config(DATALOADER__NUM_WORKERS=num_workers)
    for loader in (make(mapper=read, num_workers=num_workers), build_test_loader(cfg, "toy", read)):
        with pytest.raises(error) as raised:
            list(itertools.islice(loader, 3))
        assert str(raised.value).startswith(message)
