"""What is wrong with a data set: collected, so that all of it can be told at once."""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["DataError", "Fault", "Faults", "list_faults"]

_SHOWN = 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        file: Where.
        message: What came, what was expected, what to do.
        place: Where in the file: "line 3", "annotation 17".
        image: Name of the image that it is about; None if it is about the whole data set.
    """

    file: str
    message: str
    place: str = ""
    image: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.place, self.message) if part)


class DataError(ValueError):
    """A data set cannot be used as it is; the message lists the first faults, ``faults`` has all."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        remedy = (
            "Correct it, or leave out what is bad (SKIP_BAD: True in the data set's entry, --skip-bad of a command)."
        )
        skippable = any(fault.image is not None for fault in faults)
        super().__init__("\n".join([list_faults(faults), *([remedy] if skippable else [])]))


class Faults:
    """Collects faults.

    Attributes:
        found: All so far.
    """

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, file: str | Path, message: str, place: str = "", image: str | None = None) -> None:
        """Note a fault; the file's name at the beginning of the message is not repeated."""
        self.found.append(Fault(str(file), message.removeprefix(f"{file}: "), place, image))

    @contextmanager
    def catch(self, file: str | Path, place: str = "", image: str | None = None) -> Iterator[None]:
        """Note a ValueError or a missing file as a fault and go on."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            self.add(file, str(error), place, image)

    def keep(self, images: Container[str]) -> None:
        """Forget what is not of these images."""
        self.found = [fault for fault in self.found if fault.image is not None and fault.image in images]

    def raise_any(self) -> None:
        """Raise DataError if there are faults: for what nothing can be done without."""
        if self.found:
            raise DataError(self.found)

    def to_json(self) -> list[dict[str, Any]]:
        """For a file; ``Fault(**entry)`` is the way back."""
        return [asdict(fault) for fault in self.found]


def list_faults(faults: Sequence[Fault]) -> str:
    """A readable text: how many there are, and the first of them."""
    if len(faults) == 1:
        return str(faults[0])
    head = f"{len(faults)} faults in the data" + (f"; the first {_SHOWN}:" if len(faults) > _SHOWN else ":")
    return "\n".join([head, *(f"  {fault}" for fault in faults[:_SHOWN])])
