"""Query predictions of one image to semantic, instance and panoptic results (MaskFormer, Section 3.4).

Pure functions. They share the arguments ``mask_cls``, class logits (Q, K + 1) with "no object" last, ``mask_pred``,
mask logits (Q, h, w) at the network's resolution, and ``geometry``, which says how to get from there to the output.
Masks are resized a few at a time, and only those that can matter, so that no Q masks of the output's size ever exist in
float32. Native operators (:mod:`mask2former.ops.masks`) do it row by row.

The CPU decides which masks become segments and instances. ``panoptic_steps`` and ``instance_steps`` are for
:func:`~mask2former.modeling.postprocessing.one_wait.finish`, so that both together wait for a GPU once.
"""

from .connected_parts import split_disconnected
from .instance import instance_inference, instance_steps, masks_to_boxes, most_probable_pairs
from .panoptic import panoptic_inference, panoptic_steps
from .prediction import MaskGeometry, QueryPrediction
from .semantic import ClassScores, lazy_semantic_inference, semantic_inference

__all__ = [
    "ClassScores",
    "MaskGeometry",
    "QueryPrediction",
    "instance_inference",
    "instance_steps",
    "lazy_semantic_inference",
    "masks_to_boxes",
    "most_probable_pairs",
    "panoptic_inference",
    "panoptic_steps",
    "semantic_inference",
    "split_disconnected",
]
