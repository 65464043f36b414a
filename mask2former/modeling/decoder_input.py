"""What the Transformer decoder attends to, as ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE`` says."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

__all__ = ["decoder_in_channels", "select_decoder_input"]


def decoder_in_channels(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> int:
    """Channels of what :func:`select_decoder_input` gives, for a backbone's ``input_shape``.

    Raises:
        ValueError: if neither the pixel decoder nor the backbone has a feature of that name.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
    head = cfg.MODEL.SEM_SEG_HEAD
    of_pixel_decoder = {
        "multi_scale_pixel_decoder": head.CONVS_DIM,
        "transformer_encoder": head.CONVS_DIM,
        "pixel_embedding": head.MASK_DIM,
    }
    if name in of_pixel_decoder:
        return of_pixel_decoder[name]
    if name not in input_shape:
        raise ValueError(
            f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {name!r}; expected one of the pixel decoder's "
            f"{list(of_pixel_decoder)} or one of the backbone's {list(input_shape)}."
        )
    return input_shape[name].channels


def select_decoder_input(
    name: str, features: dict[str, Tensor], decoded: tuple[Tensor, Tensor | None, Sequence[Tensor]]
) -> Tensor | Sequence[Tensor]:
    """Pick one of the features.

    Args:
        name: "multi_scale_pixel_decoder" is the pixel decoder's pyramid, "transformer_encoder" its coarsest map as its
            encoder refined it, "pixel_embedding" the per-pixel embedding; others are the backbone's features.
        features: the backbone's, by name.
        decoded: what the pixel decoder's ``forward_features`` gave.

    Raises:
        ValueError: if the pixel decoder has no encoder.
    """
    mask_features, encoded, pyramid = decoded
    if name == "multi_scale_pixel_decoder":
        return pyramid
    if name == "pixel_embedding":
        return mask_features
    if name != "transformer_encoder":
        return features[name]
    if encoded is None:
        raise ValueError(
            "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'transformer_encoder', but the pixel decoder has no "
            "Transformer encoder. Set MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME to 'TransformerEncoderPixelDecoder', or "
            "name a backbone feature such as 'res5'."
        )
    return encoded
