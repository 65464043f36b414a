"""A network whose weights are float16, with the casts written out, so that every export format has them."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.decoder_input import select_decoder_input
from ..modeling.mask_former import MaskFormer

__all__ = ["HalfPrecisionNetwork"]


class HalfPrecisionNetwork(nn.Module):
    """Backbone and Transformer decoder in float16, the pixel decoder between them in float32.

    The same division as under autocast: values in the pixel decoder overflow float16.
    """

    def __init__(self, model: MaskFormer) -> None:
        """
        Args:
            model: is copied; what comes in are its normalised, padded images.
        """
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone).half()
        head: Any = copy.deepcopy(model.sem_seg_head)
        # Any: what a pixel decoder has is ``forward_features``, which nn.Module does not know.
        self.pixel_decoder: Any = head.pixel_decoder
        self.predictor: nn.Module = head.predictor.half()
        self.transformer_in_feature: str = head.transformer_in_feature
        for module in self.predictor.modules():
            if not list(module.parameters()):
                # Position encodings are computed in float32, or kept in it by a model that was trained, and would make
                # float32 of all that they are added to.
                module.register_forward_hook(_to_half)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (N, C, H', W') float32 to class and mask logits, float32."""
        features = {name: x.float() for name, x in self.backbone(images.half()).items()}
        decoded = self.pixel_decoder.forward_features(features)
        attended = select_decoder_input(self.transformer_in_feature, features, decoded)
        attended = attended.half() if isinstance(attended, Tensor) else [x.half() for x in attended]
        outputs = self.predictor(attended, decoded[0].half())
        return outputs["pred_logits"].float(), outputs["pred_masks"].float()


def _to_half(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return output.half() if isinstance(output, Tensor) and output.dtype == torch.float32 else output
