"""Subclasses of the pixel decoder that were written for the official release: with a forward_features."""

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling import MSDeformAttnPixelDecoder

SHAPES = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in (4, 2, 5, 3)}


class Wraps(MSDeformAttnPixelDecoder):
    """Changes features, and leaves the rest to the inherited method."""

    def forward_features(self, features: dict[str, Tensor]) -> Any:
        return super().forward_features({name: 2 * x for name, x in features.items()})


class OwnFeatures(MSDeformAttnPixelDecoder):
    """Calls the parts and reads the attributes as the official method does."""

    def forward_features(self, features: dict[str, Tensor]) -> Any:
        features = {name: 2 * x for name, x in features.items()}
        names = self.transformer_in_features[::-1]
        projected = [project(features[name]) for project, name in zip(self.input_proj, names, strict=True)]
        y, shapes, starts = self.transformer(projected, [self.pe_layer(features[name]) for name in names])
        ends = [*starts[1:], y.shape[1]]
        sizes = [ends[i] - starts[i] for i in range(self.transformer_num_feature_levels)]
        levels = torch.split(y, sizes, dim=1)
        out = [z.transpose(1, 2).view(len(y), -1, shapes[i][0], shapes[i][1]) for i, z in enumerate(levels)]
        for index, name in enumerate(self.in_features[: self.num_fpn_levels][::-1]):
            lateral = self.lateral_convs[index](features[name])
            upsampled = F.interpolate(out[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            out.append(self.output_convs[index](lateral + upsampled))
        return self.mask_features(out[-1]), out[0], out[: self.maskformer_num_feature_levels]


@pytest.mark.parametrize("in_features", [["res3", "res4", "res5"], ["res5"]])
@pytest.mark.parametrize("cls", [Wraps, OwnFeatures])
def test_the_same_maps_and_gradients(tiny_cfg: CfgNode, cls: type[Any], in_features: list[str]) -> None:
    tiny_cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = in_features
    plain, own = MSDeformAttnPixelDecoder(tiny_cfg, SHAPES), cls(tiny_cfg, SHAPES)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    own.load_state_dict(plain.state_dict())
    features = {name: torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride) for name, s in SHAPES.items()}
    results = []
    for decoder, scale in ((plain, 2), (own, 1)):
        embedding, coarsest, maps = decoder.forward_features({name: scale * x for name, x in features.items()})
        sum(x.square().mean() for x in (embedding, coarsest, *maps)).backward()
        results.append([embedding, coarsest, *maps, *(p.grad for p in decoder.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 + 1e-4 * expected.abs().max().item())


def test_attributes(tiny_cfg: CfgNode) -> None:
    decoder = OwnFeatures(tiny_cfg, SHAPES)
    assert decoder.in_features == ["res2", "res3", "res4", "res5"]
    assert decoder.transformer_in_features == ["res3", "res4", "res5"]
    assert (decoder.feature_strides, decoder.feature_channels) == ([4, 8, 16, 32], [8, 12, 16, 20])
