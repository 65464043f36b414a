"""One step of training gives the losses and gradients of transformers' Mask2Former, an implementation of its own."""

from typing import Any

import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from mask2former.modeling.checkpoint_compat import convert_checkpoint
from tests.huggingface_models import our_model, randomise, their_model

SIZE = (96, 128)
TRAINING = {
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 200,
    # Two channels in each group of a norm: with one, a bias before it has no gradient.
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SWIN.DROP_PATH_RATE": 0.0,
    "MODEL.PIXEL_MEAN": [100.0, 110.0, 120.0],
    "MODEL.PIXEL_STD": [58.0, 57.0, 56.0],
}


def _targets(count: int) -> Instances:
    """Boxes and noise, of some of the five classes."""
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    for number, mask in enumerate(masks):
        top, left = 8 * number, 10 * number
        mask[top : top + 40, left : left + 50] = True
        mask &= torch.rand(SIZE) > 0.1
    return Instances(SIZE, gt_classes=torch.randint(0, 5, (count,)), gt_masks=BitMasks(masks))


def _seed_points(model: Any) -> None:
    """Seed where the loss begins: their decoder draws numbers for skipping layers, also where it never skips one."""

    def seed(*_: Any) -> None:
        torch.manual_seed(3)

    model.criterion.register_forward_pre_hook(seed)


def _our_step(model: Any, images: Tensor, targets: list[Instances]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weighted losses, and gradients of their sum."""
    _seed_points(model)
    losses = model([{"image": image, "instances": t} for image, t in zip(images, targets, strict=True)])
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _their_step(
    model: Any, images: Tensor, targets: list[Instances], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same of theirs, with their names of parameters."""
    recorded: dict[str, Tensor] = {}
    get_loss = model.get_loss

    def record(losses: dict[str, Tensor]) -> Tensor:
        recorded.update({name.replace("cross_entropy", "ce"): loss for name, loss in losses.items()})
        return get_loss(losses)

    monkeypatch.setattr(model, "get_loss", record)
    _seed_points(model)
    output = model(
        pixel_values=images,
        mask_labels=[t.gt_masks.tensor.float() for t in targets],
        class_labels=[t.gt_classes for t in targets],
    )
    output.loss.backward()
    return recorded, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("counts", [(3, 2), (9, 0)])  # of targets; there are seven queries
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_losses_and_gradients(backbone: str, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # Of one seed in eight, rounding decides a ReLU or what a query may look at, which changes gradients by up to 5e-3;
    # of this one not with PyTorch 2.14 or 2.15.
    torch.manual_seed(3)
    theirs = their_model(
        backbone, class_weight=2.0, mask_weight=5.0, dice_weight=5.0, train_num_points=200, feature_size=64
    )
    randomise(theirs)
    ours = our_model(backbone, [part for pair in TRAINING.items() for part in pair])
    ours.load_state_dict(convert_checkpoint(theirs.state_dict(), ours.state_dict()), strict=True)
    ours.train()
    theirs.train()
    # Their ResNet trains its batch norms, where Detectron2's are frozen, and their Swin drops paths.
    theirs.model.pixel_level_module.encoder.eval()
    images = torch.randint(0, 256, (2, 3, *SIZE)).float()
    targets = [_targets(count) for count in counts]

    losses, gradients = _our_step(ours, images, targets)
    normalised = (images - ours.pixel_mean) / ours.pixel_std
    expected, their_gradients = _their_step(theirs, normalised, targets, monkeypatch)

    assert losses.keys() == expected.keys()
    assert len(losses) == 3 * 5
    for name, loss in losses.items():
        torch.testing.assert_close(
            loss, expected[name], rtol=2e-6, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    converted = convert_checkpoint(their_gradients, ours.state_dict())
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, gradient in gradients.items():
        difference, size = (gradient - converted[name]).norm(), converted[name].norm()
        assert 0 < size < torch.inf
        assert difference < 1e-4 * size, f"{name}: {difference} of {size}"
