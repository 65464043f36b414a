"""Files from the network: kept in a cache, and checked."""

import hashlib
import logging
import re
from http.client import HTTPException
from pathlib import Path

from detectron2.utils.file_io import PathManager

from mask2former.weights.files import read_checkpoint

__all__ = ["check_sha256", "download", "hash_file"]

# PyTorch's convention: resnet50-0676ba61.pth has the first digits of its SHA-256. Decimals alone may be a date.
_SHA256_IN_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$")
# Detectron2's: model_final_94dc52.pkl. Nowhere is it written which hash these digits are of. They are not of SHA-256;
# those in the names of Segment Anything, from the same publisher, are of MD5.
_DIGITS_IN_NAME = re.compile(r"model_final_([0-9a-f]{6})\.pkl$")

logger = logging.getLogger(__name__)


def download(address: str, *, sha256: str | None = None, name: str = "") -> str:
    """Download a file once, into the cache of Detectron2's path manager, with a progress bar.

    Args:
        address: of the file, as ``PathManager`` understands it.
        sha256: what its content must hash to, in hexadecimal. Without it, the digits in the file's name are checked.
        name: what it is, for messages.

    Returns:
        The file on this machine. ``$FVCORE_CACHE`` says where the cache is (default: ~/.torch/iopath_cache).

    Raises:
        OSError: it cannot be downloaded in full.
        ValueError: it is not what was published; the file is removed.
    """
    what = name or "the file"
    try:
        path: str = PathManager.get_local_path(address)
    except FileNotFoundError:  # which says by itself what to do, as for package://
        raise
    except (OSError, ValueError, HTTPException) as error:  # no network, refused, cut short, or no address at all
        raise OSError(
            f"{what} cannot be downloaded from {address} ({error}). Check the address, the network and its proxy, or "
            "download it by other means and give the path of the file."
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"{address}: there is no such file, or nothing is known of such addresses.")
    if sha256 is None and (match := _SHA256_IN_NAME.search(path)):
        sha256 = match[1]
    if sha256 is not None:
        check_sha256(path, sha256, f"{what} from {address}")
    elif match := _DIGITS_IN_NAME.search(path):
        _check_digits(path, match[1], f"{what} from {address}")
    return path


def check_sha256(path: str | Path, expected: str, what: str) -> None:
    """Compare a file of a cache with its SHA-256, or the first digits of it.

    Args:
        path: of the file, which is removed if it is another.
        expected: in hexadecimal.
        what: the file, for messages.

    Raises:
        ValueError: it is another.
    """
    found = hash_file(path)
    if not found.startswith(expected):
        Path(path).unlink(missing_ok=True)
        raise ValueError(
            f"{what} has SHA-256 {found}, expected {expected}. It was removed: download it again; if that does not "
            "help, the file there has changed."
        )


def _check_digits(path: str, digits: str, what: str) -> None:
    """Refuse a file that has no hash with the digits of its name and is no checkpoint; warn if it is one."""
    if any(hash_file(path, algorithm).startswith(digits) for algorithm in ("md5", "sha256", "sha1")):
        return
    try:
        read_checkpoint(path)
    except ValueError as error:
        Path(path).unlink(missing_ok=True)
        raise ValueError(
            f"{what} is not a checkpoint, and none of its hashes begins with {digits} as its name says: it was altered "
            "or cut short on the way. It was removed: download it again."
        ) from error
    logger.warning(f"{what}: neither MD5, SHA-256 nor SHA-1 begins with {digits} as its name says, but it can be read.")


def hash_file(path: str | Path, algorithm: str = "sha256") -> str:
    """The hash of a file's content, in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
