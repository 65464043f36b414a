"""From a trained model to one that gives the same results sooner."""

import copy
import logging
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...ops.linear import has_native_float32
from ...processors import is_nvidia
from ..mask_former import MaskFormer
from .batch_norm import fold_batch_norms
from .bfloat16 import cpu_has_bfloat16, store_in_bfloat16
from .cuda_graphs import Network, record_graphs
from .frequent_sizes import GraphsOfFrequentSizes
from .fused_blocks import fuse_blocks
from .joint_keys import join_keys
from .kept_positions import keep_position_encodings
from .layers import use_faster_layers, use_faster_linear_layers, use_plain_layers
from .mask_features import fold_mask_features

__all__ = ["Compile", "Dtype", "optimize_for_inference"]

_logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16"]
Compile = Literal["none", "default", "reduce-overhead"]


def optimize_for_inference(
    model: MaskFormer, *, dtype: Dtype = "float32", compile_mode: Compile = "none", cuda_graphs: bool = True
) -> MaskFormer:
    """A faster copy of a trained model, for inference alone.

    Batch norms are folded into convolutions, and the convolution of the per-pixel embedding into the queries' network.
    Convolutions compute in the memory format ``channels_last``, which is that of the Transformers' tokens too. In
    float32 on a CPU, those of 3x3 pixels do it by Winograd's algorithm, and those of 1x1 pixels and linear layers by
    oneDNN. On a GPU, the masked attention's keys and values are computed for all layers at once, and in bfloat16 a ReLU
    and the sum before it are part of the convolution. Position encodings are kept for the next image of that size.

    Args:
        model: in evaluation mode, on its device. It stays as it is; weights that need no change are shared with it, so
            that the copy is of no use once the model is trained on: make another then.
        dtype: "bfloat16" computes convolutions and matrix products in it, by autocast; results are then not the same.
        compile_mode: "default" passes backbone and head through ``torch.compile`` together; "reduce-overhead", for GPUs
            and images of few sizes, also records a CUDA graph for each (:func:`record_graphs`). Both take a minute or
            so at first use.
        cuda_graphs: on NVIDIA's GPUs and without compilation, record a CUDA graph for a size of images that comes often
            (:class:`GraphsOfFrequentSizes`), because Python can take longer to launch kernels than a GPU to run them.

    Raises:
        ValueError: if the model is not a :class:`MaskFormer`, in training mode or with weights of convolutions that are
            no parameters, an argument is none of these, or there is no GPU for CUDA graphs.
    """
    _check(model, dtype, compile_mode)
    fast = _copy_sharing_tensors(model)
    fast.__dict__.pop("run_network", None)  # of a model that is recorded in training, or optimised
    use_plain_layers(fast)  # of a trained model: what follows which convolution is seen by PyTorch's function for them
    fold_batch_norms(fast, lambda: fast.sem_seg_head(fast.backbone(_small_image(fast))))
    fold_mask_features(fast.sem_seg_head)
    if model.device.type == "cuda":
        join_keys(fast.sem_seg_head)
    if model.device.type == "cuda" or dtype == "bfloat16":
        fuse_blocks(fast.backbone)
    for module in fast.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = _constant(module.weight.contiguous(memory_format=torch.channels_last))
    if dtype == "bfloat16":
        store_in_bfloat16(fast)
        if model.device.type == "cpu":
            use_faster_linear_layers(fast)
    elif has_native_float32(_small_image(fast)):
        use_faster_layers(fast, trained=False)
    keep_position_encodings(fast, getattr(torch, dtype))
    fast.criterion = None  # nothing that has been folded could be trained
    # The method of another object with the same modules, so that the model is freed when its last user is gone.
    network = OptimizedNetwork(copy.copy(fast), dtype, compile_mode, cuda_graphs)
    fast.run_network = network  # type: ignore[method-assign]  # in this copy alone
    return fast


def _check(model: nn.Module, dtype: str, compile_mode: str) -> None:
    if not isinstance(model, MaskFormer):
        raise ValueError(
            f"only MaskFormer models can be optimised for inference, not {type(model).__name__}; leave "
            "MODEL.INFERENCE as it is."
        )
    if model.training:
        raise ValueError("the model is in training mode, in which none can be optimised; call model.eval() first.")
    computed = [k for k, x in model.named_modules() if isinstance(x, nn.Conv2d) and "weight" not in x._parameters]
    if computed:
        raise ValueError(
            f"the weights of {computed[0]} are computed anew for each image, as pruning and parametrizations do it, "
            "so no batch norm can become part of them; make them permanent first, by torch.nn.utils.prune.remove or "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    for name, value, known in (("DTYPE", dtype, get_args(Dtype)), ("COMPILE", compile_mode, get_args(Compile))):
        if value not in known:
            raise ValueError(f"MODEL.INFERENCE.{name} is {value!r}, expected one of {', '.join(known)}.")
    if compile_mode == "reduce-overhead" and model.device.type != "cuda":
        raise ValueError(
            f"MODEL.INFERENCE.COMPILE is 'reduce-overhead', which records CUDA graphs, but the model is on "
            f"{model.device.type!r}; choose 'default', or MODEL.DEVICE 'cuda'."
        )
    if dtype == "bfloat16" and model.device.type == "cpu" and not cpu_has_bfloat16():
        _logger.warning(
            "MODEL.INFERENCE.DTYPE is 'bfloat16', for which this processor has no units: images take ten times as long "
            "as in float32, or more."
        )


def _copy_sharing_tensors(model: MaskFormer) -> MaskFormer:
    shared = [*model.parameters(), *model.buffers(), model.metadata]
    return copy.deepcopy(model, {id(x): x for x in shared})


def _small_image(model: MaskFormer) -> Tensor:
    side = 2 * max(model.size_divisibility, 32)
    return model.pixel_mean.new_zeros(1, len(model.pixel_mean), side, side)


def _constant(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)


class OptimizedNetwork:
    """What ``MaskFormer.run_network`` becomes. Copies run the copied modules, and compile and record anew.

    Args:
        model: whose method it is, from normalised, padded images (N, 3, H, W) to predictions.
        dtype: as in :func:`optimize_for_inference`.
        compile_mode: likewise.
        cuda_graphs: likewise.
    """

    def __init__(self, model: MaskFormer, dtype: Dtype, compile_mode: Compile, cuda_graphs: bool) -> None:
        self._arguments = model, dtype, compile_mode, cuda_graphs
        self._network = model.run_network if dtype == "float32" else _in_bfloat16(model.run_network)
        if compile_mode != "none":
            # A CUDA graph has one size. Otherwise sizes become symbols when the second one comes.
            has_graphs = compile_mode == "reduce-overhead"
            compiled = torch.compile(self._network, fullgraph=True, dynamic=False if has_graphs else None)
            self._network = record_graphs(compiled) if has_graphs else compiled
        elif cuda_graphs and is_nvidia(model.device):
            self._network = GraphsOfFrequentSizes(self._network, model)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """As ``network``."""
        return self._network(images)


def _in_bfloat16(network: Network) -> Network:
    def run(images: Tensor) -> dict[str, Any]:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return network(images)

    return run
