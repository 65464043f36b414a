"""The paper's Transformer decoder with masked attention (Section 3.2)."""

from collections.abc import Sequence
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..build import TRANSFORMER_DECODER_REGISTRY
from ..mixed_sizes import pad_tokens, valid_tokens
from ..position_encoding import PositionEmbeddingSine
from .layers import MLP, CrossAttentionLayer, FFNLayer, SelfAttentionLayer

__all__ = ["MultiScaleMaskedTransformerDecoder"]


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Queries to class logits and mask logits, one scale of the pyramid a layer, in turn (Section 3.2.2)."""

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
        dim_feedforward: int,
        dec_layers: int,
        dropout: float,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
        num_feature_levels: int,
        deep_supervision: bool,
    ) -> None:
        """
        Args:
            in_channels: channels of the pyramid.
            mask_classification: predict classes too; False gives masks only.
            num_classes: K, without "no object".
            hidden_dim: C.
            num_queries: Q.
            nheads: attention heads.
            dim_feedforward: hidden width of the feed-forward networks.
            dec_layers: decoder layers; 9 in the paper. There is one prediction more than layers.
            dropout: 0 in the paper.
            pre_norm: LayerNorm before each sub-layer, not after.
            mask_dim: channels of the per-pixel embedding.
            enforce_input_project: project the pyramid even where it has ``hidden_dim`` channels.
            num_feature_levels: scales L of the pyramid.
            deep_supervision: in training, also return the predictions before the last.
        """
        super().__init__()
        self.mask_classification = mask_classification
        self.deep_supervision = deep_supervision
        self.num_feature_levels = num_feature_levels
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2)

        # Three lists, not one list of layers: the checkpoints' names.
        attention = (hidden_dim, nheads, dropout, pre_norm)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(*attention) for _ in range(dec_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(*attention) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, dropout, pre_norm) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)

        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)  # the queries' positions
        self.level_embed = nn.Embedding(num_feature_levels, hidden_dim)
        self.input_proj = nn.ModuleList(
            _input_projection(in_channels, hidden_dim, enforce_input_project) for _ in range(num_feature_levels)
        )

        if mask_classification:
            self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        """Translate a configuration to the arguments of ``__init__``.

        Raises:
            ValueError: if ``DEC_LAYERS`` is below 1.
        """
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.DEC_LAYERS < 1:
            raise ValueError(
                "MODEL.MASK_FORMER.DEC_LAYERS counts predictions, the one from the learnable queries included, so it "
                f"is at least 1 (10 for the paper's nine layers); it is {mask_former.DEC_LAYERS}."
            )
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "dec_layers": mask_former.DEC_LAYERS - 1,
            "dropout": mask_former.DROPOUT,
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
            "num_feature_levels": mask_former.NUM_FEATURE_LEVELS,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
        }

    def forward(self, multi_scale_features: list[Tensor], mask_features: Tensor) -> dict[str, Any]:
        """Predict Q segments.

        Args:
            multi_scale_features: L maps (N, in_channels, H_l, W_l), in the order in which layers visit them.
            mask_features: per-pixel embedding (N, mask_dim, H, W).

        Returns:
            ``pred_logits`` (N, Q, K + 1), the last class being "no object", and ``pred_masks`` (N, Q, H, W) logits. In
            training with deep supervision also ``aux_outputs``: such dicts from the queries and from each layer but the
            last.

        Raises:
            ValueError: if the number of maps is not L.
        """
        *earlier, last = self._update_queries(*self._prepare_scales(multi_scale_features, mask_features))
        output: dict[str, Any] = self._predict(*last, mask_features)
        if self.training and self.deep_supervision:
            output["aux_outputs"] = [self._predict(*queries, mask_features) for queries in earlier]
        return output

    def forward_mixed_sizes(
        self, multi_scale_features: Sequence[list[Tensor]], mask_features: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Predict for several batches at once, each as if it were alone; for inference.

        Args:
            multi_scale_features: B batches of L maps (N_b, in_channels, H_bl, W_bl).
            mask_features: their per-pixel embeddings, (N_b, mask_dim, H_b, W_b).

        Returns:
            B times ``pred_logits`` and ``pred_masks`` as in :meth:`forward`.
        """
        scales = [self._prepare_scales(*batch) for batch in zip(multi_scale_features, mask_features, strict=True)]
        counts = [len(x) for x in mask_features]
        memories, positions, gates = (
            [
                pad_tokens([x.expand(count, -1, -1) for x, count in zip(level, counts, strict=True)])
                for level in zip(*kind, strict=True)
            ]
            for kind in zip(*scales, strict=True)
        )
        valid = [valid_tokens(level) for level in zip(*(batch[0] for batch in scales), strict=True)]
        normed, mask_embedding = self._update_queries(memories, positions, gates, valid)[-1]
        queries = zip(normed.split(counts), mask_embedding.split(counts), mask_features, strict=True)
        return [self._predict(*own) for own in queries]

    def _update_queries(
        self,
        memories: list[Tensor],
        positions: list[Tensor],
        gate_features: list[Tensor],
        valid: list[Tensor] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Run the layers.

        Args:
            memories: of each scale, with the other two as from :meth:`_prepare_scales`.
            positions: likewise.
            gate_features: likewise.
            valid: for each scale (N, HW) bool, False at padding; None has no padding.

        Returns:
            What predictions are made of, see :meth:`_embed_masks`: before the first layer and after each.
        """
        query_pos = self.query_embed.weight[None]  # (1, Q, C)
        x = self.query_feat.weight.expand(memories[0].shape[0], -1, -1)  # (N, Q, C)
        queries = [self._embed_masks(x)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, ffn) in enumerate(layers):
            level = index % self.num_feature_levels
            mask_embedding = queries[-1][1]
            attend = _attention_mask(
                mask_embedding.detach(), gate_features[level], None if valid is None else valid[level]
            )
            x = cross_attention(x, query_pos, memories[level], positions[level], attend)
            x = self_attention(x, query_pos)
            x = ffn(x)
            queries.append(self._embed_masks(x))
        return queries

    def _prepare_scales(
        self, features: list[Tensor], mask_features: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For each scale: keys (N, HW, C), their positions (1, HW, C), and the gate of attention (N, HW, mask_dim)."""
        if len(features) != self.num_feature_levels:
            raise ValueError(
                f"this decoder visits {self.num_feature_levels} scales (MODEL.MASK_FORMER.NUM_FEATURE_LEVELS), but the "
                f"pixel decoder gave {len(features)}."
            )
        memories, positions, gates = [], [], []
        for feature, project, embed in zip(features, self.input_proj, self.level_embed.weight, strict=True):
            height, width = feature.shape[-2:]
            memories.append(project(feature).flatten(2).transpose(1, 2) + embed)
            positions.append(self.pe_layer(height, width, feature.device).flatten(2).transpose(1, 2))
            # Resizing and the dot product with a query's embedding are both linear, so they can be swapped: the
            # embedding is resized once, and masks for attention are computed at the attention's own resolution.
            gate = F.interpolate(mask_features.detach(), size=(height, width), mode="bilinear", align_corners=False)
            gates.append(gate.flatten(2).transpose(1, 2))  # (N, HW, mask_dim)
        return memories, positions, gates

    def _embed_masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries to normalised queries (N, Q, C) and mask embeddings (N, Q, mask_dim)."""
        normed = self.decoder_norm(x)
        return normed, self.mask_embed(normed)

    def _predict(self, normed: Tensor, mask_embedding: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        masks = torch.einsum("nqc,nchw->nqhw", mask_embedding, mask_features)
        if not self.mask_classification:
            return {"pred_masks": masks}
        return {"pred_logits": self.class_embed(normed), "pred_masks": masks}


def _attention_mask(mask_embedding: Tensor, gate_features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Where each query attends: inside its predicted mask, or everywhere if that is empty (equation 3); (N, Q, HW).

    Args:
        mask_embedding: (N, Q, mask_dim).
        gate_features: (N, HW, mask_dim).
        valid: (N, HW) bool, False at padding, which nothing attends to; None has no padding.
    """
    inside = mask_embedding @ gate_features.transpose(1, 2) >= 0  # a probability of at least one half
    if valid is None:
        return inside | ~inside.any(dim=-1, keepdim=True)
    inside = inside & valid[:, None]
    return inside | (~inside.any(dim=-1, keepdim=True) & valid[:, None])


def _input_projection(in_channels: int, hidden_dim: int, enforce: bool) -> nn.Module:
    if in_channels == hidden_dim and not enforce:
        return nn.Sequential()  # identity without parameters
    conv = Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(conv)
    return conv
