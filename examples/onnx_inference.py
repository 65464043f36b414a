#!/usr/bin/env python
"""Segment pictures with an exported ONNX file. Needs NumPy, Pillow and ONNX Runtime, and nothing else: no PyTorch.

Example::

    python examples/onnx_inference.py model.onnx street.jpg --output out/

writes ``out/street.png``, the picture with its segments in colours, and ``out/street.json``, the segments. The file
tells by itself how it wants its pictures and what it gives, so this works with every ONNX file of
``tools/export_model.py``, whatever its ``--with-postprocessing``.
"""

import argparse
import colorsys
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

Segments = list[dict[str, Any]]


class Segmenter:
    """An exported model, as a function from pictures to segments."""

    def __init__(self, path: str | Path, threshold: float = 0.5) -> None:
        """
        Args:
            path: an ONNX file.
            threshold: least score of an instance, for files with instance post-processing.
        """
        self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        text = self.session.get_modelmeta().custom_metadata_map.get("mask2former")
        if text is None:
            raise ValueError(f"{path} was not written by tools/export_model.py: it does not describe itself.")
        self.info = json.loads(text)
        self.threshold = threshold

    def __call__(self, picture: Image.Image) -> tuple[np.ndarray, Segments]:
        """Segment a picture.

        Returns:
            Segment ids (height, width) int32, 0 where there is none, and each segment's ``id``, ``class``, ``score``
            (None if the model gives none) and ``area`` in pixels of the picture.
        """
        images = self._prepare(picture)
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, {"images": images}), strict=True))
        size = (picture.height, picture.width)
        one = {name: output[0] for name, output in outputs.items()}  # a batch of one
        finish = getattr(self, f"_finish_{self.info['postprocessing']}")
        ids, found = finish(one, images.shape[-2:], size)
        segments = []
        for segment_id, class_id, score in found:
            area = int((ids == segment_id).sum())
            if area:
                name = self.info["class_names"][class_id]
                segments.append({"id": segment_id, "class": name, "score": score, "area": area})
        return ids.astype(np.int32), segments

    def _prepare(self, picture: Image.Image) -> np.ndarray:
        """The network's input (1, C, H, W): resized as in evaluation, channels in the model's order."""
        info = self.info
        picture = picture.convert("L" if info["channels"] == "L" else "RGB")
        width, height = picture.size
        scale = info["test_scale"]
        if scale <= 0 and info["test_shortest_edge"] == 0:
            scale = 1.0
        elif scale <= 0:
            longest = info["test_longest_edge"] / max(height, width)
            scale = min(info["test_shortest_edge"] / min(height, width), longest)
        size = (int(width * scale + 0.5), int(height * scale + 0.5))
        if info["split_disconnected_things"] and info["postprocessing"] != "semantic":
            warnings.warn(
                "the model makes an instance of each connected region of a thing's mask, which this example does not; "
                "the result will be worse than that of mask2former.load",
                stacklevel=2,
            )
        if 0 < info["tile_size"] < max(size):
            warnings.warn(
                f"the model is used in tiles of {info['tile_size']} pixels, which this example does not cut; of a "
                f"picture of {size[0]} x {size[1]} the result will be worse than that of mask2former.load",
                stacklevel=2,
            )
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).reshape(size[1], size[0], -1)
        if info["channels"] == "BGR":
            pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(info["input_type"])

    def _finish_none(
        self, outputs: dict[str, np.ndarray], network_size: tuple[int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray, list[tuple[int, int, float | None]]]:
        """Panoptic: each pixel goes to the query with the highest class times mask probability."""
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        labels, scores = probabilities.argmax(-1), probabilities.max(-1)
        no_object = logits.shape[-1] - 1
        kept = np.flatnonzero((labels != no_object) & (scores > self.info["object_mask_threshold"]))
        if not len(kept):
            return np.zeros(size, np.int32), []
        logits = self._to_picture(masks[kept], network_size, size)
        inside = 1 / (1 + np.exp(-np.maximum(logits, -80)))  # whose exponential float32 holds
        winner = (scores[kept, None, None] * inside).argmax(0)
        ids = np.zeros(size, np.int32)
        found: list[tuple[int, int, float | None]] = []
        stuff: dict[int, int] = {}
        for index, query in enumerate(kept):
            own, won = inside[index] >= 0.5, winner == index
            label = int(labels[query])
            if not (won & own).any() or won.sum() / own.sum() < self.info["overlap_threshold"]:
                continue
            segment_id = stuff.get(label, len(found) + 1)
            if segment_id > len(found):
                found.append((segment_id, label, float(scores[query])))
            if label not in self.info["thing_classes"]:
                stuff[label] = segment_id
            ids[won & own] = segment_id
        return ids, found

    def _to_picture(self, maps: np.ndarray, network_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Resize maps (Q, h, w) to the padded input, cut the padding off, and resize to the picture's size."""
        divisor = self.info["size_divisibility"]
        matrices = []
        for length, unpadded, wanted in zip(maps.shape[1:], network_size, size, strict=True):
            padded = -(-unpadded // divisor) * divisor
            # All three steps are linear, so one matrix a side does them together.
            matrices.append(resize_matrix(unpadded, wanted) @ resize_matrix(length, padded)[:unpadded])
        rows, columns = matrices
        return rows @ maps @ columns.T

    def _finish_semantic(
        self, outputs: dict[str, np.ndarray], network_size: tuple[int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray, list[tuple[int, int, float | None]]]:
        rows, columns = (resize_matrix(a, b) for a, b in zip(network_size, size, strict=True))
        classes = (rows @ outputs["sem_seg"] @ columns.T).argmax(0)
        return classes + 1, [(int(c) + 1, int(c), None) for c in np.unique(classes)]

    def _finish_panoptic(
        self, outputs: dict[str, np.ndarray], network_size: tuple[int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray, list[tuple[int, int, float | None]]]:
        found: dict[int, tuple[int, int, float | None]] = {}
        fields = (outputs[name].tolist() for name in ("segment_ids", "segment_classes", "segment_scores"))
        for segment_id, class_id, score in zip(*fields, strict=True):
            if segment_id and segment_id not in found:  # stuff: by its first query
                found[segment_id] = (segment_id, class_id, score)
        return resize_nearest(outputs["panoptic_seg"], size), list(found.values())

    def _finish_instance(
        self, outputs: dict[str, np.ndarray], network_size: tuple[int, int], size: tuple[int, int]
    ) -> tuple[np.ndarray, list[tuple[int, int, float | None]]]:
        """Instances may overlap: the surest are painted last."""
        ids = np.zeros(size, np.int32)
        sure = [index for index in np.argsort(outputs["scores"]) if outputs["scores"][index] >= self.threshold]
        found: list[tuple[int, int, float | None]] = []
        for index in sure:
            ids[resize_nearest(outputs["masks"][index], size)] = len(found) + 1
            found.append((len(found) + 1, int(outputs["classes"][index]), float(outputs["scores"][index])))
        return ids, found


def resize_matrix(length: int, wanted: int) -> np.ndarray:
    """Bilinear interpolation between pixel centres, from ``length`` pixels to ``wanted``: (wanted, length) float32."""
    position = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    left = np.floor(position).astype(int)
    matrix = np.zeros((wanted, length), np.float32)
    matrix[np.arange(wanted), left] = 1 - (position - left)
    matrix[np.arange(wanted), np.minimum(left + 1, length - 1)] += position - left
    return matrix


def resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) to ``size`` without new values."""
    rows, columns = (((np.arange(b) + 0.5) * a / b).astype(int) for a, b in zip(values.shape, size, strict=True))
    return values[rows[:, None], columns]


def read_picture(path: Path) -> Image.Image:
    """A picture as the model knows them: upright, and of 8 bits, to which what has more is stretched."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if not picture.mode.startswith(("I", "F")):
        return picture
    pixels = np.asarray(picture).astype(np.float64)
    measured = pixels[np.isfinite(pixels)] if np.isfinite(pixels).any() else np.zeros(1)
    low, high = np.percentile(measured, (0.1, 99.9))
    if high <= low:  # nearly constant
        low, high = measured.min(), measured.max()
    pixels = np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)
    scaled = (pixels - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.clip(scaled.round(), 0, 255).astype(np.uint8))


def draw(picture: Image.Image, ids: np.ndarray) -> Image.Image:
    """The picture with each segment in a colour of its own."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    for segment_id in np.unique(ids[ids > 0]):
        # Steps of the golden ratio keep the hues of any number of segments apart.
        color = np.array(colorsys.hsv_to_rgb(segment_id * 0.618034 % 1, 0.8, 1.0)) * 255
        mask = ids == segment_id
        pixels[mask] = 0.45 * pixels[mask] + 0.55 * color
    return Image.fromarray(pixels.round().astype(np.uint8))


def main() -> int:
    """Run the command line; returns 1 where a picture could not be read, and 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="ONNX file of tools/export_model.py")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an instance")
    args = parser.parse_args()
    drawings = [args.output / f"{path.stem}.png" for path in args.pictures]
    if len(set(drawings)) < len(drawings) or {p.resolve() for p in drawings} & {p.resolve() for p in args.pictures}:
        parser.error("a drawing would overwrite a picture or another drawing; give another --output, or one at a time")
    segmenter = Segmenter(args.model, args.threshold)
    args.output.mkdir(parents=True, exist_ok=True)
    unread = 0
    for path, drawing in zip(args.pictures, drawings, strict=True):
        try:
            picture = read_picture(path)
        except OSError as error:
            print(f"error: {path}: cannot be read ({error})", file=sys.stderr)
            unread += 1
            continue
        ids, segments = segmenter(picture)
        draw(picture, ids).save(drawing)
        drawing.with_suffix(".json").write_text(json.dumps(segments, indent=1))
        print(f"{path}: {len(segments)} segments -> {drawing}")
    return min(unread, 1)


if __name__ == "__main__":
    sys.exit(main())
