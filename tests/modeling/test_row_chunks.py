import torch
from torch import Tensor

from mask2former.modeling.row_chunks import in_row_chunks


class Square:
    """Remembers how many rows it was given each time."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(x[..., 0].numel())
        return x.square()


def test_inference_takes_a_few_rows_at_a_time() -> None:
    x, function = torch.randn(3, 1000, 2, 4).transpose(1, 2), Square()
    with torch.no_grad():
        assert torch.equal(in_row_chunks(function, x), x.square())
    assert function.rows == [2048, 2048, 1904]


def test_training_takes_all_rows_at_once() -> None:
    x, function = torch.randn(3, 1000, 4, requires_grad=True), Square()
    in_row_chunks(function, x).sum().backward()
    assert function.rows == [3000]
    assert torch.equal(x.grad, 2 * x.detach())


def test_few_rows_and_none() -> None:
    function = Square()
    with torch.no_grad():
        for rows in (2048, 0):
            assert in_row_chunks(function, torch.ones(1, rows, 4)).shape == (1, rows, 4)
    assert function.rows == [2048, 0]


def test_a_recorded_graph_has_all_rows_at_once() -> None:
    function = Square()
    traced = torch.jit.trace(lambda x: in_row_chunks(function, x), torch.randn(1, 3000, 4), check_trace=False)
    assert function.rows == [3000]
    x = torch.randn(1, 5000, 4)
    assert torch.equal(traced(x), x.square())
