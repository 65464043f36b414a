"""A tiny data set and model that train in milliseconds; as a script, ``train_net.py`` with both registered.

The script finds the data set's folder in the environment variable TOY_DATA, and the repository in PYTHONPATH. If
TOY_DEATH names a file that is not there, process 1 writes it in its sixth step and dies by signal 9.
"""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from panopticapi.utils import id2rgb
from PIL import Image
from torch import nn

from mask2former import MaskFormer
from mask2former.modeling.criterion import SetCriterion

THINGS, STUFF = ["dot", "bar"], ["ground"]
CLASSES = THINGS + STUFF  # contiguous ids 0, 1, 2; ids in the files are 10, 20, 30
IGNORE = 255
COLORS = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]])


def write_dataset(folder: Path, images: int = 8, height: int = 24, width: int = 32) -> None:
    """Write pictures of coloured rectangles on ground, with annotations of all three tasks; the last has no thing."""
    rng = np.random.default_rng(0)
    (folder / "panoptic").mkdir(parents=True)
    panoptic, instances = [], []
    for image_id in range(1, images + 1):
        classes = np.full((height, width), 2)
        segments = np.full((height, width), 1)
        infos = [{"id": 1, "category_id": 30, "iscrowd": 0}]
        for number in range(0 if image_id == images else 2):
            y, x = int(rng.integers(0, height - 8)), number * (width // 2) + int(rng.integers(0, width // 2 - 8))
            classes[y : y + 8, x : x + 8] = number
            segments[y : y + 8, x : x + 8] = number + 2
            infos.append({"id": number + 2, "category_id": (number + 1) * 10, "iscrowd": 0})
            mask = mask_util.encode(np.asfortranarray(segments == number + 2, dtype=np.uint8))
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": (number + 1) * 10,
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                    "bbox": [x, y, 8, 8],
                    "area": 64,
                    "iscrowd": 0,
                }
            )
        for info in infos:
            info["area"] = int((segments == info["id"]).sum())
        name = f"{image_id:03d}.png"
        pixels = COLORS[classes] + rng.integers(-30, 30, (height, width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        Image.fromarray(classes.astype(np.uint8)).save(folder / f"classes_{name}")
        Image.fromarray(id2rgb(segments)).save(folder / "panoptic" / name)
        panoptic.append({"image_id": image_id, "file_name": name, "segments_info": infos})
    categories = [{"id": (i + 1) * 10, "name": name, "isthing": int(name in THINGS)} for i, name in enumerate(CLASSES)]
    records = [{"id": p["image_id"], "file_name": p["file_name"], "height": height, "width": width} for p in panoptic]
    (folder / "panoptic.json").write_text(
        json.dumps({"images": records, "categories": categories, "annotations": panoptic})
    )
    (folder / "instances.json").write_text(
        json.dumps({"images": records, "categories": categories[:2], "annotations": instances})
    )


def register_dataset(folder: Path, name: str = "toy") -> None:
    """Register what ``write_dataset`` wrote."""
    panoptic = json.loads((folder / "panoptic.json").read_text())
    instances = json.loads((folder / "instances.json").read_text())
    contiguous = {10: 0, 20: 1, 30: 2}

    def load() -> list[dict]:
        return [
            {
                "file_name": str(folder / image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "sem_seg_file_name": str(folder / f"classes_{image['file_name']}"),
                "pan_seg_file_name": str(folder / "panoptic" / image["file_name"]),
                "segments_info": [
                    {**s, "category_id": contiguous[s["category_id"]], "isthing": s["category_id"] != 30}
                    for s in annotation["segments_info"]
                ],
                "annotations": [
                    {**a, "category_id": contiguous[a["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
                    for a in instances["annotations"]
                    if a["image_id"] == image["id"]
                ],
            }
            for image, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True)
        ]

    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=THINGS,
        stuff_classes=CLASSES,
        thing_dataset_id_to_contiguous_id={10: 0, 20: 1},
        stuff_dataset_id_to_contiguous_id=contiguous,
        ignore_label=IGNORE,
        label_divisor=1000,
        json_file=str(folder / "instances.json"),
        panoptic_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder / "panoptic"),
        evaluator_type="coco_panoptic_seg",
    )


@META_ARCH_REGISTRY.register()
class ToySegmenter(nn.Module):
    """Classifies each pixel by one convolution; its loss draws random numbers, as Mask2Former's does."""

    @configurable
    def __init__(self, *, device: str = "cpu", noise: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.classifier = nn.Conv2d(8, len(CLASSES), 1)
        self.noise = noise
        self._steps = 0
        self.to(device)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {"device": cfg.MODEL.DEVICE, "noise": cfg.MODEL.MASK_FORMER.DROPOUT > 0}

    def forward(self, samples: list[dict]) -> dict | list[dict]:
        logits = [self.classifier(self.backbone(s["image"].float()[None] / 255))[0] for s in samples]
        if self.training:
            return self._losses(samples, logits)
        return [self._predict(x) for x in logits]

    def _losses(self, samples: list[dict], logits: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        self._steps += 1
        if self._steps == 6 and "TOY_DEATH" in os.environ:
            _die_once(Path(os.environ["TOY_DEATH"]))
        losses = []
        for sample, x in zip(samples, logits, strict=True):
            target = torch.full(x.shape[-2:], -100)
            for category, mask in zip(sample["instances"].gt_classes, sample["instances"].gt_masks, strict=True):
                target[torch.as_tensor(mask)] = category
            loss = nn.functional.cross_entropy(x[None].float(), target[None])
            losses.append(loss * (0.5 + torch.rand(())) if self.noise else loss)
        mean = torch.stack(losses).mean()
        return {"loss_ce": mean, "loss_mask": mean * 0.5}

    def _predict(self, x: torch.Tensor) -> dict:
        classes = x.argmax(0)
        present = [c for c in range(len(CLASSES)) if (classes == c).any()]
        things = [c for c in present if c < len(THINGS)]
        instances = Instances(tuple(classes.shape))
        instances.pred_masks = torch.stack([classes == c for c in things]) if things else torch.zeros(0, *classes.shape)
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]] * len(things)).reshape(-1, 4))
        instances.scores = torch.linspace(0.9, 0.8, len(things))
        instances.pred_classes = torch.tensor(things, dtype=torch.long)
        segments = [{"id": c + 1, "category_id": c, "isthing": c < len(THINGS)} for c in present]
        return {"sem_seg": x, "panoptic_seg": (classes.int() + 1, segments), "instances": instances}


def _die_once(marker: Path) -> None:
    if comm.get_rank() == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class _Pool(nn.Module):
    """A backbone: the mean colour of each 4 x 4 pixels."""

    size_divisibility = 32

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"res2": nn.functional.avg_pool2d(images, 4)}


class _ColourHead(nn.Module):
    """A query for each of the three classes, which are red, green and blue, and one for nothing, ordered by place."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        colours = features["res2"]  # (N, 3, h, w)
        others = [torch.cat([colours[:, :i], colours[:, i + 1 :]], 1).amax(1) for i in range(3)]
        masks = 20 * (colours - torch.stack(others, 1))
        masks = torch.cat([masks, torch.full_like(masks[:, :1], -8.0)], 1)  # (N, 4, h, w)
        found = masks.flatten(2).amax(2) > 0
        classes = torch.tensor([[4.0, 0, 0, 0], [1, 4, 0, 0], [0, 0, 3, 1], [0, 0, 0, 6]])
        logits = torch.where(found[:, :, None], classes, classes[3])
        # The mirror image has its queries in another order.
        place = ((masks > 0) * torch.arange(masks.shape[-1])).flatten(2).sum(2) / (masks > 0).flatten(2).sum(2).clamp(1)
        order = place.argsort(1)[:, :, None]
        masks = masks.gather(1, order[..., None].expand_as(masks))
        return {"pred_logits": logits.gather(1, order.expand_as(logits)), "pred_masks": masks}


@META_ARCH_REGISTRY.register()
class ToyMaskFormer(MaskFormer):
    """Knows the colours of the toy's classes; the rest is Mask2Former's. It sees the same in a mirror image."""

    def __init__(self, cfg: CfgNode) -> None:
        test = cfg.MODEL.MASK_FORMER.TEST
        super().__init__(
            backbone=_Pool(),
            sem_seg_head=_ColourHead(),
            criterion=SetCriterion(cfg, 3),
            num_queries=4,
            object_mask_threshold=0.5,
            overlap_threshold=0.5,
            metadata=MetadataCatalog.get(cfg.DATASETS.TEST[0]),
            size_divisibility=32,
            sem_seg_postprocess_before_inference=False,
            pixel_mean=[0.0, 0.0, 0.0],
            pixel_std=[255.0, 255.0, 255.0],
            semantic_on=test.SEMANTIC_ON,
            panoptic_on=test.PANOPTIC_ON,
            instance_on=test.INSTANCE_ON,
            test_topk_per_image=4,
            tile_size=test.TILE_SIZE,
            tile_overlap=test.TILE_OVERLAP,
        )
        self.instances_are_things = True  # of its three classes two are, also where it gives instances alone
        self.one_weight = nn.Parameter(torch.zeros(1))  # that can be loaded


OPTIONS = {
    "MODEL.META_ARCHITECTURE": "ToySegmenter",
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    "DATASETS.TRAIN": "('toy',)",
    "DATASETS.TEST": "('toy',)",
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.MIN_SIZE_TRAIN": "(24, 32)",
    "INPUT.MIN_SIZE_TEST": 24,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 8,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.WARMUP_ITERS": 0,
    "SEED": 7,
}

# The real model, small.
MASK_FORMER = {
    "MODEL__META_ARCHITECTURE": "MaskFormer",
    "MODEL__PIXEL_STD": [58.0, 57.0, 57.0],
    "MODEL__BACKBONE__FREEZE_AT": 0,
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__DEPTH": 18,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
    "MODEL__RESNETS__STEM_TYPE": "basic",
    "MODEL__RESNETS__RES5_MULTI_GRID": [1, 1, 1],
    "MODEL__RESNETS__OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL__SEM_SEG_HEAD__NAME": "MaskFormerHead",
    "MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 2,
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
    "MODEL__SEM_SEG_HEAD__MASK_DIM": 64,
    "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 1,
    "MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL__MASK_FORMER__HIDDEN_DIM": 32,
    "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 32,
    "MODEL__MASK_FORMER__DEC_LAYERS": 4,
    "MODEL__MASK_FORMER__DROPOUT": 0.0,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 5,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 64,
    "MODEL__MASK_FORMER__TEST__SEMANTIC_ON": False,
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
    "INPUT__DATASET_MAPPER_NAME": "mask_former_instance",
    "INPUT__SIZE_DIVISIBILITY": 32,
    "SOLVER__AMP__ENABLED": True,
    "SOLVER__AMP__DTYPE": "bfloat16",
    "SOLVER__BASE_LR": 0.0001,
    "SOLVER__MAX_ITER": 4,
}


def options(**changes: object) -> list[str]:
    """``KEY VALUE`` pairs for the command line; dots in the keys of ``changes`` are written as two underscores."""
    changed = OPTIONS | {key.replace("__", "."): value for key, value in changes.items()}
    return [str(part) for pair in changed.items() for part in pair]


if "TOY_DATA" in os.environ:
    register_dataset(Path(os.environ["TOY_DATA"]))

if __name__ == "__main__":
    import train_net
    from mask2former.engine import launch

    args = default_argument_parser().parse_args()
    launch(train_net.main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
