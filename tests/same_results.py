"""Comparing the results of two programs that compute the same."""

import dataclasses

import numpy as np
import pytest

import mask2former as m2f

__all__ = ["assert_alike"]


def assert_alike(found: m2f.Result, expected: m2f.Result) -> None:
    """Equal up to the rounding of two programs that add in another order."""
    for task in expected.tasks:
        if task == "semantic":
            np.testing.assert_allclose(found.semantic.scores, expected.semantic.scores, atol=1e-4)
            assert found.semantic.names == expected.semantic.names
        elif task == "panoptic":
            assert (found.panoptic.ids != expected.panoptic.ids).mean() < 1e-3
            for ours, theirs in zip(found.panoptic.segments, expected.panoptic.segments, strict=True):
                same = {"score": pytest.approx(theirs.score, abs=1e-4), "area": pytest.approx(theirs.area, abs=10)}
                assert dataclasses.asdict(ours) == dataclasses.asdict(theirs) | same
        else:
            np.testing.assert_allclose(found.instances.scores, expected.instances.scores, atol=1e-4)
            assert found.instances.names == expected.instances.names
            assert (
                np.count_nonzero(found.instances.masks != expected.instances.masks)
                <= 1e-3 * expected.instances.masks.size
            )
