import pytest
import torch
from torch import Tensor, nn

from mask2former.modeling.optimize.batch_norm import fold_batch_norms


class Net(nn.Module):
    """A convolution whose output is read by its norm, and by what the argument says."""

    def __init__(self, other_reader: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm, self.other_norm = make_norm(), make_norm()
        self.other_reader = other_reader

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.norm(x)
        if self.other_reader == "function":
            return y + x.relu()
        if self.other_reader == "norm":
            return y + self.other_norm(x)
        if self.other_reader == "convolution":
            return y + self.conv(y)
        if self.other_reader == "norm again":
            return self.norm(y)
        return y


def make_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias)
    return norm


@pytest.mark.parametrize(
    ("other_reader", "num_folded"),
    [("nothing", 1), ("function", 0), ("norm", 0), ("convolution", 0), ("norm again", 0)],
)
@torch.no_grad()
def test_fold_only_where_the_norm_alone_reads_the_convolution(other_reader: str, num_folded: int) -> None:
    net = Net(other_reader).eval()
    x = torch.randn(2, 3, 8, 8)
    expected, weight = net(x), net.conv.weight
    before = weight.clone()
    assert fold_batch_norms(net, lambda: net(x)) == num_folded
    torch.testing.assert_close(net(x), expected)
    assert isinstance(net.norm, nn.Identity) == bool(num_folded)
    assert torch.equal(weight, before)  # replaced, not written to


def test_norms_without_statistics_stay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert fold_batch_norms(net, lambda: net(torch.randn(2, 3, 4, 4))) == 0
