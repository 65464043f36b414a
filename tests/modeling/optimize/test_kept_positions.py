import torch
from torch import nn

from mask2former.modeling.optimize.kept_positions import KeptPositionEmbedding, keep_position_encodings
from mask2former.modeling.position_encoding import PositionEmbeddingSine


def test_kept_encodings_are_those_of_the_module() -> None:
    encode = PositionEmbeddingSine(6)
    kept = KeptPositionEmbedding(encode)
    first = kept(3, 5)
    assert torch.equal(first, encode(3, 5))
    assert kept(3, 5) is first
    assert torch.equal(kept(5, 3), encode(5, 3))
    assert kept(3, 5, "meta").is_meta
    assert kept(3, 5) is first


def test_few_are_kept() -> None:
    kept = KeptPositionEmbedding(PositionEmbeddingSine(2))
    for height in range(1, 40):
        assert torch.equal(kept(height, 1), kept.encode(height, 1))
        assert len(kept._kept) <= 16


def test_what_inference_has_kept_may_be_trained_with() -> None:
    kept = KeptPositionEmbedding(PositionEmbeddingSine(2))
    with torch.inference_mode():
        kept(3, 5)
    weight = torch.ones(1, requires_grad=True)
    (kept(3, 5) * weight).sum().backward()
    assert weight.grad is not None


def test_every_module_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(PositionEmbeddingSine(2)))
    for dtype in (torch.float32, torch.bfloat16):
        keep_position_encodings(model, dtype)
        assert isinstance(model[1][0], KeptPositionEmbedding)
        assert isinstance(model[1][0].encode, PositionEmbeddingSine)
        assert model[1][0](3, 5).dtype == dtype


def test_nothing_is_kept_of_a_recording() -> None:
    kept = KeptPositionEmbedding(PositionEmbeddingSine(2))

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = kept

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.kept(x.shape[-2], x.shape[-1])

    exported = torch.export.export(Module(), (torch.zeros(1, 4, 3, 5),)).module()
    assert not kept._kept
    assert torch.equal(exported(torch.zeros(1, 4, 3, 5)), kept(3, 5))
