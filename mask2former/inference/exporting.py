"""From a trained model to a checked file, as a command does it."""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor

from mask2former.data.augmentation import ResizeShortestEdge, build_test_augmentations
from mask2former.export import (
    ExportFormat,
    ExportGraph,
    ExportInfo,
    InputType,
    PostProcessing,
    Quantization,
    compare_with_model,
    export_graph,
    load_exported,
    quantize_onnx,
)
from mask2former.home import given_path
from mask2former.image_io import read_image
from mask2former.inference.pictures import find_pictures
from mask2former.inference.result_files import make_folder
from mask2former.inference.weights import build_whole_model
from mask2former.modeling import MaskFormer
from mask2former.modeling.tiling import plan_tiles

__all__ = ["add_export_arguments", "check_export_arguments", "export_model"]

# Of two programs that both compute in this precision; see docs/export.md for what the errors are relative to.
_TOLERANCES = {"float32": 1e-3, "float16": 5e-2}
# Pictures of scikit-image's wheel, which need no download.
_SAMPLES = ("astronaut", "coffee", "chelsea")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to export."""
    parser.add_argument(
        "--format", default="onnx", choices=get_args(ExportFormat), help="(default: %(default)s), see docs/export.md"
    )
    parser.add_argument("--output", required=True, type=given_path, metavar="FILE", help="to write; .pt2 for aoti")
    parser.add_argument(
        "--with-postprocessing",
        default="none",
        choices=get_args(PostProcessing),
        help="what is done inside (default: %(default)s)",
    )
    parser.add_argument(
        "--input-type", default="uint8", choices=get_args(InputType), help="of the pictures (default: %(default)s)"
    )
    parser.add_argument("--half", action="store_true", help="compute in float16, except the pixel decoder")
    parser.add_argument(
        "--no-grid-sample",
        action="store_true",
        help="deformable attention without GridSample, which TensorRT and WebGPU compute wrongly; see docs/export.md",
    )
    parser.add_argument("--quantize", choices=get_args(Quantization), help="write 8-bit integers for CPUs (onnx)")
    parser.add_argument(
        "--calibration-images", type=given_path, metavar="FOLDER", help="of typical pictures, for --quantize static"
    )
    parser.add_argument(
        "--float-layers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="convolutions that --quantize leaves alone: beginnings of their parameters' names, such as backbone.stem",
    )
    parser.add_argument(
        "--images", type=given_path, metavar="PATH", help="picture or folder to check with (default: scikit-image's)"
    )
    parser.add_argument(
        "--check-pictures", type=int, default=3, metavar="N", help="how many of them at most (default: %(default)s)"
    )
    parser.add_argument(
        "--check-size",
        type=int,
        default=512,
        metavar="PIXELS",
        help="longest edge of a picture in the check (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="ERROR",
        help=f"the largest that is not a failure (default: {_TOLERANCES}, and none for 8-bit integers)",
    )


def check_export_arguments(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before a model is loaded.

    Raises:
        ValueError: they do not go together, or a file is not there.
    """
    if args.quantize and (args.format != "onnx" or args.half):
        raise ValueError("--quantize makes 8-bit ONNX of float32: choose --format onnx and leave --half out")
    if args.quantize == "static" and args.calibration_images is None:
        raise ValueError("--quantize static needs --calibration-images: a folder of typical pictures")
    if args.calibration_images is not None and args.quantize != "static":
        raise ValueError("--calibration-images are read by --quantize static only")
    if args.check_pictures < 1:
        raise ValueError(f"--check-pictures is {args.check_pictures}, expected at least 1: no file goes unchecked")
    if args.float_layers and not args.quantize:
        raise ValueError("--float-layers are read by --quantize only")
    if args.output.is_dir():
        raise ValueError(f"--output {args.output} is a folder, expected the file to write")
    if args.format == "onnx" and args.output.suffix.lower() != ".onnx":
        raise ValueError(f"--output {args.output}: the name of an ONNX file ends in .onnx, by which it is known again")
    for pictures in (args.images, args.calibration_images):
        if pictures is not None and not pictures.exists():
            raise ValueError(f"{pictures}: no such picture or folder")


def export_model(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Load, export, check, and quantise if asked to; print what was written and how far it is from the model.

    Args:
        cfg: of the model; ``MODEL.WEIGHTS`` names a checkpoint of the whole model.
        args: of :func:`add_export_arguments`.

    Raises:
        FileNotFoundError: there are no weights, or no pictures.
        ModuleNotFoundError: a package is missing.
        OSError: nothing can be written into the output's folder.
        ValueError: the model cannot be exported like this, or the file's error is above the tolerance.
    """
    model: MaskFormer = build_whole_model(cfg).eval()
    precision = "float16" if args.half else "float32"
    info = ExportInfo.from_config(
        cfg, model, postprocessing=args.with_postprocessing, input_type=args.input_type, precision=precision
    )
    graph = ExportGraph(model, args.with_postprocessing, half=args.half)
    make_folder(args.output.parent)
    _print_notes(info, args)
    exact = args.output.with_suffix(".float32.onnx") if args.quantize else args.output
    export_graph(graph, exact, args.format, info, grid_sample=not args.no_grid_sample)
    print(f"Wrote {exact} ({exact.stat().st_size / 1e6:.1f} MB)")
    batches = list(itertools.islice(_batches_of_pictures(args.images, cfg, args.check_size), args.check_pictures))
    tolerance = _TOLERANCES[precision] if args.tolerance is None else args.tolerance
    _check(exact, model, batches, tolerance)
    if args.quantize:
        calibration = _calibration_batches(args.calibration_images, cfg, info) if args.quantize == "static" else ()
        quantize_onnx(exact, args.output, args.quantize, calibration, args.float_layers)
        print(f"Wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
        # Eight bits differ visibly in the logits and hardly in the results: tools/evaluate_exported.py measures those.
        _check(args.output, model, batches, args.tolerance)


def _print_notes(info: ExportInfo, args: argparse.Namespace) -> None:
    """Tell what the model does outside of the graph, which a program that runs it must do, and who runs it wrongly."""
    if info.tile_size > 0:
        print("Note: the model is used in tiles, which the file does not cut; see docs/export.md.")
    if info.split_disconnected_things and info.postprocessing in ("panoptic", "instance"):
        print("Note: the model splits disconnected things, which post-processing inside does not; see docs/export.md.")
    if args.format == "onnx" and not (args.no_grid_sample or args.quantize):
        print("Note: for TensorRT and WebGPU, export with --no-grid-sample; see docs/export.md.")


def _check(path: Path, model: MaskFormer, batches: Sequence[Tensor], tolerance: float | None) -> None:
    """Print how far a file is from the model; an error if that is more than ``tolerance``."""
    sizes = ", ".join(f"{len(b)} of {b.shape[-1]} x {b.shape[-2]}" for b in batches)
    errors = compare_with_model(load_exported(path), model, batches)
    limit = "" if tolerance is None else f" (tolerance {tolerance:g})"
    for name, error in errors.items():
        print(f"Maximal error of the {name}: {error:.2g}{limit}")
    # Not `any(error > ...)`: a NaN is no success.
    if tolerance is not None and not all(error <= tolerance for error in errors.values()):
        raise ValueError(
            f"{path} does not compute what the model computes (pictures: {sizes}); if they are of another kind than "
            "the model was trained with, check with yours (--images)."
        )
    print(f"Checked on pictures: {sizes}")


def _calibration_batches(source: Path, cfg: CfgNode, info: ExportInfo) -> Iterator[np.ndarray]:
    """What the network will see: pictures and their mirror images, or their tiles where the model is used in tiles."""
    for batch in _batches_of_pictures(source, cfg):
        size = (batch.shape[-2], batch.shape[-1])
        tiles = [(slice(None), slice(None))]
        if 0 < info.tile_size < max(size):
            tiles = [
                tile.slices for tile in plan_tiles(size, info.tile_size, info.tile_overlap, info.size_divisibility)
            ]
        for rows, columns in tiles:
            yield batch[..., rows, columns].to(getattr(torch, info.input_type)).numpy()


def _batches_of_pictures(source: Path | None, cfg: CfgNode, longest: int | None = None) -> Iterator[Tensor]:
    """Yield each picture of a folder (or the file), resized as for a test, with its mirror image.

    Args:
        source: None takes pictures from scikit-image.
        cfg: says how the model wants its pictures.
        longest: most pixels of an edge; None does not limit it.

    Yields:
        (2, C, H, W) uint8.
    """
    resize = T.AugmentationList(build_test_augmentations(cfg))
    for picture in _pictures(source, cfg.INPUT.FORMAT):
        aug_input = T.AugInput(picture)
        resize(aug_input)
        if longest is not None and longest < max(aug_input.image.shape[:2]):
            ResizeShortestEdge(longest, longest)(aug_input)
        tensor = torch.from_numpy(np.array(aug_input.image.transpose(2, 0, 1), order="C"))
        yield torch.stack([tensor, tensor.flip(-1)])


def _pictures(source: Path | None, channels: str) -> Iterator[np.ndarray]:
    """Pictures (H, W, C) uint8 in the model's order of channels."""
    if source is None:
        try:
            import skimage.data
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError(
                "there are no pictures to check with: give --images, or pip install 'mask2former[demo]'."
            ) from e
        folder = Path(skimage.data.__file__).parent
        files = [next(folder.glob(f"{name}.*g")) for name in _SAMPLES]  # .png or .jpg
    elif source.is_dir():
        files, _ = find_pictures([str(source)])
    else:
        files = [source]
    if not files:
        raise FileNotFoundError(f"there are no pictures in {source}")
    for file in files:
        yield read_image(file, channels)
