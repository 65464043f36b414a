"""Weights from one code base's names and files to another's."""

from pathlib import Path

from mask2former.inference.huggingface import write_folder
from mask2former.inference.loading import model_config
from mask2former.modeling.checkpoint_compat import FORMATS, convert_names, is_backbone
from mask2former.weights import find_weights, read_weights, write_weights

__all__ = ["FORMATS", "convert_weights"]

_PLAIN = ("huggingface", "torchvision", "timm")  # their own files have no "model" around the tensors


def convert_weights(
    source: str | Path, target: Path, to: str = "official", *, config: str | Path | None = None, half: bool = False
) -> int:
    """Convert weights, without what else a checkpoint holds: the state of an optimizer, for example.

    Args:
        source: all that :func:`~mask2former.weights.find_weights` knows; a whole Mask2Former or MaskFormer, or a ResNet
            or Swin Transformer alone. For a folder, also a model that :func:`mask2former.load` knows.
        target: ``.pth``, ``.pkl`` or ``.safetensors``; or, with "huggingface", a folder that ``from_pretrained`` loads.
            The folders above are made.
        to: one of ``FORMATS``, see :func:`~mask2former.modeling.checkpoint_compat.convert_names`.
        config: of the source, for a folder: what ``mask2former.load`` takes as a model. None: the source's own.
        half: write floating-point weights as float16, half the size; they are float32 again when a model loads them.

    Returns:
        The number of tensors.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be downloaded, or the target cannot be written.
        ValueError: the target's form is unknown, or something has no counterpart there.
    """
    cfg = None
    if not target.suffix:
        if to != "huggingface":
            raise ValueError(f"{target}: a folder is written for Hugging Face only (huggingface); name a file.")
        cfg = model_config(source) if config is None else model_config(config, weights=source)
        source = cfg.MODEL.WEIGHTS
    file = Path(find_weights(source))
    if target.resolve() == file.resolve():
        raise ValueError(f"{target} would be overwritten by its own conversion; choose another name.")
    weights = convert_names(read_weights(str(file)), "official" if cfg else to)
    if half:
        weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    if cfg:
        return write_folder(cfg, weights, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The official release finds the place of a backbone's weights by their names' ends.
    more = {"matching_heuristics": True} if is_backbone(weights) and target.suffix != ".safetensors" else {}
    write_weights(weights, target, plain=to in _PLAIN, **more)
    return len(weights)
