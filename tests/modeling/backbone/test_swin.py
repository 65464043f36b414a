"""D2SwinTransformer: names, numbers (against transformers, and a naive attention), options, errors."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from mask2former import add_maskformer2_config
from mask2former.modeling.backbone import D2SwinTransformer
from mask2former.modeling.backbone.swin_layers import DropPath, PatchEmbed, PatchMerging, SwinBlock, shifted_window_mask
from mask2former.modeling.checkpoint_compat import from_huggingface

TINY = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 4), "window_size": 3}
BASE = {"EMBED_DIM": 128, "DEPTHS": [2, 2, 18, 2], "NUM_HEADS": [4, 8, 16, 32], "WINDOW_SIZE": 12}
LARGE = {"EMBED_DIM": 192, "DEPTHS": [2, 2, 18, 2], "NUM_HEADS": [6, 12, 24, 48], "WINDOW_SIZE": 12}


def config(**swin: object) -> CfgNode:
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    for key, value in swin.items():
        cfg.MODEL.SWIN[key] = value
    return cfg


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)


@pytest.mark.parametrize(
    ("model", "swin"), [("swin_t_coco_instance", {}), ("swin_l_in21k_coco_panoptic", LARGE)], ids=["tiny", "large"]
)
def test_names_and_shapes_are_the_official_ones(model: str, swin: dict[str, object], contract_dir: Path) -> None:
    shapes = json.loads((contract_dir / "state_dicts" / f"{model}.json").read_text())["state_dict"]
    expected = {n.removeprefix("backbone."): tuple(s) for n, s in shapes.items() if n.startswith("backbone.")}
    with torch.device("meta"):
        backbone = build_backbone(config(**swin))
    assert {n: tuple(t.shape) for n, t in backbone.state_dict().items()} == expected


def test_base_has_its_88_million_parameters() -> None:
    with torch.device("meta"):
        backbone = build_backbone(config(**BASE))
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(87.7e6, rel=0.01)


@pytest.mark.parametrize("size", [(96, 96), (157, 131), (130, 142), (100, 132)])
def test_equals_transformers_at_any_size(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.SwinBackbone(
        transformers.SwinConfig(**TINY, out_features=["stage1", "stage2", "stage3", "stage4"])
    ).eval()
    randomise(reference)
    theirs = {f"model.pixel_level_module.encoder.{n}": t for n, t in reference.state_dict().items()}
    ours = {n.removeprefix("backbone."): t for n, t in from_huggingface(theirs).items()}
    backbone = D2SwinTransformer(**TINY).eval()
    backbone.load_state_dict(ours, strict=True)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        features, expected = backbone(images), reference(images).feature_maps
    for (name, feature), x in zip(features.items(), expected, strict=True):
        # transformers shrinks windows to feature maps that are smaller, unlike the official code.
        if min(x.shape[-2:]) > TINY["window_size"]:
            torch.testing.assert_close(feature, x, rtol=1e-4, atol=1e-4)
        stride = backbone.output_shape()[name].stride
        assert feature.shape[1:] == (backbone.output_shape()[name].channels, *(-(-s // stride) for s in size))


def naive_shifted_attention(block: SwinBlock, x: Tensor) -> Tensor:
    """Attention of one image token by token: who shares a shifted window, and is no neighbour by the roll alone."""
    size, shift, heads = block.window_size, block.shift_size, block.attn.num_heads
    height, width, dim = x.shape
    padded_height, padded_width = -(-height // size) * size, -(-width // size) * size
    padded = x.new_zeros(padded_height, padded_width, dim)
    padded[:height, :width] = x
    query, key, value = block.attn.qkv(padded).view(padded_height, padded_width, 3, heads, -1).unbind(2)
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            window = [((i - shift) % padded_height) // size, ((j - shift) % padded_width) // size]
            others, biases = [], []
            for k in range(padded_height):
                for m in range(padded_width):
                    shifted = [(k - shift) % padded_height, (m - shift) % padded_width]
                    if [s // size for s in shifted] != window:
                        continue
                    # Within the last window, the part before the border and the part after it are far apart.
                    if (i < shift) != (k < shift) or (j < shift) != (m < shift):
                        continue
                    dy = (i - shift) % padded_height - shifted[0]
                    dx = (j - shift) % padded_width - shifted[1]
                    others.append((k, m))
                    biases.append(
                        block.attn.relative_position_bias_table[(dy + size - 1) * (2 * size - 1) + dx + size - 1]
                    )
            logits = torch.stack([(query[i, j] * key[o]).sum(-1) for o in others]) / query.shape[-1] ** 0.5
            weights = (logits + torch.stack(biases)).softmax(0)  # (others, heads)
            out[i, j] = sum(w[:, None] * value[o] for w, o in zip(weights, others, strict=True)).flatten()
    return block.attn.proj(out)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("images", [1, 2])
def test_attention_equals_a_naive_one(shift: int, images: int) -> None:
    block = SwinBlock(6, 2, 3, shift_size=shift)
    randomise(block)
    x = torch.randn(images, 5, 7, 6)
    with torch.no_grad():
        out = block._attend(x)
        for n in range(images):
            torch.testing.assert_close(out[n], naive_shifted_attention(block, x[n]), rtol=1e-4, atol=1e-5)


def test_merging_takes_rows_first_and_pads_odd_sizes() -> None:
    merging = PatchMerging(1)
    nn.init.eye_(merging.reduction.weight)
    merging.norm = nn.Identity()
    merging.reduction = nn.Identity()
    x = torch.arange(1.0, 10.0).view(1, 3, 3, 1)
    assert merging(x)[0].tolist() == [[[1, 4, 2, 5], [3, 6, 0, 0]], [[7, 0, 8, 0], [9, 0, 0, 0]]]


def test_a_checkpoint_without_the_constant_index_loads() -> None:
    backbone = D2SwinTransformer(**TINY)
    state = {n: t for n, t in backbone.state_dict().items() if not n.endswith("relative_position_index")}
    assert len(state) < len(backbone.state_dict())
    D2SwinTransformer(**TINY).load_state_dict(state, strict=True)


def test_only_what_is_asked_for_is_computed() -> None:
    backbone = D2SwinTransformer(**TINY, out_features=["res4", "res2"]).eval()
    backbone.layers[3].forward = None  # calling it would fail
    features = backbone(torch.randn(1, 3, 32, 32))
    assert list(features) == list(backbone.output_shape()) == ["res2", "res4"]


def test_position_embedding_is_resized() -> None:
    backbone = D2SwinTransformer(**TINY, ape=True, pretrain_img_size=32).eval()
    without = D2SwinTransformer(**TINY).eval()
    without.load_state_dict({n: t for n, t in backbone.state_dict().items() if n != "absolute_pos_embed"})
    assert backbone.absolute_pos_embed.shape == (1, 12, 8, 8)
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert not torch.allclose(backbone(images)["res2"], without(images)["res2"])
        backbone.absolute_pos_embed.zero_()
        torch.testing.assert_close(backbone(images)["res2"], without(images)["res2"])


def test_another_patch_embedding_with_the_official_arguments() -> None:
    backbone = D2SwinTransformer(**TINY).eval()
    backbone.patch_embed = PatchEmbed(patch_size=4, in_chans=4, embed_dim=12, norm_layer=nn.LayerNorm)
    with torch.no_grad():
        assert backbone(torch.randn(1, 4, 40, 64))["res2"].shape == (1, 12, 10, 16)


def test_recomputing_gives_the_same_gradients() -> None:
    images = torch.randn(1, 3, 64, 64)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        backbone = D2SwinTransformer(**TINY, use_checkpoint=use_checkpoint).train()
        torch.manual_seed(1)  # of stochastic depth
        sum(f.square().mean() for f in backbone(images).values()).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(g is not None for g in gradients[0])
    for direct, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(direct, recomputed)


def test_drop_path_grows_linearly_and_keeps_the_mean() -> None:
    backbone = D2SwinTransformer(**TINY, drop_path_rate=0.7)
    rates = [block.drop_path.probability for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)], abs=1e-6)
    x = torch.ones(4000, 2, 3)
    dropped = DropPath(0.25).train()(x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(x))  # whole images
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(DropPath(0.25).eval()(x), x)


def test_projections_without_bias() -> None:
    backbone = D2SwinTransformer(**TINY, qkv_bias=False)
    assert not any("qkv.bias" in name for name in backbone.state_dict())
    assert backbone(torch.randn(1, 3, 32, 32))["res5"].isfinite().all()


def test_qk_scale_multiplies_the_logits() -> None:
    scaled, plain = SwinBlock(8, 2, 3, qk_scale=0.9), SwinBlock(8, 2, 3)
    randomise(scaled)
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        for parameter in (plain.attn.qkv.weight, plain.attn.qkv.bias):
            parameter[:8] *= 0.9 * 4**0.5  # of the queries; a head has 4 channels
    x = torch.randn(1, 6, 6, 8)
    torch.testing.assert_close(scaled(x), plain(x))


def test_the_cached_mask_serves_training_after_inference_mode() -> None:
    shifted_window_mask.cache_clear()
    backbone = D2SwinTransformer(**TINY)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        backbone.eval()(images)
    assert shifted_window_mask.cache_info().misses > 0
    backbone.train()(images)["res5"].sum().backward()
    assert shifted_window_mask.cache_info().hits > 0


def test_the_mask_of_tensors_without_values_is_not_kept() -> None:
    block = SwinBlock(8, num_heads=2, window_size=4, shift_size=2)
    x = torch.randn(1, 12, 8, 8)
    shifted_window_mask.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(block(mode.from_tensor(x)), FakeTensor)
    assert type(block(x)) is Tensor


def test_autocast() -> None:
    backbone = D2SwinTransformer(**TINY).eval()
    randomise(backbone)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
        with torch.autocast("cpu", torch.bfloat16):
            features = backbone(images)
    scale = expected["res2"].abs().max()
    assert (features["res2"].float() - expected["res2"]).abs().max() < 0.05 * scale


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"OUT_FEATURES": ["res6"]},
            r"OUT_FEATURES is \['res6'\]; expected some of \['res2', 'res3', 'res4', 'res5'\]",
        ),
        ({"DEPTHS": [2, 2]}, r"DEPTHS \[2, 2\] and NUM_HEADS \[3, 6, 12, 24\] must be equally long"),
        (
            {"NUM_HEADS": [5, 5, 5, 5]},
            r"NUM_HEADS is \[5, 5, 5, 5\], but the stages have \[96, 192, 384, 768\] channels",
        ),
        ({"WINDOW_SIZE": 0}, r"WINDOW_SIZE is 0 and DROP_PATH_RATE 0\.\d; expected at least one patch"),
        ({"DROP_PATH_RATE": 1.0}, r"DROP_PATH_RATE 1\.0; expected at least one patch, and a probability below 1"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(config(**options))
