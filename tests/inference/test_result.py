"""Results in their own form, and in those of other tools."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

import mask2former as m2f
from mask2former.inference.result_files import plan_outputs, plan_video_outputs
from tests.colour_model import DATASET

Save = Callable[..., Path]
TASKS = ("panoptic", "instance", "semantic")


@pytest.fixture
def result(config_file: Path, save: Save) -> m2f.Result:
    """Of the colour model's picture, (48, 64): an apple (20 x 20 at 4, 6), a berry (10 x 8 at 40, 30) and grass."""
    return m2f.load(config_file).predict(save("fruit.png"), task=TASKS)


@pytest.fixture
def masks(picture: np.ndarray) -> dict[str, np.ndarray]:
    return {name: picture[..., channel] > 128 for name, channel in (("apple", 2), ("berry", 0), ("grass", 1))}


class TestOwnForm:
    def test_in_one_line(self, result: m2f.Result) -> None:
        assert repr(result) == f"Result({result.path}: 48 x 64, 3 panoptic segments, 2 instances, semantic)"

    def test_of_an_array_and_one_task(self, config_file: Path, picture: np.ndarray) -> None:
        result = m2f.load(config_file).predict(picture, task="instance")
        assert repr(result) == "Result(48 x 64, 2 instances)"

    def test_a_notebook_shows_the_drawing(self, result: m2f.Result) -> None:
        shown = cv2.imdecode(np.frombuffer(result._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(shown[:, :, ::-1], result.draw())

    def test_panoptic(self, result: m2f.Result, masks: dict[str, np.ndarray]) -> None:
        panoptic = result.panoptic
        assert (panoptic.ids.shape, panoptic.ids.dtype) == ((48, 64), np.int32)
        found = [(s.id, s.category_id, s.name, s.isthing, s.score, s.area) for s in panoptic.segments]
        assert found == [
            (1, 0, "apple", True, 0.9, 400),
            (2, 1, "berry", True, 0.6, 80),
            (3, 2, "grass", False, 0.95, 48 * 64 - 480),
        ]
        for segment in panoptic.segments:
            np.testing.assert_array_equal(panoptic.mask(segment), masks[segment.name])

    def test_instances(self, result: m2f.Result, masks: dict[str, np.ndarray]) -> None:
        instances = result.instances
        assert len(instances) == 2
        assert instances.names == ["apple", "berry"]
        assert instances.classes.tolist() == [0, 1]
        assert instances.scores.tolist() == pytest.approx([0.9, 0.6])
        assert (instances.boxes.shape, instances.boxes.dtype) == ((2, 4), np.float32)
        for name, mask, rle in zip(instances.names, instances.masks, instances.rle(), strict=True):
            np.testing.assert_array_equal(mask, masks[name])
            np.testing.assert_array_equal(mask_util.decode(rle), masks[name])

    def test_semantic(self, result: m2f.Result, masks: dict[str, np.ndarray]) -> None:
        semantic = result.semantic
        assert semantic.names == ["apple", "berry", "grass"]
        assert semantic.scores.shape == (3, 48, 64)
        assert semantic.labels.dtype == np.int32
        for label, name in enumerate(semantic.names):
            np.testing.assert_array_equal(semantic.labels == label, masks[name])

    def test_what_was_not_predicted(self, config_file: Path, picture: np.ndarray) -> None:
        only_panoptic = m2f.load(config_file).predict(picture)
        with pytest.raises(
            ValueError, match=r'no instance result.* asked for panoptic; ask for it with task="instance"'
        ):
            _ = only_panoptic.instances
        with pytest.raises(ValueError, match="no semantic result"):
            only_panoptic.to_coco(task="semantic")

    def test_what_is_no_task(self, result: m2f.Result) -> None:
        with pytest.raises(ValueError, match="task is 'instances', expected one of panoptic, instance, semantic"):
            result.to_coco(task="instances")

    def test_no_segment(self, config_file: Path) -> None:
        black = m2f.load(config_file).predict(
            np.zeros((8, 9, 3), np.uint8), task=("panoptic", "instance"), threshold=1.0
        )
        assert black.panoptic.segments == []
        assert not black.panoptic.ids.any()
        assert black.instances.masks.shape == (0, 8, 9)
        assert black.instances.rle() == []
        assert black.to_coco() == black.to_coco(task="instance") == []
        np.testing.assert_array_equal(black.draw(), black.image)


class TestCoco:
    @pytest.mark.parametrize("task", TASKS)
    def test_pycocotools_reads_it(self, result: m2f.Result, masks: dict[str, np.ndarray], task: str) -> None:
        annotations = json.loads(json.dumps(result.to_coco(7, task=task)))
        names = ["apple", "berry", "grass"][: 2 if task == "instance" else 3]
        assert [a["category_name"] for a in annotations] == names
        assert {a["image_id"] for a in annotations} == {7}
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 7, "height": 48, "width": 64}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [],
        }
        truth.createIndex()
        assert [a["area"] for a in annotations] == [masks[name].sum() for name in names]
        for annotation in truth.loadRes(annotations).dataset["annotations"]:
            expected = masks[annotation["category_name"]]
            np.testing.assert_array_equal(truth.annToMask(annotation), expected)
            assert annotation["bbox"] == list(cv2.boundingRect(expected.astype(np.uint8)))

    def test_category_ids_are_the_data_sets_own(self, result: m2f.Result, monkeypatch: pytest.MonkeyPatch) -> None:
        metadata = MetadataCatalog.get(DATASET)
        monkeypatch.setattr(metadata, "thing_dataset_id_to_contiguous_id", {17: 0, 30: 1}, raising=False)
        monkeypatch.setattr(metadata, "stuff_dataset_id_to_contiguous_id", {17: 0, 30: 1, 92: 2}, raising=False)
        for task, ids in (("panoptic", [17, 30, 92]), ("instance", [17, 30]), ("semantic", [17, 30, 92])):
            assert [a["category_id"] for a in result.to_coco(task=task)] == ids


@dataclass
class FakeDetections:
    """The arguments that supervision.Detections takes."""

    xyxy: Any
    mask: Any = None
    confidence: Any = None
    class_id: Any = None
    data: Any = None

    @classmethod
    def empty(cls) -> "FakeDetections":
        return cls(np.empty((0, 4)))


class TestSupervision:
    @pytest.fixture
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("supervision")
        module.Detections = FakeDetections
        monkeypatch.setitem(sys.modules, "supervision", module)

    @pytest.mark.usefixtures("_installed")
    def test_arguments(self, result: m2f.Result, masks: dict[str, np.ndarray]) -> None:
        detections = result.to_supervision(task="instance")
        assert detections.xyxy.tolist() == [[4, 6, 24, 26], [40, 30, 50, 38]]
        assert detections.confidence.tolist() == pytest.approx([0.9, 0.6])
        assert detections.class_id.tolist() == [0, 1]
        assert detections.data["class_name"].tolist() == ["apple", "berry"]
        assert detections.mask.dtype == bool
        np.testing.assert_array_equal(detections.mask, [masks["apple"], masks["berry"]])

    @pytest.mark.usefixtures("_installed")
    def test_semantic_has_no_confidence(self, result: m2f.Result) -> None:
        assert result.to_supervision(task="semantic").confidence is None

    @pytest.mark.usefixtures("_installed")
    def test_nothing_found(self, config_file: Path, picture: np.ndarray) -> None:
        found = m2f.load(config_file).predict(picture, task="instance", threshold=1.0).to_supervision()
        assert len(found.xyxy) == 0

    def test_missing(self, result: m2f.Result, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(ModuleNotFoundError, match="pip install supervision"):
            result.to_supervision()

    def test_the_real_package(self, result: m2f.Result) -> None:
        supervision = pytest.importorskip("supervision")
        detections = result.to_supervision(task="panoptic")
        assert isinstance(detections, supervision.Detections)
        assert detections.area.tolist() == [400, 80, 48 * 64 - 480]


class TestFiles:
    def test_save_into_a_folder(self, result: m2f.Result, tmp_path: Path) -> None:
        files = result.save(tmp_path / "out")
        assert [path.name for path in (files.drawing, files.json, files.ids)] == [
            "fruit.png",
            "fruit.json",
            "fruit_ids.png",
        ]
        np.testing.assert_array_equal(cv2.imread(str(files.drawing))[:, :, ::-1], result.draw())
        np.testing.assert_array_equal(cv2.imread(str(files.ids), cv2.IMREAD_UNCHANGED), result.panoptic.ids)
        record = json.loads(files.json.read_text())
        assert (record["file_name"], record["task"], record["id_map"]) == ("fruit.png", "panoptic", "fruit_ids.png")
        assert [s["score"] for s in record["segments"]] == [0.9, 0.6, 0.95]

    def test_more_segments_than_sixteen_bits_can_number(
        self, result: m2f.Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids, infos = result.predictions["panoptic_seg"]
        infos = [{**info, "id": info["id"] + 70_000} for info in infos]
        predictions = {"panoptic_seg": (torch.where(ids > 0, ids + 70_000, 0), infos)}
        files = m2f.Result(result.image, ("panoptic",), predictions, result.metadata, result.path).save(
            tmp_path / "out"
        )
        assert not files.ids.exists()
        assert "fruit_ids.png: is not written, for there are 70003 segments" in caplog.text
        record = json.loads(files.json.read_text())
        assert record["id_map"] is None
        assert [segment["area"] for segment in record["segments"]] == [400, 80, 48 * 64 - 480]

    def test_save_into_the_home_folder(
        self, result: m2f.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert result.save("~/out").drawing == tmp_path / "out" / "fruit.png"
        assert (tmp_path / "out" / "fruit.png").is_file()

    def test_save_as_a_file(self, result: m2f.Result, tmp_path: Path) -> None:
        files = result.save(tmp_path / "deep" / "drawn.jpg", task="instance")
        assert {path.name for path in (tmp_path / "deep").iterdir()} == {"drawn.jpg", "drawn.json"}
        assert json.loads(files.json.read_text())["task"] == "instance"

    def test_save_an_array(self, config_file: Path, picture: np.ndarray, tmp_path: Path) -> None:
        m2f.load(config_file).predict(picture).save(tmp_path / "out")
        assert (tmp_path / "out" / "picture.json").exists()

    def test_never_overwrites_the_picture(self, result: m2f.Result) -> None:
        before = result.path.read_bytes()
        with pytest.raises(ValueError, match=r"fruit\.png would be overwritten"):
            result.save(result.path.parent)
        assert result.path.read_bytes() == before

    def test_drawings_differ_by_task(self, result: m2f.Result) -> None:
        drawings = [result.draw(task=task) for task in TASKS]
        assert all(drawing.shape == (48, 64, 3) for drawing in drawings)
        np.testing.assert_array_equal(drawings[1][0], result.image[0])  # instances leave the grass alone
        assert np.any(drawings[0] != drawings[1])

    def test_what_was_found_is_drawn_however_unsure(self, result: m2f.Result, masks: dict[str, np.ndarray]) -> None:
        result.predictions["instances"].scores = torch.full((2,), 0.01)
        changed = (result.draw(task="instance") != result.image).any(-1)
        assert all(changed[masks[name]].mean() > 0.9 for name in ("apple", "berry"))

    def test_several_pictures_do_not_fit_into_one_file(self) -> None:
        with pytest.raises(ValueError, match=r"out\.PNG is one file, but there are 2 pictures"):
            plan_outputs([Path("a.png"), Path("b.png")], Path("out.PNG"))

    def test_a_folder_may_be_called_like_a_picture(self, tmp_path: Path) -> None:
        folder = tmp_path / "out.png"
        folder.mkdir()
        planned = plan_outputs([Path("a.JPG"), Path("b.webp2")], folder)
        assert [files.drawing for files in planned] == [folder / "a.JPG", folder / "b.png"]
        assert plan_video_outputs([Path("a.avi")], folder) == [folder / "a.mp4"]

    @pytest.mark.timeout(20)  # 0.5 s; minutes where every name is tried from the first one on
    def test_many_of_one_name_get_numbers(self) -> None:
        planned = plan_outputs([Path(f"{folder}/a.png") for folder in range(5000)], Path("out"))
        assert [files.drawing.name for files in planned[:3]] == ["a.png", "a_2.png", "a_3.png"]
        assert len({path for files in planned for path in files.paths}) == 15000

    def test_a_name_with_a_number_may_be_taken(self) -> None:
        planned = plan_outputs([Path("x/a_2.png"), Path("x/a.png"), Path("y/a.png"), Path("z/a.jpg")], Path("out"))
        assert [files.drawing.name for files in planned] == ["a_2.png", "a.png", "a_3.png", "a_4.jpg"]

    def test_videos_of_one_name_get_numbers(self) -> None:
        videos = [Path("x/a.mp4"), Path("y/a.avi"), Path("b.mp4")]
        assert plan_video_outputs(videos, Path("out")) == [Path("out", name) for name in ("a.mp4", "a_2.mp4", "b.mp4")]
        assert plan_video_outputs(videos[:1], Path("out.avi")) == [Path("out.avi")]
        with pytest.raises(ValueError, match=r"out\.avi is one file, but there are 2 videos"):
            plan_video_outputs(videos[:2], Path("out.avi"))

    def test_no_video_is_overwritten_that_is_read(self) -> None:
        with pytest.raises(ValueError, match=r"y.a\.mp4 would be overwritten"):
            plan_video_outputs([Path("x/a.mp4"), Path("y/a.mp4")], Path("y"))
