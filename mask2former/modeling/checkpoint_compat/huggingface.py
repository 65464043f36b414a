"""Names of Hugging Face's ``Mask2FormerForUniversalSegmentation`` to ours, and back.

Pure functions from ``{name: tensor}`` to ``{name: tensor}``. Theirs are the names of their published files; those that
``transformers`` 5 uses in memory are read too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .backbones import convert_torchvision_resnet

__all__ = ["from_huggingface", "is_huggingface", "to_huggingface"]

StateDict = dict[str, Tensor]

ENCODER = "model.pixel_level_module.encoder."

# (ours, theirs), up to the last parts of a name; {} is an index. The first row that fits counts.
SWIN = [
    ("backbone.patch_embed.proj", ENCODER + "embeddings.patch_embeddings.projection"),
    ("backbone.patch_embed.norm", ENCODER + "embeddings.norm"),
    ("backbone.layers.{}.downsample", ENCODER + "encoder.layers.{}.downsample"),
    *(
        (f"backbone.layers.{{}}.blocks.{{}}.{ours}", f"{ENCODER}encoder.layers.{{}}.blocks.{{}}.{theirs}")
        for ours, theirs in [
            ("norm1", "layernorm_before"),
            ("attn.proj", "attention.output.dense"),
            ("attn", "attention.self"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ]
    ),
    *((f"backbone.norm{i}", f"{ENCODER}hidden_states_norms.stage{i + 1}") for i in range(4)),
]
RESNET = [
    ("backbone.stem.conv1.norm", ENCODER + "embedder.embedder.normalization"),
    ("backbone.stem.conv1", ENCODER + "embedder.embedder.convolution"),
    *(
        (f"backbone.res{stage + 2}.{{}}.{ours}", f"{ENCODER}encoder.stages.{stage}.layers.{{}}.{theirs}")
        for stage in range(4)
        for ours, theirs in [
            ("shortcut.norm", "shortcut.normalization"),
            ("shortcut", "shortcut.convolution"),
            *((f"conv{i + 1}.norm", f"layer.{i}.normalization") for i in range(3)),
            *((f"conv{i + 1}", f"layer.{i}.convolution") for i in range(3)),
        ]
    ),
]
PIXEL_DECODER = [
    (f"sem_seg_head.pixel_decoder.{ours}", f"model.pixel_level_module.decoder.{theirs}")
    for ours, theirs in [
        ("input_proj.{}", "input_projections.{}"),
        ("transformer.level_embed", "level_embed"),
        ("transformer.encoder.layers.{}.self_attn", "encoder.layers.{}.self_attn"),
        ("transformer.encoder.layers.{}.norm1", "encoder.layers.{}.self_attn_layer_norm"),
        ("transformer.encoder.layers.{}.linear1", "encoder.layers.{}.fc1"),
        ("transformer.encoder.layers.{}.linear2", "encoder.layers.{}.fc2"),
        ("transformer.encoder.layers.{}.norm2", "encoder.layers.{}.final_layer_norm"),
        ("mask_features", "mask_projection"),
        ("adapter_{}.norm", "adapter_{}.1"),
        ("adapter_{}", "adapter_{}.0"),
        ("layer_{}.norm", "layer_{}.1"),
        ("layer_{}", "layer_{}.0"),
    ]
]
TRANSFORMER_DECODER = [
    *(
        (f"sem_seg_head.predictor.{ours}", f"model.transformer_module.{theirs}")
        for ours, theirs in [
            ("input_proj.{}", "input_projections.{}"),
            ("query_feat", "queries_features"),
            ("query_embed", "queries_embedder"),
            ("level_embed", "level_embed"),
            ("transformer_self_attention_layers.{}.self_attn", "decoder.layers.{}.self_attn"),
            ("transformer_self_attention_layers.{}.norm", "decoder.layers.{}.self_attn_layer_norm"),
            ("transformer_cross_attention_layers.{}.multihead_attn", "decoder.layers.{}.cross_attn"),
            ("transformer_cross_attention_layers.{}.norm", "decoder.layers.{}.cross_attn_layer_norm"),
            ("transformer_ffn_layers.{}.linear1", "decoder.layers.{}.fc1"),
            ("transformer_ffn_layers.{}.linear2", "decoder.layers.{}.fc2"),
            ("transformer_ffn_layers.{}.norm", "decoder.layers.{}.final_layer_norm"),
            ("decoder_norm", "decoder.layernorm"),
            ("mask_embed.layers.{}", "decoder.mask_predictor.mask_embedder.{}.0"),
        ]
    ),
    ("sem_seg_head.predictor.class_embed", "class_predictor"),
    ("criterion.empty_weight", "criterion.empty_weight"),
]
TABLE = [*SWIN, *RESNET, *PIXEL_DECODER, *TRANSFORMER_DECODER]

# Names in the memory of transformers 5 to those in its files, inside the encoder.
MEMORY_TO_FILE = [
    (r"\.swin\.(encoder|embeddings)\.", r".\1."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]

# Projections that are one tensor here and three there: (ours, theirs), as the end of a name of theirs.
FUSED = [
    ("attention.self.qkv.{}", [f"attention.self.{part}.{{}}" for part in ("query", "key", "value")]),
    ("self_attn.in_proj_{}", [f"self_attn.{part}_proj.{{}}" for part in "qkv"]),
]


def is_huggingface(names: Iterable[str]) -> bool:
    """Whether the names are Hugging Face's."""
    return any(name.startswith(("model.pixel_level_module.", "model.transformer_module.")) for name in names)


def from_huggingface(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Their names to ours; what is not known keeps its name.

    Args:
        state_dict: of a model with the backbone Swin, ResNet (``transformers``' own, or timm's).
    """
    theirs = {_name_in_file(name): tensor for name, tensor in state_dict.items()}
    # Normalises the last hidden state, which segmentation does not use; only transformers 5 has it.
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith(ENCODER + "swin.layernorm.")}
    renamed = _rename(_fuse(theirs), [(their, our) for our, their in TABLE])
    timm_prefix = ENCODER + "_backbone."
    timm = {n.removeprefix(timm_prefix): t for n, t in renamed.items() if n.startswith(timm_prefix)}
    rest = {n: t for n, t in renamed.items() if not n.startswith(timm_prefix)}
    return rest | {f"backbone.{n}": t for n, t in convert_torchvision_resnet(timm).items()}


def to_huggingface(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Our names to those of their published files, which every version of ``transformers`` reads.

    Raises:
        ValueError: if some names have no counterpart, as those of a backbone that is not Swin or ResNet.
    """
    renamed = _rename(state_dict, TABLE)
    unknown = [name for name in state_dict if name in renamed and name != "criterion.empty_weight"]
    if unknown:
        raise ValueError(
            f"{len(unknown)} names have no counterpart in Hugging Face's Mask2Former, such as {unknown[:3]}; only "
            "Mask2Former's head with a Swin or ResNet backbone can be converted."
        )
    return _split(renamed)


def _name_in_file(name: str) -> str:
    if name.startswith(ENCODER):
        for pattern, replacement in MEMORY_TO_FILE:
            name = re.sub(pattern, replacement, name)
    return name


def _rename(state_dict: Mapping[str, Tensor], table: Sequence[tuple[str, str]]) -> StateDict:
    rules = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"), new) for old, new in table]
    return {_new_name(name, rules): tensor for name, tensor in state_dict.items()}


def _new_name(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        if match := pattern.match(name):
            return new.format(*match.groups()) + name[match.end() :]
    return name


def _fuse(state_dict: StateDict) -> StateDict:
    fused = dict(state_dict)
    for one, three in FUSED:
        for leaf in ("weight", "bias"):
            first, *_ = ends = [part.format(leaf) for part in three]
            for stem in [name.removesuffix(first) for name in state_dict if name.endswith("." + first)]:
                fused[stem + one.format(leaf)] = torch.cat([fused.pop(stem + end) for end in ends])
    return fused


def _split(state_dict: StateDict) -> StateDict:
    split = dict(state_dict)
    for one, three in FUSED:
        for leaf in ("weight", "bias"):
            end = one.format(leaf)
            for stem in [name.removesuffix(end) for name in state_dict if name.endswith("." + end)]:
                # Copies: files must not hold tensors that share memory.
                parts = [tensor.clone() for tensor in split.pop(stem + end).chunk(3)]
                split |= dict(zip([stem + part.format(leaf) for part in three], parts, strict=True))
    return split
