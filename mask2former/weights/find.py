"""From what ``MODEL.WEIGHTS`` says to a file on this machine."""

from pathlib import Path

from mask2former.home import expand_home
from mask2former.weights.download import download
from mask2former.weights.files import file_in_folder
from mask2former.weights.hub import parse_repository
from mask2former.weights.zoo import find_backbone, find_entry, suggest_names

__all__ = ["find_weights"]


def find_weights(source: str | Path) -> str:
    """Find weights, downloading them at the first call.

    Args:
        source: the first of these that it is:

            - a file; or a folder, of Hugging Face's ``save_pretrained`` or of a training, whose best checkpoint counts,
              else its last; ``~`` is understood;
            - an address: ``https://``, ``file://``, and what Detectron2's ``PathManager`` knows, such as ``detectron2://``
              and ``package://``;
            - ``hf://<owner>/<name>[@<revision>][/<file>]``, a repository at Hugging Face;
            - a name of the model zoo, or the file name of one of its checkpoints;
            - the ImageNet weights of an official configuration, such as "R-101.pkl";
            - "<owner>/<name>", a repository at Hugging Face.

    Returns:
        The file on this machine.

    Raises:
        FileNotFoundError: it is none of these.
        OSError: it cannot be downloaded.
        ValueError: what was downloaded is not what was published.
    """
    source = str(source)
    path = expand_home(source.removeprefix("file://"))
    if path.is_dir():
        return file_in_folder(path)
    if path.is_file():
        return str(path)
    repository = parse_repository(source)
    if repository and source.startswith("hf://"):
        return str(repository.weights())
    if "://" in source and not source.startswith(("file://", "hf://")):
        return download(source)
    if entry := find_entry(source):
        return entry.checkpoint_file()
    if address := find_backbone(source):
        return download(address, name=source)
    if repository:
        return str(repository.weights())
    raise FileNotFoundError(
        f"MODEL.WEIGHTS: there is no file {source}. Check the path and the working directory; an address, a name such "
        f"as {suggest_names(source)[0]} (`mask2former models` lists them) or hf://<owner>/<name> will do as well."
    )
