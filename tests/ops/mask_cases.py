"""What operators on masks are tested with, and against what: PyTorch's resizing in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.ops.masks import Resizing, binarise_masks, compete_masks, make_resizing

__all__ = [
    "GEOMETRIES",
    "SEVERAL_BLOCKS",
    "Size",
    "check_binary_masks",
    "check_competition",
    "check_extreme_logits",
    "check_resized_masks",
    "flat",
    "make_masks",
]

Size = tuple[int, int]
GEOMETRIES = [  # mask, padded image, image, output
    ((8, 10), (32, 40), (30, 33), (30, 33)),
    ((8, 10), (32, 40), (30, 33), (61, 45)),  # on to a larger output
    ((8, 10), (32, 40), (30, 33), (13, 7)),  # and to a smaller one, narrower than a vector
    ((8, 10), (32, 40), (30, 40), (20, 28)),  # three places of a mask for one of the output
    ((8, 10), (8, 10), (8, 10), (8, 10)),  # nothing to do
    ((16, 70), (16, 70), (16, 70), (4, 20)),
    ((33, 20), (7, 5), (6, 5), (40, 40)),  # down and up
    ((1, 1), (4, 4), (3, 2), (5, 9)),
    ((2, 50), (8, 200), (1, 199), (1, 1)),
]


# For several blocks of a GPU's threads. Of make_masks they have no pixel that rounding decides.
SEVERAL_BLOCKS = [((20, 26), (80, 104), (80, 100), (133, 200)), ((25, 34), (100, 136), (100, 133), (187, 241))]


def make_masks(size: Size, count: int = 7) -> Tensor:
    """Smooth, some of them empty, none of them zero anywhere."""
    coarse = 3 * torch.randn(count, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    masks = F.interpolate(coarse, size=size, mode="bicubic")[:, 0] - 0.5
    masks[1] = -4.0
    return masks


def flat(resizing: Resizing) -> tuple[Tensor, ...]:
    """As the operators take it."""
    return (*resizing.rows, *resizing.columns)


def _resize(masks: Tensor, sizes: Sequence[Size]) -> Tensor:
    """In float64."""
    _, padded, (height, width), output = sizes
    masks = F.interpolate(masks.double()[None], size=padded, mode="bilinear", align_corners=False)
    return F.interpolate(masks[:, :, :height, :width], size=output, mode="bilinear", align_corners=False)[0]


def check_resized_masks(resize: Callable[..., Tensor], masks: Tensor, sizes: Sequence[Size]) -> None:
    """``resize`` takes masks, a resizing, rows, and whether probabilities are wanted."""
    resizing = make_resizing(*sizes)
    expected = _resize(masks, sizes)
    height = sizes[-1][0]
    assert resizing.size == sizes[-1]
    torch.testing.assert_close(
        resize(masks, resizing, range(height), sigmoid=False).double().cpu(), expected, rtol=0, atol=2e-5
    )
    rows = range(height // 3, height // 3 + (height + 1) // 2)
    actual = resize(masks, resizing, rows, sigmoid=True).double().cpu()
    torch.testing.assert_close(actual, expected[:, rows.start : rows.stop].sigmoid(), rtol=0, atol=1e-5)


def check_binary_masks(binarise: Callable[..., Sequence[Tensor]], masks: Tensor, sizes: Sequence[Size]) -> None:
    """``binarise`` takes masks and a resizing."""
    logits = _resize(masks, sizes)
    assert logits.abs().min() > 1e-6, "rounding cannot decide"
    wanted = logits > 0
    binary, areas, probabilities, boxes = (x.cpu() for x in binarise(masks, make_resizing(*sizes)))
    assert (areas.dtype, probabilities.dtype, boxes.dtype) == (torch.int64, torch.float32, torch.float32)
    assert torch.equal(binary, wanted)
    assert areas.tolist() == wanted.flatten(1).sum(1).tolist()
    for index, mask in enumerate(wanted):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if not len(rows):
            assert probabilities[index] == 0
            assert boxes[index].tolist() == [0, 0, 0, 0]
            continue
        assert probabilities[index] == pytest.approx(logits[index].sigmoid()[mask].mean().item(), rel=1e-5)
        assert boxes[index].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def check_competition(
    compete: Callable[..., Sequence[Tensor]], masks: Tensor, scores: Tensor, sizes: Sequence[Size]
) -> None:
    """``compete`` takes masks, scores and a resizing. Masks whose score is not positive take no part."""
    logits = _resize(masks, sizes)
    takes_part = (scores > 0)[:, None, None]
    strengths = torch.where(takes_part, scores.double()[:, None, None] * logits.sigmoid(), -1)
    best = strengths.topk(2, dim=0).values
    assert (best[0] - best[1]).min() > 1e-7, "rounding cannot decide"
    wanted, own = strengths.argmax(0), (logits >= 0) & takes_part
    winner, inside, areas = (x.cpu() for x in compete(masks, scores, make_resizing(*sizes)))
    assert (winner.dtype, areas.dtype) == (torch.int32, torch.int64)
    assert torch.equal(winner.long(), wanted)
    assert torch.equal(inside, own.gather(0, wanted[None])[0])
    wins = F.one_hot(wanted, len(masks)).permute(2, 0, 1).bool()
    expected = torch.stack([own, wins, own & wins]).flatten(2).sum(2)
    assert torch.equal(areas, expected)


def check_extreme_logits(
    binarise: Callable[..., Sequence[Tensor]],
    compete: Callable[..., Sequence[Tensor]],
    masks: Tensor,
    sizes: Sequence[Size],
    wrong: float,
) -> None:
    """Some of the masks' logits are ``wrong``; results are those of the CPU's operators, which have to be built."""
    resizing, scores = make_resizing(*sizes), torch.linspace(0.5, 0.9, len(masks))
    masks[0, 2:4, 3:5] = masks[2, 1, 1] = masks[:, 5, 6] = wrong
    pairs = [
        (binarise(masks, resizing), binarise_masks(masks, resizing)),
        (compete(masks, scores, resizing), compete_masks(masks, scores, resizing)),
    ]
    for found, wanted in pairs:
        for result, exact in zip(found, wanted, strict=True):
            torch.testing.assert_close(result.cpu(), exact, rtol=1e-5, atol=0, equal_nan=True)
