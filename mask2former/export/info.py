"""What an exported file says about itself, so that a program without the configuration can use it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from ..data.class_metadata import metadata_of_config, metadata_to_json
from ..modeling.mask_former import MaskFormer
from .graph import InputType, PostProcessing, thing_classes_of

__all__ = ["INFO_KEY", "ExportInfo"]

# Under this name the JSON text is in ONNX's metadata_props and in the extra files of PyTorch's archives.
INFO_KEY = "mask2former"


@dataclass(frozen=True)
class ExportInfo:
    """Facts of an exported model.

    Attributes:
        postprocessing: what is done inside; see :class:`~mask2former.export.graph.ExportGraph`.
        input_type: of the images' values, 0..255.
        channels: their order, "RGB", "BGR" or "L".
        precision: "float32", "float16", "int8 dynamic" or "int8 static".
        class_names: K, in the order of the class ids.
        thing_classes: which of the ids are countable; all, if the data set does not tell.
        pixel_mean: what the graph subtracts from each channel.
        pixel_std: what it divides by then.
        size_divisibility: it pads to a multiple of this.
        test_scale: above 0, the model expects pictures resized by this factor; otherwise, as said by the next two.
        test_shortest_edge: pixels of a picture's shorter edge; 0 leaves pictures alone.
        test_longest_edge: most pixels of the longer one.
        object_mask_threshold: panoptic; queries whose best class is less probable take no part.
        overlap_threshold: panoptic; a query that wins less than this share of its own mask gives no segment.
        max_instances: R, most instances of a picture.
        num_queries: Q.
        tasks: what the model was made for, of "panoptic", "instance" and "semantic", in this order.
        resize_before_inference: semantic; resize mask logits, not class scores, to the picture's size.
        split_disconnected_things: outside of the graph, each connected region of a thing's mask becomes an instance.
        tile_size: above 0, larger pictures are given to the graph in tiles of this side.
        tile_overlap: least overlap of tiles.
        device: "cpu" or "cuda", which PyTorch's formats are bound to.
        metadata: of the data set, as :func:`~mask2former.data.class_metadata.metadata_to_json` describes it.
    """

    postprocessing: PostProcessing
    input_type: InputType
    channels: str
    precision: str
    class_names: list[str]
    thing_classes: list[int]
    pixel_mean: list[float]
    pixel_std: list[float]
    size_divisibility: int
    test_scale: float
    test_shortest_edge: int
    test_longest_edge: int
    object_mask_threshold: float
    overlap_threshold: float
    max_instances: int
    num_queries: int
    tasks: list[str]
    resize_before_inference: bool
    split_disconnected_things: bool
    tile_size: int
    tile_overlap: int
    device: str
    metadata: dict[str, Any]

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: MaskFormer, *, postprocessing: PostProcessing, input_type: InputType, precision: str
    ) -> "ExportInfo":
        """Describe the export of a configuration's model."""
        num_classes = model.num_classes
        things = thing_classes_of(model)
        return cls(
            postprocessing=postprocessing,
            input_type=input_type,
            channels=cfg.INPUT.FORMAT,
            precision=precision,
            class_names=_class_names(model.metadata, num_classes),
            thing_classes=list(range(num_classes)) if things is None else things,
            pixel_mean=list(map(float, cfg.MODEL.PIXEL_MEAN)),
            pixel_std=list(map(float, cfg.MODEL.PIXEL_STD)),
            size_divisibility=model.size_divisibility,
            test_scale=cfg.INPUT.TEST_SCALE,
            test_shortest_edge=cfg.INPUT.MIN_SIZE_TEST,
            test_longest_edge=cfg.INPUT.MAX_SIZE_TEST,
            object_mask_threshold=model.object_mask_threshold,
            overlap_threshold=model.overlap_threshold,
            max_instances=min(model.test_topk_per_image, model.num_queries * num_classes),
            num_queries=model.num_queries,
            tasks=[name for name in ("panoptic", "instance", "semantic") if getattr(model, f"{name}_on")],
            resize_before_inference=model.sem_seg_postprocess_before_inference,
            split_disconnected_things=model.split_disconnected_things,
            tile_size=cfg.MODEL.MASK_FORMER.TEST.TILE_SIZE,
            tile_overlap=cfg.MODEL.MASK_FORMER.TEST.TILE_OVERLAP,
            device=model.device.type,
            # Of what is tested on, as results are named; the model's own knows which classes are things.
            metadata=metadata_to_json(model.metadata) | metadata_to_json(metadata_of_config(cfg)),
        )

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: Any) -> "ExportInfo":
        """Read what is stored in the file ``path``.

        Raises:
            ValueError: if it is not this project's export.
        """
        try:
            return cls(**json.loads(text or ""))
        except (TypeError, ValueError):
            raise ValueError(
                f"{path} is not a model that this version exported: what it says of itself is {text!r}. Export it "
                "again with tools/export_model.py."
            ) from None


def _class_names(metadata: Any, num_classes: int) -> list[str]:
    """Names of all classes; an instance model's are the things, any other's are listed as stuff."""
    for key in ("stuff_classes", "thing_classes"):
        names = metadata.get(key) or []
        if len(names) == num_classes:
            return list(names)
    return [str(index) for index in range(num_classes)]
