"""A trained model in one line, and what it finds in a picture in the next.

Example::

    import mask2former as m2f

    model = m2f.load("coco/panoptic/R50")
    result = model.predict("street.jpg", task="instance", threshold=0.7)
    result.instances.names, result.instances.masks
    result.save("out/")
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from detectron2.config import CfgNode

from mask2former.engine.setup import finish_config
from mask2former.export import is_exported
from mask2former.home import expand_home
from mask2former.inference import InstanceResult, PanopticResult, PanopticSegment, Result, Segmenter, SemanticResult
from mask2former.inference.exported import open_exported
from mask2former.inference.loading import model_config
from mask2former.weights import list_models

__all__ = [
    "InstanceResult",
    "PanopticResult",
    "PanopticSegment",
    "Result",
    "Segmenter",
    "SemanticResult",
    "list_models",
    "load",
]

# Models of your own data mostly share the names of their data sets, whose classes the latest one puts into a catalogue.
_LOADING = RLock()
_OPTIMIZATIONS = {
    "bfloat16": ["MODEL.INFERENCE.DTYPE", "bfloat16"],
    "compile": ["MODEL.INFERENCE.COMPILE", "default"],
    "cuda_graphs": ["MODEL.INFERENCE.COMPILE", "reduce-overhead"],
    "keep_memory": ["MODEL.INFERENCE.KEEP_MEMORY", "True"],
}


def load(
    model: str | Path | CfgNode,
    weights: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    optimize: bool | str | Collection[str] | None = None,
    opts: Sequence[str] = (),
) -> Segmenter:
    """Load a trained model. Threads may do so at the same time, but wait for each other.

    Args:
        model: one of

            - a name of the model zoo, "<data set>/<task>/<backbone>" such as "coco/panoptic/R50", see
              :func:`list_models`; its checkpoint is downloaded once;
            - a configuration, a ``.yaml`` file or a ``CfgNode``, whose ``MODEL.WEIGHTS`` or ``weights`` is a trained
              model;
            - the output folder of a training, or a checkpoint in it: ``config.yaml`` lies beside it; of a folder,
              ``model_best.pth`` is taken, or the last checkpoint;
            - a checkpoint of the model zoo, by its file name;
            - a folder of Hugging Face's ``save_pretrained``, or the "<owner>/<name>" of a repository there;
            - a file of ``mask2former export``: ONNX, TorchScript, ``torch.export`` or AOTInductor. All but ONNX are
              programs, so load only those that you trust.
        weights: a checkpoint in any form that is understood; None takes the one that goes with ``model``.
        device: "cpu", "cuda" or "cuda:1", or a ``torch.device``; None takes the GPU if there is one, and for an
            exported file what it was made for.
        optimize: True gives the same results sooner, and False leaves every layer as it was built; None is True on
            CPUs and NVIDIA's GPUs, for models of this package's classes, where the configuration does not say. Also
            one or several of "bfloat16" (results differ a little), "compile", "cuda_graphs" (of what is compiled, for
            pictures of few sizes) and "keep_memory" (this process never returns freed memory to the system), as
            ``MODEL.INFERENCE`` in the configuration describes them.
        opts: ``KEY VALUE`` pairs that change the configuration, as on the command line.

    Returns:
        The model, ready to predict.

    Raises:
        FileNotFoundError: something named here is not there.
        OSError: something cannot be downloaded.
        ValueError: the weights are not those of a whole model of this configuration, ``optimize`` is unknown, or an
            exported file is given what it cannot have: weights, ``optimize`` or ``opts``.
    """
    device_name = None if device is None else str(device)
    with _LOADING:
        if isinstance(model, str | Path) and is_exported(path := expand_home(model)):
            _refuse(path, weights=weights, optimize=optimize, opts=opts)
            return open_exported(path, device_name)
        device_key = [] if device_name is None else ["MODEL.DEVICE", device_name]
        options = [*device_key, *_optimization_keys(optimize), *opts]
        if not isinstance(model, CfgNode):
            return Segmenter(model_config(model, weights, options))
        weights_key = [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
        cfg = model.clone()
        cfg.defrost()
        return Segmenter(finish_config(cfg, [*weights_key, *options]))


def _refuse(path: Path, **arguments: Any) -> None:
    """Complain about what would change a model that was exported."""
    for name, value in arguments.items():
        if value:
            raise ValueError(
                f"{path} is an exported file, whose network and configuration are fixed, so {name}={value!r} has no "
                f"place there; leave {name} out, or load the model that it was made of."
            )


def _optimization_keys(optimize: bool | str | Collection[str] | None) -> list[str]:
    """``KEY VALUE`` pairs for an ``optimize`` of :func:`load`."""
    if optimize is None:
        return []
    if isinstance(optimize, bool):
        return ["MODEL.INFERENCE.OPTIMIZE", str(optimize)]
    names = [optimize] if isinstance(optimize, str) else list(optimize)
    unknown = [name for name in names if name not in _OPTIMIZATIONS]
    if unknown:
        raise ValueError(f"optimize is {unknown[0]!r}, expected True, False or some of {', '.join(_OPTIMIZATIONS)}.")
    return ["MODEL.INFERENCE.OPTIMIZE", "True", *(word for name in names for word in _OPTIMIZATIONS[name])]
