"""Any timm feature extractor as a Detectron2 backbone."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from .simple_pyramid import build_simple_pyramid

__all__ = ["TimmBackbone"]

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@BACKBONE_REGISTRY.register()
class TimmBackbone(Backbone):
    """A timm model as ``{"res2": 1/4, "res3": 1/8, "res4": 1/16, "res5": 1/32}`` feature maps.

    Where a model has several features of one stride, the deepest is taken. A plain ViT gets patches of 16 pixels,
    whichever it has at timm, and ViTDet's pyramid of its deepest feature. Images are padded to multiples of 32 pixels,
    or of the model's own size where its windows divide no others (MaxViT's). Pretrained weights come from
    ``MODEL.WEIGHTS`` like every other backbone's, never from timm's hub. ``MODEL.BACKBONE.FREEZE_AT`` is not read.

    Attributes:
        body: timm's feature extractor, without the layers past the last wanted feature.
        pyramid: of a plain ViT, else None.
    """

    @configurable
    def __init__(
        self,
        *,
        model_name: str,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: str = "FrozenBN",
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        pyramid_channels: int = 256,
    ) -> None:
        """
        Args:
            model_name: as in ``timm.list_models()``.
            out_features: of ``"res2"`` (stride 4), ``"res3"`` (8), ``"res4"`` (16), ``"res5"`` (32).
            norm: what becomes of batch norms: ``"BN"`` trains them, ``"FrozenBN"`` fixes statistics and affine
                parameters, ``"SyncBN"`` shares statistics between GPUs. Other norms are left alone.
            drop_path_rate: stochastic depth; 0 leaves the model's own default.
            in_channels: of the image.
            pyramid_channels: of the features of a plain ViT.
        """
        super().__init__()
        self._out_features = _sorted_by_stride(out_features)
        strides = [STRIDES[f] for f in self._out_features]
        options: dict[str, Any] = {"in_chans": in_channels, **_free_input_size(model_name)}
        if drop_path_rate > 0:
            options["drop_path_rate"] = drop_path_rate
        extractor = _create_extractor(model_name, options)
        if is_plain_vit := _is_plain_vit(extractor):
            options |= _patches_of_16(extractor)
            indices = [extractor.feature_info.out_indices[-1]]
        else:
            indices = _indices_of_strides(model_name, extractor.feature_info, strides)
        body = _create_extractor(model_name, {**options, "out_indices": indices})
        self.body = _fix_same_padding(_convert_batch_norm(_drop_unused_stages(body), norm))
        self._channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        channels = body.feature_info.channels()
        self.pyramid = None
        if is_plain_vit:
            self.pyramid = build_simple_pyramid(channels[0], strides, pyramid_channels)
            channels = [pyramid_channels] * len(strides)
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict(zip(self._out_features, channels, strict=True))
        self._size_divisibility = self._find_size_divisibility(model_name, in_channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "model_name": cfg.MODEL.TIMM.MODEL_NAME,
            "out_features": cfg.MODEL.TIMM.OUT_FEATURES,
            "norm": cfg.MODEL.TIMM.NORM,
            "drop_path_rate": cfg.MODEL.TIMM.DROP_PATH_RATE,
            "in_channels": input_shape.channels,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            images: (N, C, H, W), normalised; sizes that are no multiple of ``size_divisibility`` are padded with zeros.

        Returns:
            One (N, channels, ceil(H / stride), ceil(W / stride)) tensor for each of ``out_features``, fine to coarse.
        """
        height, width = images.shape[-2:]
        # Architectures disagree on odd sizes (some round down, some fail), so they never see one.
        pad_height, pad_width = -height % self.size_divisibility, -width % self.size_divisibility
        if pad_height or pad_width:
            images = F.pad(images, (0, pad_width, 0, pad_height))
        strides = self._out_feature_strides.values()
        # Rounded up by an addition: of the negative numbers that would do it, too, ONNX rounds the quotient otherwise.
        features = [
            x[..., : (height + s - 1) // s, : (width + s - 1) // s]
            for x, s in zip(self._features(images), strides, strict=True)
        ]
        return dict(zip(self._out_features, features, strict=True))

    def _features(self, images: Tensor) -> list[Tensor]:
        """(N, channels, H / stride, W / stride) of images whose sides are multiples of ``size_divisibility``."""
        features: list[Tensor] = self.body(images)
        if self._channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return features if self.pyramid is None else list(self.pyramid(features[0]).values())

    def _find_size_divisibility(self, model_name: str, in_channels: int) -> int:
        """What an image's sides must be multiples of: 32, or else the size that timm made the model for."""
        body: Any = self.body
        least, own = STRIDES["res5"], body.pretrained_cfg["input_size"][-1]
        sizes = {least: (3 * least, 5 * least)} | ({own: (own, 2 * own)} if own % least == 0 else {})
        for multiple, (height, width) in sizes.items():
            expected = [(height // s, width // s) for s in self._out_feature_strides.values()]
            try:
                with torch.no_grad():
                    features = self.eval()._features(torch.zeros(1, in_channels, height, width))
                found = [(x.shape[-2], x.shape[-1]) for x in features]
                if found == expected:
                    return multiple
                problem = f"makes features of {found}, expected {expected}"
            except (AssertionError, RuntimeError) as error:
                problem = f"fails ({str(error) or type(error).__name__})"
            finally:
                self.train()
        raise ValueError(
            f"timm's {model_name!r} cannot be a backbone: with an image of {height} x {width} pixels it {problem}; see "
            "timm.list_models() for one that takes images of any size."
        )

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def blocks(self) -> list[nn.Module]:
        """The Transformer blocks of a plain ViT, in their order; empty for other models."""
        body: Any = self.body
        return [] if self.pyramid is None else list(body.model.blocks)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A frozen batch norm that keeps the dropout and the activation which timm fuses into its batch norms."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class SamePaddedConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, of an input whose sides are multiples of the stride.

    The padding is then a constant, as it is not in general: exporters need minutes to reason about timm's formula.
    """

    def forward(self, x: Tensor) -> Tensor:
        totals = [
            max(dilation * (kernel - 1) + 1 - stride, 0)
            for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        ]
        top, left = (total // 2 for total in totals)
        return super().forward(F.pad(x, (left, totals[1] - left, top, totals[0] - top)))


def _sorted_by_stride(out_features: Sequence[str]) -> list[str]:
    unknown = [f for f in out_features if f not in STRIDES]
    if unknown or not out_features:
        raise ValueError(
            f"MODEL.TIMM.OUT_FEATURES is {list(out_features)}; expected some of {list(STRIDES)} (strides 4 to 32)."
        )
    return [f for f in STRIDES if f in out_features]


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            "TimmBackbone needs timm: pip install 'mask2former[timm]' (or pip install timm)."
        ) from e
    return timm


def _free_input_size(model_name: str) -> dict[str, bool]:
    """The argument that lifts timm's check for one input size, for the architectures (Swin, ViT) that make it."""
    timm = _import_timm()
    if not timm.is_model(model_name):
        raise ValueError(
            f"MODEL.TIMM.MODEL_NAME is {model_name!r}, which timm {timm.__version__} does not have; "
            "see timm.list_models()."
        )
    module = sys.modules[timm.model_entrypoint(model_name).__module__]
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__.startswith("timm.models.")]
    arguments = {a for c in classes if issubclass(c, nn.Module) for a in inspect.signature(c).parameters}
    return {a: value for a, value in (("strict_img_size", False), ("dynamic_img_size", True)) if a in arguments}


def _create_extractor(model_name: str, options: dict[str, Any]) -> Any:
    timm = _import_timm()
    try:
        return timm.create_model(model_name, pretrained=False, features_only=True, **options)
    except (TypeError, RuntimeError) as e:
        if "drop_path_rate" in str(e):
            raise ValueError(
                f"timm's {model_name!r} has no stochastic depth; set MODEL.TIMM.DROP_PATH_RATE to 0 "
                f"(it is {options['drop_path_rate']})."
            ) from e
        if "features_only" in str(e):
            raise ValueError(
                f"timm's {model_name!r} cannot be a backbone, since it has no features_only mode; "
                "see timm.list_models() for another."
            ) from e
        raise


def _is_plain_vit(extractor: Any) -> bool:
    """Whether all features have the stride of the patches."""
    strides = set(extractor.feature_info.reduction())
    patch_embed = getattr(getattr(extractor, "model", None), "patch_embed", None)
    return len(strides) == 1 and getattr(patch_embed, "patch_size", None) == (*strides, *strides)


def _patches_of_16(extractor: Any) -> dict[str, Any]:
    """The arguments with which a plain ViT has patches of 16 pixels, and as many positions as before."""
    patch_embed = extractor.model.patch_embed
    if patch_embed.patch_size == (16, 16):
        return {}
    return {"patch_size": 16, "img_size": tuple(16 * side for side in patch_embed.grid_size)}


def _indices_of_strides(model_name: str, feature_info: Any, strides: Sequence[int]) -> list[int]:
    """For each stride the index of the deepest feature that has it."""
    deepest = dict(zip(feature_info.reduction(), feature_info.out_indices, strict=True))
    missing = [s for s in strides if s not in deepest]
    if missing:
        raise ValueError(
            f"timm's {model_name!r} has features of stride {sorted(deepest)}, but MODEL.TIMM.OUT_FEATURES asks for "
            f"{missing}; choose from {[f for f, s in STRIDES.items() if s in deepest]}, or another model."
        )
    return [deepest[s] for s in strides]


def _drop_unused_stages(body: Any) -> Any:
    # timm cuts most models after the last wanted feature by itself, but not the EfficientNet family.
    last = body.feature_info.get_dicts()[-1]
    if "stage" in last and isinstance(getattr(body, "blocks", None), nn.Sequential):
        body.blocks = body.blocks[: last["stage"]]
    return body


def _convert_batch_norm(module: nn.Module, norm: str) -> nn.Module:
    if norm == "BN":
        return module
    if norm == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    if norm == "FrozenBN":
        return _freeze_batch_norm(module)
    raise ValueError(f"MODEL.TIMM.NORM is {norm!r}; expected 'BN', 'FrozenBN' or 'SyncBN'.")


def _fix_same_padding(module: nn.Module) -> nn.Module:
    """What comes in is padded to a multiple of the largest stride, and so are all features, to what is left of it."""
    from timm.layers import Conv2dSame

    convolutions: list[nn.Module] = [child for child in module.modules() if isinstance(child, Conv2dSame)]
    for convolution in convolutions:
        convolution.__class__ = SamePaddedConv2d
    return module


def _freeze_batch_norm(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.BatchNorm2d):
        for name, child in module.named_children():
            setattr(module, name, _freeze_batch_norm(child))
        return module
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(module)
    if hasattr(module, "act"):
        frozen.__class__ = FrozenBatchNormAct2d
        frozen.act, frozen.drop = module.act, module.drop
    return frozen
