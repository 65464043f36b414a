"""The data of a training: found, read, checked, divided, inspected."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.data import Metadata

from mask2former.data import Inspection, background_classes, inspect_records
from mask2former.data.datasets.entry import parse_entry
from mask2former.data.datasets.faults import DataError, Fault
from mask2former.own_data.source import Entry, Given, find_entries
from mask2former.own_data.split import split_records

__all__ = ["OwnData", "read_own_data"]

Record = dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """One data set that was read."""

    entry: Entry
    records: list[Record]
    faults: list[Fault]
    metadata: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        names: list[str] = self.metadata.get("stuff_classes") or self.metadata["thing_classes"]
        return names

    def inspect(self) -> Inspection:
        return inspect_records(self.records, Metadata(**self.metadata))

    def names(self) -> list[str]:
        """Of the images, below their folder.

        Raises:
            DataError: One is not UTF-8 or has a line break; the files that will list it have a name in each line.
        """
        folder = Path(self.entry["IMAGES"])
        names = [Path(record["file_name"]).relative_to(folder).as_posix() for record in self.records]
        faults = []
        for name in names:
            if name.encode(errors="ignore").decode() != name:
                faults.append(Fault(str(folder), f"the name {name!r} is not UTF-8. Rename it."))
            elif "\n" in name or "\r" in name:
                faults.append(Fault(str(folder), f"the name {name!r} has a line break. Rename it."))
        if faults:
            raise DataError(faults)
        return names


@dataclass(frozen=True)
class OwnData:
    """What a training needs to know of its data.

    Attributes:
        entries: Of ``DATASETS.CUSTOM``, by name: ``own_train`` and, if there is validation, ``own_val``.
        images: By the same names those to use, as paths below the entry's ``IMAGES``.
        inspections: By the same names.
        panoptic: Whether there are segments rather than instances.
        faults: What is left out.
    """

    entries: dict[str, Entry]
    images: dict[str, list[str]]
    inspections: dict[str, Inspection]
    panoptic: bool
    faults: tuple[Fault, ...]


def read_own_data(given: Given, val_given: Given | None, val_fraction: float, *, skip_bad: bool) -> OwnData:
    """Read and check everything.

    Args:
        given: The data.
        val_given: Data for validation, whose format need not take the classes and things that are given for both; None
            takes what the data themselves name, else a share of them.
        val_fraction: That share.
        skip_bad: Leave out what is wrong.

    Raises:
        DataError: Something is wrong, and is not to be left out, or nothing is left to learn.
        FileNotFoundError: Something is not there.
        ValueError: It is of no known format, or training and validation have different classes.
    """
    entry, val_entry = find_entries(given)
    if val_given is not None:
        classes = {"CLASS_NAMES": entry["CLASS_NAMES"]} if entry["FORMAT"] == "labelme" else {}
        val_entry = find_entries(val_given, of_other_data=("classes", "things"))[0] | classes
    parts = {"own_train": _read("own_train", entry)}
    if val_entry is not None:
        parts["own_val"] = _read("own_val", val_entry)
    # Training and validation may come of the same files.
    faults = list(dict.fromkeys(fault for part in parts.values() for fault in part.faults))
    for part in parts.values():
        if not part.records:
            raise DataError([*faults, Fault(part.entry["IMAGES"], "no image is left to use.")])
    if faults and not skip_bad:
        raise DataError(faults)
    if val_entry is None and val_fraction != 0:
        whole = parts["own_train"]
        if faults and len(whole.records) == 1:
            message = "one image is left, which cannot be divided into training and validation."
            raise DataError([*faults, Fault(entry["IMAGES"], message)])
        train, val = split_records(whole.records, val_fraction, background_classes(Metadata(**whole.metadata)))
        parts = {"own_train": replace(whole, records=train), "own_val": replace(whole, records=val)}
    _check_classes(list(parts.values()))
    inspections = {name: part.inspect() for name, part in parts.items()}
    _check_something_to_learn(parts, inspections, faults)
    return OwnData(
        entries={name: part.entry | ({"SKIP_BAD": True} if faults else {}) for name, part in parts.items()},
        images={name: part.names() for name, part in parts.items()},
        inspections=inspections,
        panoptic="stuff_classes" in parts["own_train"].metadata,
        faults=tuple(faults),
    )


def _read(name: str, entry: Entry) -> _Part:
    dataset = parse_entry(name, entry)
    records, faults = dataset.read()
    return _Part(entry, records, faults, {"name": name, **dataset.metadata()})


def _check_classes(parts: Sequence[_Part]) -> None:
    for part in parts[1:]:
        if part.classes != parts[0].classes:
            raise ValueError(
                f"training has the classes {', '.join(parts[0].classes)}, and validation {', '.join(part.classes)}. "
                "Both need the same, in the same order."
            )


def _check_something_to_learn(
    parts: dict[str, _Part], inspections: dict[str, Inspection], faults: Sequence[Fault]
) -> None:
    """Raise DataError, with the faults found before, if there is nothing to learn or to judge a model by."""
    entry = parts["own_train"].entry
    if inspections["own_train"].most_segments == 0:
        raise DataError([*faults, Fault(entry["IMAGES"], "no image shows anything to learn; annotate some of them.")])
    if lonely := _only_class(inspections["own_train"]):
        message = f"all that is labelled is of the class {lonely}, so there is nothing to tell apart."
        if entry["FORMAT"] == "id_png":
            message += (
                " If its PNGs have 0 and 255: 255 is unlabelled there, so give a table of colours as --classes, with "
                "lines such as 0 0 0 background and 255 255 255 object."
            )
        raise DataError([*faults, Fault(entry["CLASSES"] if "CLASSES" in entry else entry["IMAGES"], message)])
    if "own_val" in inspections and inspections["own_val"].empty == inspections["own_val"].images:
        message = (
            "no image for validation shows anything, so there is nothing to judge a model by; annotate some, or name "
            "others (--val-data)."
        )
        raise DataError([*faults, Fault(parts["own_val"].entry["IMAGES"], message)])


def _only_class(inspection: Inspection) -> str | None:
    """The name of the one class of several that occurs, if it has no instances."""
    present = [c for c in inspection.classes if c.segments]
    is_lonely = len(present) == 1 < len(inspection.classes) and not present[0].isthing
    return present[0].name if is_lonely else None
