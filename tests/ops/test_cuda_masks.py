"""The CUDA operators on masks on a GPU: ``make test-gpu``."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from mask_cases import (
    GEOMETRIES,
    SEVERAL_BLOCKS,
    Size,
    check_binary_masks,
    check_competition,
    check_extreme_logits,
    check_resized_masks,
    flat,
    make_masks,
)
from torch import Tensor

from mask2former.modeling.postprocessing import ClassScores, MaskGeometry, semantic_inference
from mask2former.ops.masks import (
    Resizing,
    binarise_masks,
    compete_masks,
    has_native_masks,
    make_resizing,
    resize_masks,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.usefixtures("built_for_gpu"),
]

REAL = ((160, 160), (640, 640), (640, 640), (640, 640))
geometries = pytest.mark.parametrize("sizes", [*GEOMETRIES, *SEVERAL_BLOCKS])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@pytest.fixture
def _waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(resizing: Resizing) -> Resizing:
    rows, columns = (type(axis)(*(x.cuda() for x in axis)) for axis in resizing)
    return Resizing(rows, columns)


def resize(masks: Tensor, resizing: Resizing, rows: range, *, sigmoid: bool) -> Tensor:
    return resize_masks(masks.cuda(), on_gpu(resizing), rows, sigmoid=sigmoid)


def binarise(masks: Tensor, resizing: Resizing) -> tuple[Tensor, ...]:
    return binarise_masks(masks.cuda(), on_gpu(resizing))


def compete(masks: Tensor, scores: Tensor, resizing: Resizing) -> tuple[Tensor, ...]:
    return compete_masks(masks.cuda(), scores.cuda(), on_gpu(resizing))


@geometries
@dtypes
def test_resized_masks(sizes: Sequence[Size], dtype: torch.dtype) -> None:
    check_resized_masks(resize, make_masks(sizes[0]).to(dtype), sizes)


@geometries
@dtypes
def test_binary_masks(sizes: Sequence[Size], dtype: torch.dtype) -> None:
    check_binary_masks(binarise, make_masks(sizes[0]).to(dtype), sizes)


@geometries
@dtypes
def test_competition(sizes: Sequence[Size], dtype: torch.dtype) -> None:
    masks = make_masks(sizes[0]).to(dtype)
    check_competition(compete, masks, torch.linspace(0.5, 0.9, 7), sizes)
    check_competition(compete, masks, torch.tensor([0.0, 0.5, 0.7, -1.0, torch.nan, 0.6, 0.0]), sizes)


@pytest.mark.parametrize("wrong", [1e4, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("sizes", [GEOMETRIES[1], GEOMETRIES[6], [(8, 10)] * 4])
def test_extreme_logits_are_as_on_the_cpu(sizes: Sequence[Size], wrong: float) -> None:
    check_extreme_logits(binarise, compete, make_masks(sizes[0]), sizes, wrong)


def test_several_runs_are_equal() -> None:
    masks, scores, resizing = make_masks(REAL[0], count=100), torch.rand(100), make_resizing(*REAL)
    first = [*binarise(masks, resizing), *compete(masks, scores, resizing)]
    for _ in range(5):
        again = [*binarise(masks, resizing), *compete(masks, scores, resizing)]
        assert all(map(torch.equal, again, first))


@pytest.mark.usefixtures("_waiting_is_an_error")
def test_nothing_waits_for_the_gpu() -> None:
    device = torch.device("cuda:0")
    masks, scores = make_masks(REAL[0]).to(device), torch.rand(7, device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    resizing = make_resizing(*REAL[:3], (500, 333), device)  # a size that no other test keeps
    assert has_native_masks(masks, scores)
    resize_masks(masks, resizing, range(8), sigmoid=True)
    binarise_masks(masks, resizing)
    compete_masks(masks, scores, resizing)


def test_what_is_kept_serves_outside_of_inference_mode() -> None:
    device = torch.device("cuda:0")
    with torch.inference_mode():
        resizing = make_resizing((8, 10), (16, 20), (16, 20), (16, 20), device)
    assert not any(x.is_inference() for x in flat(resizing))
    assert make_resizing((8, 10), (16, 20), (16, 20), (16, 20), device).rows is resizing.rows
    with torch.cuda.stream(torch.cuda.Stream()):
        assert make_resizing((8, 10), (16, 20), (16, 20), (16, 20), device).rows is not resizing.rows


@pytest.mark.usefixtures("_waiting_is_an_error")
@dtypes
@pytest.mark.parametrize("resize_first", [True, False])
def test_class_scores_are_as_on_the_cpu(resize_first: bool, dtype: torch.dtype) -> None:
    geometry = MaskGeometry((640, 640), (600, 620), (427, 500))
    logits, masks = 4 * torch.randn(50, 20), (4 * torch.randn(50, 160, 160)).to(dtype)
    expected = ClassScores(logits, masks, geometry, resize_first).full()
    logits, masks = logits.cuda(), masks.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    scores = ClassScores(logits, masks, geometry, resize_first)
    classes, full = scores.argmax(0), scores.full()
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(full.cpu(), expected, rtol=0, atol=1e-4)
    # But for pixels of which two classes are equally sure.
    torch.testing.assert_close(expected.gather(0, classes[None].cpu())[0], expected.amax(0), rtol=0, atol=1e-4)
    moved = scores.to("cpu")
    assert (type(moved), moved.device.type) == (ClassScores, "cpu")
    assert torch.equal(moved.argmax(0), classes.cpu())
    assert torch.equal(moved.full(), expected)


def test_class_scores_in_a_cuda_graph() -> None:
    """Without the native operators: what they need cannot be copied to the GPU meanwhile."""
    geometry = MaskGeometry(padded_size=(32, 40), image_size=(30, 33), output_size=(61, 45))
    classes, masks = torch.randn(7, 4).cuda(), make_masks((8, 10)).cuda()
    expected = semantic_inference(classes, masks, geometry)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = semantic_inference(classes, masks, geometry)
    graph.replay()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_devices_do_not_mix() -> None:
    masks, resizing = make_masks((8, 10)).cuda(), make_resizing(*GEOMETRIES[0])
    with pytest.raises(RuntimeError, match="on the masks' device"):
        binarise_masks(masks, resizing)
    with pytest.raises(RuntimeError, match="scores of at least one mask on its device"):
        compete_masks(masks, torch.rand(7), on_gpu(resizing))


@dtypes
def test_opcheck(dtype: torch.dtype) -> None:
    masks, axes = make_masks((8, 10)).cuda().to(dtype), flat(on_gpu(make_resizing(*GEOMETRIES[0])))
    operators = torch.ops.mask2former
    torch.library.opcheck(operators.resize_masks.default, (masks, *axes, 2, 9, True))
    torch.library.opcheck(operators.binarise_masks.default, (masks, *axes))
    torch.library.opcheck(operators.compete_masks.default, (masks, torch.rand(len(masks)).cuda(), *axes))
