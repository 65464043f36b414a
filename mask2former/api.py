"""A trained model in one line, and what it finds in a picture in the next::

import mask2former as m2f

model = m2f.load("coco/panoptic/R50")
result = model.predict("street.jpg", task="instance", threshold=0.7)
result.instances.names, result.instances.masks
result.save("out/")
"""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from mask2former.inference import InstanceResult, PanopticResult, PanopticSegment, Result, Segmenter, SemanticResult
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


def load(
    model: str | Path | CfgNode,
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    opts: Sequence[str] = (),
) -> Segmenter:
    """Load a trained model.

    Args:
        model: one of

            - a name of the model zoo, "<data set>/<task>/<backbone>" such as "coco/panoptic/R50", see
              :func:`list_models`; its checkpoint is downloaded once;
            - a configuration, a ``.yaml`` file or a ``CfgNode``, whose ``MODEL.WEIGHTS`` or ``weights`` is a trained
              model;
            - the output folder of a training, or a checkpoint in it: ``config.yaml`` lies beside it; of a folder,
              ``model_best.pth`` is taken, or the last checkpoint;
            - a checkpoint of the model zoo, by its file name;
            - a folder of Hugging Face's ``save_pretrained``, or the "<owner>/<name>" of a repository there.
        weights: a checkpoint in any form that is understood; None takes the one that goes with ``model``.
        device: "cpu", "cuda" or "cuda:1"; None takes the GPU if there is one.
        opts: ``KEY VALUE`` pairs that change the configuration, as on the command line.

    Returns:
        The model, ready to predict.

    Raises:
        FileNotFoundError: something named here is not there.
        OSError: something cannot be downloaded.
        ValueError: the weights are not those of a whole model of this configuration.
    """
    options = [*(["MODEL.DEVICE", device] if device else []), *opts]
    if not isinstance(model, CfgNode):
        return Segmenter(model_config(model, weights, options))
    cfg = model.clone()
    cfg.defrost()
    cfg.merge_from_list([*([] if weights is None else ["MODEL.WEIGHTS", str(weights)]), *options])
    cfg.freeze()
    return Segmenter(cfg)
