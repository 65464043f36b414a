"""What the official release's decoder offers to its subclasses: layers with sequences first, and methods to call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import official_layers

__all__ = ["OfficialDecoder"]


class OfficialDecoder(nn.Module):
    """Base of the decoder for subclasses that define ``forward_prediction_heads``, as the official release has it.

    Such a decoder has the layers of :mod:`~mask2former.modeling.official_layers`, with the same names and parameters,
    and a ``forward`` that calls the method. Others do not use this class.
    """

    num_feature_levels: int
    num_heads: int
    num_layers: int
    mask_classification: bool
    pe_layer: nn.Module
    query_feat: nn.Embedding | None
    query_embed: nn.Embedding
    level_embed: nn.Embedding
    input_proj: nn.ModuleList
    decoder_norm: nn.LayerNorm
    class_embed: nn.Module
    mask_embed: nn.Module

    @classmethod
    def has_own_heads(cls) -> bool:
        """Whether a subclass, or someone from outside, has put another method for ``forward_prediction_heads``."""
        return cls.forward_prediction_heads is not OfficialDecoder.forward_prediction_heads

    def use_official_layers(
        self, hidden_dim: int, nheads: int, dim_feedforward: int, dropout: float, pre_norm: bool, **is_official: bool
    ) -> None:
        """Make the layers and the position encoding.

        Args:
            hidden_dim, nheads, dim_feedforward, dropout, pre_norm: the decoder's.
            is_official: for keys of ``MODEL.MASK_FORMER`` that the official release does not have, whether they leave
                the decoder as it is there.

        Raises:
            ValueError: if one does not.
        """
        if changed := [f"MODEL.MASK_FORMER.{key}" for key, official in is_official.items() if not official]:
            raise ValueError(
                f"{type(self).__name__} has a forward_prediction_heads of its own, so it works as the official one, "
                f"which has no {', '.join(changed)}; leave out the key, or the method."
            )
        attention: dict[str, Any] = {
            "d_model": hidden_dim,
            "nhead": nheads,
            "dropout": dropout,
            "normalize_before": pre_norm,
        }
        count = range(self.num_layers)
        self.pe_layer = official_layers.PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.transformer_cross_attention_layers = nn.ModuleList(
            official_layers.CrossAttentionLayer(**attention) for _ in count
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            official_layers.SelfAttentionLayer(**attention) for _ in count
        )
        self.transformer_ffn_layers = nn.ModuleList(
            official_layers.FFNLayer(hidden_dim, dim_feedforward, dropout, normalize_before=pre_norm) for _ in count
        )

    def official_forward(self, x: Sequence[Tensor], mask_features: Tensor) -> dict[str, Any]:
        """Predict by the official layers; ``pred_masks`` are tensors, and there are always ``aux_outputs``.

        Args:
            x: L maps (N, in_channels, H_l, W_l), coarse to fine.
            mask_features: per-pixel embedding (N, mask_dim, H, W).
        """
        sizes = [level.shape[-2:] for level in x]
        positions = [self.pe_layer(level, None).flatten(2).permute(2, 0, 1) for level in x]  # (HW, N, C)
        memories = [
            (project(level).flatten(2) + embed[:, None]).permute(2, 0, 1)
            for level, project, embed in zip(x, self.input_proj, self.level_embed.weight, strict=True)
        ]
        query_embed = self.query_embed.weight[:, None].expand(-1, mask_features.shape[0], -1)  # (Q, N, C)
        assert self.query_feat is not None  # the official decoder always learns it
        queries = self.query_feat.weight[:, None].expand_as(query_embed)

        classes, masks, blocked = self.forward_prediction_heads(queries, mask_features, attn_mask_target_size=sizes[0])
        all_classes, all_masks = [classes], [masks]
        for index in range(self.num_layers):
            level = index % len(x)
            queries = self.transformer_cross_attention_layers[index](
                queries,
                memories[level],
                memory_mask=blocked & ~blocked.all(dim=-1, keepdim=True),
                pos=positions[level],
                query_pos=query_embed,
            )
            queries = self.transformer_self_attention_layers[index](queries, query_pos=query_embed)
            queries = self.transformer_ffn_layers[index](queries)
            classes, masks, blocked = self.forward_prediction_heads(
                queries, mask_features, attn_mask_target_size=sizes[(index + 1) % len(x)]
            )
            all_classes.append(classes)
            all_masks.append(masks)

        output: dict[str, Any] = {"pred_masks": masks, "aux_outputs": self._set_aux_loss(all_classes, all_masks)}
        if self.mask_classification:
            output["pred_logits"] = classes
        return output

    def forward_prediction_heads(
        self, output: Tensor, mask_features: Tensor, attn_mask_target_size: Sequence[int]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Predict classes and masks from queries, and where they should not look next.

        Args:
            output: (Q, N, C).
            mask_features: (N, mask_dim, H, W).
            attn_mask_target_size: (h, w) of the scale that is read next.

        Returns:
            Class logits (N, Q, K + 1), None without classes; mask logits (N, Q, H, W); and bool (N * heads, Q, h * w),
            True where a query does not attend.
        """
        normed = self.decoder_norm(output).transpose(0, 1)  # (N, Q, C)
        classes = self.class_embed(normed) if self.mask_classification else None
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(normed), mask_features)
        resized = F.interpolate(masks.detach(), attn_mask_target_size, mode="bilinear", align_corners=False)
        blocked = (resized < 0).flatten(2)  # a probability below one half
        return classes, masks, blocked.repeat_interleave(self.num_heads, dim=0)

    def _set_aux_loss(
        self, outputs_class: Sequence[Tensor | None] | None, outputs_seg_masks: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """All predictions but the last, as the criterion reads them."""
        if not self.mask_classification or outputs_class is None:
            return [{"pred_masks": masks} for masks in outputs_seg_masks[:-1]]
        pairs = zip(outputs_class[:-1], outputs_seg_masks[:-1], strict=True)
        return [{"pred_logits": classes, "pred_masks": masks} for classes, masks in pairs]
