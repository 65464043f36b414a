"""Swin Transformer (Liu et al., ICCV 2021) as a Detectron2 backbone, with the official parameter names."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .swin_layers import PatchEmbed, PatchMerging, SwinBlock

__all__ = ["D2SwinTransformer"]


class SwinStage(nn.Module):
    """The blocks of one resolution, windows shifted in every other one, and the merging that leads to the next."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        *,
        downsample: bool,
        use_checkpoint: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window_size, shift_size=(i % 2) * (window_size // 2), drop_path=rate, **block)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks, not the merging: (N, H, W, C) to (N, H, W, C)."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint and self.training else block(x)
        return x


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin-T, -S, -B or -L by its arguments: image to ``{"res2": 1/4, "res3": 1/8, "res4": 1/16, "res5": 1/32}``."""

    @configurable
    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
    ) -> None:
        """
        Args:
            pretrain_img_size: side of the images that ``ape`` was trained on; not read without it.
            patch_size: pixels on a side.
            in_channels: of the image.
            embed_dim: channels of the first stage; every next one has twice as many.
            depths: blocks of each stage.
            num_heads: attention heads of each stage.
            window_size: tokens on a side.
            mlp_ratio: hidden channels of the perceptrons, relative to a stage's channels.
            qkv_bias: whether queries, keys and values have a bias.
            qk_scale: factor of the attention logits; None is ``1 / sqrt(channels of a head)``.
            drop_rate: dropout of tokens, and after linear layers.
            attn_drop_rate: dropout of attention weights.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
            ape: add a learnt absolute position embedding, resized to the image.
            patch_norm: normalise after the patch embedding.
            out_features: which of ``"res2"``, ``"res3"`` ... (one a stage) to return.
            use_checkpoint: recompute blocks in the backward pass to save memory.
        """
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f"MODEL.SWIN.DEPTHS {list(depths)} and NUM_HEADS {list(num_heads)} must be equally long.")
        channels = [embed_dim * 2**i for i in range(len(depths))]
        if any(heads < 1 or width < 1 or width % heads for width, heads in zip(channels, num_heads, strict=True)):
            raise ValueError(
                f"MODEL.SWIN.NUM_HEADS is {list(num_heads)}, but the stages have {channels} channels "
                "(MODEL.SWIN.EMBED_DIM, doubled by each stage); choose multiples of the heads."
            )
        if window_size < 1 or not 0 <= drop_path_rate < 1:
            raise ValueError(
                f"MODEL.SWIN.WINDOW_SIZE is {window_size} and DROP_PATH_RATE {drop_path_rate}; expected at least one "
                "patch, and a probability below 1."
            )
        stages = {f"res{i + 2}": i for i in range(len(depths))}
        unknown = [f for f in out_features if f not in stages]
        if unknown or not out_features:
            raise ValueError(f"MODEL.SWIN.OUT_FEATURES is {list(out_features)}; expected some of {list(stages)}.")
        self._out_features = [f for f in stages if f in out_features]
        self._out_feature_strides = {f: patch_size * 2**i for f, i in stages.items()}
        self._out_feature_channels = {f: embed_dim * 2**i for f, i in stages.items()}

        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, nn.LayerNorm if patch_norm else None)
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.ape = ape
        self.pos_drop = nn.Dropout(drop_rate)
        drop_path = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(
            SwinStage(
                embed_dim * 2**i,
                num_heads[i],
                window_size,
                drop_path[i].tolist(),
                downsample=i + 1 < len(depths),
                use_checkpoint=use_checkpoint,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
            )
            for i in range(len(depths))
        )
        # Named and present as in the official release, whichever features are asked for.
        for i in range(len(depths)):
            self.add_module(f"norm{i}", nn.LayerNorm(embed_dim * 2**i))
        self.apply(_init_linear)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """One argument a key of ``MODEL.SWIN``, in lower case."""
        return {**{key.lower(): value for key, value in cfg.MODEL.SWIN.items()}, "in_channels": input_shape.channels}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            images: (N, 3, H, W), normalised, of any size.

        Returns:
            One (N, channels, ceil(H / stride), ceil(W / stride)) tensor for each of ``out_features``, fine to coarse.
        """
        x = self.patch_embed(images)  # (N, H / 4, W / 4, C)
        if self.ape:
            position = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        outputs = {}
        for i, stage in enumerate(cast(Iterable[SwinStage], self.layers)):
            x = stage(x)
            name = f"res{i + 2}"
            if name in self._out_features:
                outputs[name] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)  # (N, C, H, W)
            if name == self._out_features[-1]:
                break
            x = stage.downsample(x)
        return outputs

    @property
    def size_divisibility(self) -> int:
        return 32


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
