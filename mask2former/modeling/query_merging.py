"""What several views of one image say, put together query by query (test-time augmentation)."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from .postprocessing import MaskGeometry, QueryPrediction
from .postprocessing.mask_iou import pairwise_iou

__all__ = ["QueryMerger"]


class QueryMerger:
    """Averages the predictions for several views of an image, of which each is added once and then forgotten.

    The first view's queries are the first segments s. The queries q of each further view are assigned to segments, one
    to one, so that the sum over pairs of ``IoU(s, q) * sum_k p_s(k) p_q(k)`` is the largest, where no pair may have an
    IoU of less than ``least_iou``. A query that is left over, has a mask and says "object" with a probability of at
    least ``least_score`` becomes a segment itself. After V views, of which those in v(s), n_s of them, see segment s::

        p_s(k) = w_s * mean of p_v(k) over v(s)    for each class k; the rest is "no object"
        w_s    = min(1, 2 n_s / (V + 1))           so that what a majority of the views sees counts in full
        m_s    = mean of m_v over v(s)             mask logits, on the grid of the first view

    With one view the prediction comes out as it went in.
    """

    def __init__(self, *, least_iou: float = 0.5, least_score: float = 0.05) -> None:
        self._least_iou = least_iou
        self._least_score = least_score
        self._views = 0

    def add(self, view: QueryPrediction, *, flipped: bool = False) -> None:
        """Take in one more view.

        Args:
            view: of the same output size as the others.
            flipped: it is of the mirror image, left and right exchanged; the first view must not be.
        """
        self._views += 1
        classes = view.class_logits.float().softmax(-1)  # (Q, K + 1)
        if self._views == 1:
            self._first_logits, self._geometry = view.class_logits, view.geometry
            self._class_sum = classes  # (S, K + 1)
            self._mask_sum = view.mask_logits.float().clone()  # (S, h, w)
            self._counts = torch.ones_like(classes[:, 0])  # (S,)
            return
        masks = self._on_first_grid(view, flipped)
        segments, queries = self._match(classes, masks)
        self._class_sum[segments] += classes[queries]
        self._mask_sum[segments] += masks[queries]
        self._counts[segments] += 1
        is_new = (1 - classes[:, -1] >= self._least_score) & (masks > 0).flatten(1).any(1)
        is_new[queries] = False
        self._class_sum = torch.cat([self._class_sum, classes[is_new]])
        self._mask_sum = torch.cat([self._mask_sum, masks[is_new]])
        self._counts = torch.cat([self._counts, torch.ones_like(classes[is_new, 0])])

    def result(self) -> QueryPrediction:
        """The average, in the first view's geometry: its queries, then those that other views added."""
        if self._views == 1:
            return QueryPrediction(self._first_logits, self._mask_sum, self._geometry)
        weights = (2 * self._counts / (self._views + 1)).clamp(max=1)
        probabilities = self._class_sum * (weights / self._counts)[:, None]
        probabilities[:, -1] += 1 - weights
        masks = self._mask_sum / self._counts[:, None, None]
        return QueryPrediction(probabilities.clamp(min=1e-30).log(), masks, self._geometry)

    def _on_first_grid(self, view: QueryPrediction, flipped: bool) -> Tensor:
        """The view's mask logits (Q, h, w) at the cells of the first view, bilinear."""
        masks = view.mask_logits.float()
        rows, columns = (
            _cell_centres(self._mask_sum.shape[axis - 2], self._geometry, axis).to(masks.device) for axis in (0, 1)
        )
        columns = 1 - columns if flipped else columns
        # From 0..1 over the image to -1..1 over the padded view.
        scale_y, scale_x = (2 * view.geometry.image_size[axis] / view.geometry.padded_size[axis] for axis in (0, 1))
        y, x = torch.meshgrid(rows * scale_y - 1, columns * scale_x - 1, indexing="ij")
        grid = torch.stack([x, y], dim=-1)[None]  # (1, h, w, 2)
        return F.grid_sample(masks[None], grid, padding_mode="border", align_corners=False)[0]

    def _match(self, classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a segment and a query that are of one object, (N,) each."""
        iou = pairwise_iou(self._mask_sum > 0, masks > 0)  # (S, Q)
        agreement = (self._class_sum / self._counts[:, None]) @ classes.T
        possible = (iou >= self._least_iou).cpu().numpy()
        benefit = np.where(possible, (iou * agreement).cpu().numpy(), 0)
        rows, columns = linear_sum_assignment(benefit, maximize=True)
        kept = possible[rows, columns]
        segments, queries = (torch.from_numpy(index[kept]).to(masks.device) for index in (rows, columns))
        return segments, queries


def _cell_centres(length: int, geometry: MaskGeometry, axis: int) -> Tensor:
    """Where the rows (axis 0) or columns (1) of a grid of masks are in the image, 0..1; in the padding 1."""
    centres = (torch.arange(length) + 0.5) / length * geometry.padded_size[axis] / geometry.image_size[axis]
    return centres.clamp(max=1)
