"""The paper's Transformer decoder with masked attention (Section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ...constructors import arguments_for
from ..build import TRANSFORMER_DECODER_REGISTRY, build_cross_attention
from ..official_layers import CrossAttentionLayer, FFNLayer, SelfAttentionLayer
from ..position_encoding import PositionEmbeddingSine
from ..query_masks import mask_logits, predict_masks
from . import layers
from .layers import MLP, input_projection
from .official_decoder import OfficialDecoder
from .scales import MULTI_SCALE, Scale

__all__ = [
    "MLP",
    # With the official release's arguments, which is where it has them; our own are in layers.py.
    "CrossAttentionLayer",
    "FFNLayer",
    "MultiScaleMaskedTransformerDecoder",
    "SelfAttentionLayer",
]


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(OfficialDecoder):
    """Queries to class logits and mask logits, one scale of the pyramid a layer, in turn (Section 3.2.2).

    A subclass that defines the official release's ``forward_prediction_heads`` gets the official layers.
    """

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
        dropout: float = 0.0,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
        num_feature_levels: int = 3,
        deep_supervision: bool = True,
        feature_levels: Sequence[int] = (),
        multi_scale: str = "efficient",
        cross_attention_name: str = "MaskedAttentionLayer",
        learnable_query_features: bool = True,
        self_attention_first: bool = False,
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
            feature_levels: which of them layers read, as places in the pyramid (0 is the coarsest), in the order in
                which they are visited; none means all. Table 4d.
            multi_scale: "efficient" reads one scale a layer, "naive" all of them in each. Table 4d.
            cross_attention_name: in ``CROSS_ATTENTION_REGISTRY``. Table 4c.
            learnable_query_features: False starts from zeros, as DETR does, which predict no masks: there is no
                prediction before the first layer, which reads all pixels. Table 4b.
            self_attention_first: before the cross-attention, as DETR does. Table 4b.

        Raises:
            ValueError: if a scale, the strategy or the cross-attention does not exist, or there is nothing to learn.
        """
        super().__init__()
        levels = list(feature_levels) or list(range(num_feature_levels))
        _check_options(levels, num_feature_levels, multi_scale, dec_layers, learnable_query_features)
        self.mask_classification = mask_classification
        self.num_queries = num_queries
        self.num_heads = nheads
        self.num_layers = dec_layers
        self.deep_supervision = deep_supervision
        self.num_feature_levels = num_feature_levels
        self.feature_levels = levels
        self.arrange_scales = MULTI_SCALE[multi_scale]
        self.self_attention_first = self_attention_first

        sizes = (hidden_dim, nheads, dim_feedforward, dropout, pre_norm)
        self.has_official_layers = self.has_own_heads()
        if self.has_official_layers:
            self.use_official_layers(
                *sizes,
                FEATURE_LEVELS=not feature_levels,
                MULTI_SCALE=multi_scale == "efficient",
                CROSS_ATTENTION_NAME=cross_attention_name == "MaskedAttentionLayer",
                LEARNABLE_QUERY_FEATURES=learnable_query_features,
                SELF_ATTENTION_FIRST=not self_attention_first,
            )
        else:
            self._make_layers(cross_attention_name, *sizes)
        self.decoder_norm = nn.LayerNorm(hidden_dim)

        self.query_feat = nn.Embedding(num_queries, hidden_dim) if learnable_query_features else None
        self.query_embed = nn.Embedding(num_queries, hidden_dim)  # the queries' positions
        self.level_embed = nn.Embedding(len(levels), hidden_dim)
        self.input_proj = nn.ModuleList(
            input_projection(in_channels, hidden_dim, enforce_input_project) for _ in levels
        )

        if mask_classification:
            self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    def _make_layers(
        self,
        cross_attention_name: str,
        hidden_dim: int,
        nheads: int,
        dim_feedforward: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        """Three lists, not one list of layers: the checkpoints' names."""
        attention = (hidden_dim, nheads, dropout, pre_norm)
        count = range(self.num_layers)
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2)
        self.transformer_cross_attention_layers = nn.ModuleList(
            build_cross_attention(cross_attention_name, *attention) for _ in count
        )
        self.reads_masks = any(layer.reads_masks for layer in self.transformer_cross_attention_layers)
        self.transformer_self_attention_layers = nn.ModuleList(layers.SelfAttentionLayer(*attention) for _ in count)
        self.transformer_ffn_layers = nn.ModuleList(
            layers.FFNLayer(hidden_dim, dim_feedforward, dropout, pre_norm) for _ in count
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True) -> dict[str, Any]:
        """Translate a configuration to the arguments of ``__init__``.

        Raises:
            ValueError: if ``DEC_LAYERS`` is below 1, or ``TRANSFORMER_IN_FEATURE`` is not a pyramid.
        """
        mask_former = cfg.MODEL.MASK_FORMER
        if mask_former.TRANSFORMER_IN_FEATURE != "multi_scale_pixel_decoder":
            raise ValueError(
                "MultiScaleMaskedTransformerDecoder reads several maps, but MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE "
                f"is {mask_former.TRANSFORMER_IN_FEATURE!r}. Set it to 'multi_scale_pixel_decoder', or "
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME to 'StandardTransformerDecoder', which reads one."
            )
        if mask_former.DEC_LAYERS < 1:
            raise ValueError(
                "MODEL.MASK_FORMER.DEC_LAYERS counts predictions, the one from the learnable queries included, so it "
                f"is at least 1 (10 for the paper's nine layers); it is {mask_former.DEC_LAYERS}."
            )
        arguments = {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "dec_layers": mask_former.DEC_LAYERS - 1,
            "dropout": mask_former.DECODER_DROPOUT or 0.0,
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
            "num_feature_levels": mask_former.NUM_FEATURE_LEVELS,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
            "feature_levels": tuple(mask_former.FEATURE_LEVELS),
            "multi_scale": mask_former.MULTI_SCALE,
            "cross_attention_name": mask_former.CROSS_ATTENTION_NAME,
            "learnable_query_features": mask_former.LEARNABLE_QUERY_FEATURES,
            "self_attention_first": mask_former.SELF_ATTENTION_FIRST,
        }
        return arguments_for(cls, MultiScaleMaskedTransformerDecoder, arguments)

    def forward(
        self, multi_scale_features: list[Tensor], mask_features: Tensor, mask: Tensor | None = None
    ) -> dict[str, Any]:
        """Predict Q segments.

        Args:
            multi_scale_features: L maps (N, in_channels, H_l, W_l), coarse to fine.
            mask_features: per-pixel embedding (N, mask_dim, H, W).
            mask: not read; the official release's heads pass it.

        Returns:
            ``pred_logits`` (N, Q, K + 1), the last class being "no object", and ``pred_masks`` (N, Q, H, W) logits, in
            training :class:`~mask2former.modeling.query_masks.QueryMasks`. In training with deep supervision also
            ``aux_outputs``: such dicts from the queries and from each layer but the last.

        Raises:
            ValueError: if the number of maps is not L.
        """
        if len(multi_scale_features) != self.num_feature_levels:
            raise ValueError(
                f"this decoder visits {self.num_feature_levels} scales (MODEL.MASK_FORMER.NUM_FEATURE_LEVELS), but the "
                f"pixel decoder gave {len(multi_scale_features)}."
            )
        if self.has_official_layers:
            return self.official_forward(multi_scale_features, mask_features)
        scales = self.arrange_scales(self._prepare_scales(multi_scale_features, mask_features))
        query_pos = self.query_embed.weight[None]  # (1, Q, C)
        x = torch.zeros_like(query_pos) if self.query_feat is None else self.query_feat.weight
        x = x.expand(mask_features.shape[0], -1, -1)  # (N, Q, C)

        intermediate = []
        keep_all = self.training and self.deep_supervision
        sub_layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, ffn) in enumerate(sub_layers):
            scale = scales[index % len(scales)]
            attend = None
            has_masks = index > 0 or self.query_feat is not None
            if has_masks and (keep_all or self.reads_masks):
                normed, mask_embedding = self._embed_masks(x)
                if keep_all:
                    intermediate.append(self._predict(normed, mask_embedding, mask_features))
                if self.reads_masks:
                    attend = _attention_mask(mask_embedding.detach(), scale.mask_features)
            if self.self_attention_first:
                x = self_attention(x, query_pos)
            x = cross_attention(x, query_pos, scale, attend)
            if not self.self_attention_first:
                x = self_attention(x, query_pos)
            x = ffn(x)

        output: dict[str, Any] = self._predict(*self._embed_masks(x), mask_features)
        if keep_all:
            output["aux_outputs"] = intermediate
        return output

    def _prepare_scales(self, features: list[Tensor], mask_features: Tensor) -> list[Scale]:
        scales = []
        for level, project, embed in zip(self.feature_levels, self.input_proj, self.level_embed.weight, strict=True):
            height, width = features[level].shape[-2:]
            # Resizing and the dot product with a query's embedding are both linear, so they can be swapped: the
            # embedding is resized once, and masks for attention are computed at the attention's own resolution.
            resized = F.interpolate(mask_features.detach(), size=(height, width), mode="bilinear", align_corners=False)
            memory = project(features[level]).flatten(2).transpose(1, 2) + embed  # (N, HW, C)
            positions = self.pe_layer(height, width, mask_features.device).flatten(2).transpose(1, 2)  # (1, HW, C)
            scale = Scale(
                memory=memory,
                keys=memory + positions,
                mask_features=resized.flatten(2),
                shapes=[(height, width)],
            )
            scales.append(scale)
        return scales

    def _embed_masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries to normalised queries (N, Q, C) and mask embeddings (N, Q, mask_dim)."""
        normed = self.decoder_norm(x)
        return normed, self.mask_embed(normed)

    def _predict(self, normed: Tensor, mask_embedding: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        masks = predict_masks(mask_embedding, mask_features, training=self.training)
        if not self.mask_classification:
            return {"pred_masks": masks}
        return {"pred_logits": self.class_embed(normed), "pred_masks": masks}


def _check_options(
    levels: Sequence[int], num_levels: int, multi_scale: str, num_layers: int, learnable_query_features: bool
) -> None:
    outside = [level for level in levels if not 0 <= level < num_levels]
    if outside:
        raise ValueError(
            f"MODEL.MASK_FORMER.FEATURE_LEVELS names the scales {outside}, but the pixel decoder gives {num_levels} "
            f"(MODEL.MASK_FORMER.NUM_FEATURE_LEVELS), 0 to {num_levels - 1} from the coarsest."
        )
    if multi_scale not in MULTI_SCALE:
        raise ValueError(f"MODEL.MASK_FORMER.MULTI_SCALE is {multi_scale!r}; expected one of {sorted(MULTI_SCALE)}.")
    if not learnable_query_features and num_layers == 0:
        raise ValueError(
            "MODEL.MASK_FORMER.LEARNABLE_QUERY_FEATURES is False and there is no decoder layer, so every query would "
            "stay zero; set MODEL.MASK_FORMER.DEC_LAYERS to at least 2."
        )


def _attention_mask(mask_embedding: Tensor, mask_features: Tensor) -> Tensor:
    """Where each query attends, (N, Q, HW): inside its predicted mask (equation 3).

    If that is empty, everywhere, as in the official release: of nothing there is no softmax.
    """
    inside = mask_logits(mask_embedding, mask_features) >= 0  # a probability of at least one half
    return inside | ~inside.any(dim=-1, keepdim=True)
