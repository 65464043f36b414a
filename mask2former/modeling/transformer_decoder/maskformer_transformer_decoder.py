"""MaskFormer's Transformer decoder: DETR's, on one feature map (Cheng et al., NeurIPS 2021, Section 3.3)."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ..build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from ..position_encoding import PositionEmbeddingSine
from ..query_masks import predict_masks
from ..transformer import TransformerDecoder, TransformerEncoder
from .layers import MLP, input_projection

__all__ = [
    "MLP",
    # Which is where the official release has them.
    "TRANSFORMER_DECODER_REGISTRY",
    "StandardTransformerDecoder",
    "build_transformer_decoder",
]


@TRANSFORMER_DECODER_REGISTRY.register()
class StandardTransformerDecoder(nn.Module):
    """Queries to class logits and mask logits; all of them read all pixels of one map in every layer."""

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dropout: float,
        dim_feedforward: int,
        enc_layers: int,
        dec_layers: int,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        """
        Args:
            in_channels: channels of the map that queries read.
            mask_classification: predict classes too; False gives masks only.
            num_classes: K, without "no object".
            hidden_dim: C.
            num_queries: Q.
            nheads: attention heads.
            dropout: 0.1 in the paper.
            dim_feedforward: hidden width of the feed-forward networks.
            enc_layers: self-attention layers on the map; 0 in the paper, whose encoder is in the pixel decoder.
            dec_layers: decoder layers, and predictions; 6 in the paper.
            pre_norm: LayerNorm before each sub-layer, not after.
            deep_supervision: in training, also return the predictions before the last.
            mask_dim: channels of the per-pixel embedding.
            enforce_input_project: project the map even where it has ``hidden_dim`` channels.
        """
        super().__init__()
        self.mask_classification = mask_classification
        self.deep_supervision = deep_supervision
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2)
        self.input_proj = input_projection(in_channels, hidden_dim, enforce_input_project)
        layer: dict[str, Any] = {
            "embed_dim": hidden_dim,
            "num_heads": nheads,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "pre_norm": pre_norm,
        }
        self.transformer = nn.ModuleDict(
            {"encoder": TransformerEncoder(enc_layers, **layer), "decoder": TransformerDecoder(dec_layers, **layer)}
        )
        # Positions of the queries; what they hold starts from zero.
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        if mask_classification:
            self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        """Translate a configuration to the arguments of ``__init__``.

        Raises:
            ValueError: if ``DEC_LAYERS`` is below 1, or ``TRANSFORMER_IN_FEATURE`` names several maps.
        """
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.DEC_LAYERS < 1:
            raise ValueError(
                "MODEL.MASK_FORMER.DEC_LAYERS is the number of StandardTransformerDecoder's layers, of which there "
                f"must be one at least (6 in the paper); it is {mask_former.DEC_LAYERS}."
            )
        if mask_former.TRANSFORMER_IN_FEATURE == "multi_scale_pixel_decoder":
            raise ValueError(
                "StandardTransformerDecoder reads one map, but MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is "
                "'multi_scale_pixel_decoder', which is several. Set it to 'transformer_encoder', 'pixel_embedding' or "
                "a backbone feature such as 'res5', or choose another MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME."
            )
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dropout": mask_former.DROPOUT if mask_former.DECODER_DROPOUT is None else mask_former.DECODER_DROPOUT,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "enc_layers": mask_former.ENC_LAYERS,
            "dec_layers": mask_former.DEC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
        }

    def forward(self, x: Tensor, mask_features: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Predict Q segments.

        Args:
            x: the map that queries read, (N, in_channels, H', W').
            mask_features: per-pixel embedding (N, mask_dim, H, W).
            mask: not read; the official release's heads pass it.

        Returns:
            ``pred_logits`` (N, Q, K + 1), the last class being "no object", and ``pred_masks`` (N, Q, H, W) logits, in
            training :class:`~mask2former.modeling.query_masks.QueryMasks`. In training with deep supervision also
            ``aux_outputs``: such dicts from each layer but the last.
        """
        pos = self.pe_layer(x.shape[-2], x.shape[-1], x.device).flatten(2).transpose(1, 2)  # (1, H'W', C)
        memory = self.input_proj(x).flatten(2).transpose(1, 2)  # (N, H'W', C)
        memory = self.transformer["encoder"](memory, pos)
        query_pos = self.query_embed.weight[None]  # (1, Q, C)
        queries = torch.zeros_like(query_pos).expand(x.shape[0], -1, -1)  # (N, Q, C)
        *intermediate, last = self.transformer["decoder"](queries, query_pos, memory, pos)

        output: dict[str, Any] = self._predict(last, mask_features)
        if self.training and self.deep_supervision:
            output["aux_outputs"] = [self._predict(queries, mask_features) for queries in intermediate]
        return output

    def _predict(self, queries: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        """Normalised queries (N, Q, C) to one prediction."""
        masks = predict_masks(self.mask_embed(queries), mask_features, training=self.training)
        if not self.mask_classification:
            return {"pred_masks": masks}
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}
