"""Proposals of the learnable queries: pictures, layers, the command line."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import visualize_queries
import yaml
from detectron2.data import MetadataCatalog

REPOSITORY = Path(__file__).parents[2]


def _square(row: int, column: int, size: int) -> np.ndarray:
    mask = np.zeros((40, 50), np.uint8)
    mask[row : row + size, column : column + size] = 1
    return mask


def test_selected_proposals_are_of_different_places() -> None:
    masks = np.stack([_square(0, 0, 10), _square(1, 0, 10), _square(20, 20, 10), _square(20, 0, 10)]).astype(bool)
    assert visualize_queries.select_different(masks, 2) == [0, 2]
    assert visualize_queries.select_different(masks, 9) == [0, 2, 3]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASK2FORMER_CACHE", str(tmp_path / "cache"))
    for kind, array in (("images", np.full((64, 80, 3), 90, np.uint8)), ("instances", np.zeros((64, 80), np.uint8))):
        array[20:40, 20:40] = 1
        (tmp_path / kind).mkdir()
        assert cv2.imwrite(str(tmp_path / kind / "scene.png"), array)
    entry = {"FORMAT": "id_png", "IMAGES": str(tmp_path / "images"), "INSTANCES": str(tmp_path / "instances")}
    settings: dict[str, Any] = {
        "_BASE_": str(REPOSITORY / "configs" / "common" / "mask2former.yaml"),
        "VERSION": 2,
        "DATASETS": {"TRAIN": ["queries_scene"], "TEST": ["queries_scene"], "CUSTOM": {"queries_scene": entry}},
        "INPUT": {"DATASET_MAPPER_NAME": "coco_panoptic_lsj", "MIN_SIZE_TEST": 64},
        "MODEL": {
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "BACKBONE": {"NAME": "build_resnet_backbone"},
            "RESNETS": {
                "DEPTH": 18,
                "RES2_OUT_CHANNELS": 64,
                "STEM_TYPE": "basic",
                "RES5_MULTI_GRID": [1, 1, 1],
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            },
            "SEM_SEG_HEAD": {"NUM_CLASSES": 2, "CONVS_DIM": 64, "MASK_DIM": 64, "TRANSFORMER_ENC_LAYERS": 1},
            "MASK_FORMER": {
                "HIDDEN_DIM": 32,
                "NHEADS": 4,
                "DIM_FEEDFORWARD": 64,
                "DEC_LAYERS": 4,
                "NUM_OBJECT_QUERIES": 8,
            },
        },
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_command_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, weights = tmp_path / "out", tmp_path / "model.pth"
    model = visualize_queries.Trainer.build_model(visualize_queries.load_config(str(config)))
    torch.save(model.state_dict(), weights)
    arguments = ["visualize_queries.py", "--config-file", str(config), "--output", str(output)]
    monkeypatch.setattr("sys.argv", [*arguments, "MODEL.WEIGHTS", str(weights)])
    visualize_queries.main()
    recall = json.loads((output / "average_recall.json").read_text())
    assert list(recall) == ["learnable queries", "layer 3"]
    assert "learnable queries    AR@100" in capsys.readouterr().out
    picture = cv2.imread(str(output / "scene.png"))
    assert picture.shape[0] == 64
    assert picture.shape[1] % 80 == 0
    assert (output / "average_recall.png").is_file()


def test_a_model_that_is_not_trained_is_refused(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}, weights := tmp_path / "backbone.pth")
    arguments = ["visualize_queries.py", "--config-file", str(config), "MODEL.WEIGHTS", str(weights)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS lacks \d+ parameters of the head"):
        visualize_queries.main()


def test_proposals_are_those_of_the_layer(config: Path) -> None:
    cfg = visualize_queries.load_config(str(config))
    model = visualize_queries.Trainer.build_model(cfg).eval()
    sample = {"image": torch.rand(3, 64, 96) * 255, "height": 32, "width": 48, "file_name": "x.png"}
    found = visualize_queries.propose(model, sample, [0, 3])
    with torch.no_grad():
        predictor = model.sem_seg_head.predictor
        images = model._normalise_and_pad([sample]).tensor
        mask_features, _, _ = model.sem_seg_head.pixel_decoder.forward_features(model.backbone(images))
        embedding = predictor.mask_embed(predictor.decoder_norm(predictor.query_feat.weight))
        logits = torch.einsum("qc,chw->qhw", embedding, mask_features[0])
        resized = torch.nn.functional.interpolate(logits[None], size=(64, 96), mode="bilinear")
        resized = torch.nn.functional.interpolate(resized, size=(32, 48), mode="bilinear")[0]
    expected = {mask.tobytes() for mask in (resized > 0).numpy() if mask.any()}
    assert {mask.tobytes() for mask in found[0][0]} == expected
    assert (np.diff(found[0][1]) <= 0).all()
    final = model.sem_seg_head(model.backbone(images))
    assert not predictor.training
    assert "aux_outputs" not in final
    assert len(found[3][0]) <= 8
    with pytest.raises(ValueError, match=r"no predictions of the layers \[7\]; the model has them of \[0, 1, 2, 3\]"):
        visualize_queries.propose(model, sample, [7])


def test_queries_that_are_not_learnt_propose_nothing(config: Path) -> None:
    cfg = visualize_queries.load_config(str(config), ["MODEL.MASK_FORMER.LEARNABLE_QUERY_FEATURES", "False"])
    model = visualize_queries.Trainer.build_model(cfg).eval()
    sample = {"image": torch.rand(3, 32, 32) * 255, "height": 32, "width": 32, "file_name": "x.png"}
    with pytest.raises(ValueError, match=r"no predictions of the layers \[0\]; the model has them of \[1, 2, 3\]"):
        visualize_queries.propose(model, sample, [0, 3])


def test_data_set_without_annotations_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visualize_queries.Trainer, "build_test_loader", lambda *_: [])
    MetadataCatalog.get("queries_nothing").evaluator_type = "sem_seg"
    cfg = visualize_queries.load_config(str(config), ["DATASETS.TEST", "('queries_nothing',)"])
    with pytest.raises(ValueError, match="'queries_nothing' names no file of COCO annotations"):
        visualize_queries.analyse(cfg, None, visualize_queries.argparse.Namespace())
