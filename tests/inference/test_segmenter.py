"""From pictures of every kind to results: with a model whose answers are known, and with a small real one."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.data import transforms as T
from PIL import Image

import mask2former as m2f
from mask2former.inference.pictures import find_pictures
from mask2former.inference.request import Options, build_request
from mask2former.inference.segmenter import _reorder
from mask2former.inference.video import VideoWriter, open_video
from mask2former.modeling.postprocessing import ClassScores, instance
from mask2former.ops._library import load_library

Save = Callable[..., Path]


@pytest.fixture
def colours(config_file: Path) -> m2f.Segmenter:
    return m2f.load(config_file)


@pytest.fixture(scope="module")
def tiny(tiny_config: Path) -> m2f.Segmenter:
    return m2f.load(tiny_config)


@pytest.fixture
def rgb(picture: np.ndarray) -> np.ndarray:
    """The colour model's picture, (48, 64, 3) RGB."""
    return np.ascontiguousarray(picture[:, :, ::-1])


def names(result: m2f.Result) -> list[str]:
    return [segment.name for segment in result.panoptic.segments]


class TestPictures:
    def test_every_kind_gives_the_same(self, colours: m2f.Segmenter, save: Save, rgb: np.ndarray) -> None:
        path = save("a.png")
        sources = [path, str(path), Image.open(path), rgb, torch.from_numpy(rgb).permute(2, 0, 1)]
        for source in sources:
            result = colours.predict(source)
            assert names(result) == ["apple", "berry", "grass"]
            np.testing.assert_array_equal(result.panoptic.ids == 1, rgb[..., 0] > 128)
            np.testing.assert_array_equal(result.image, rgb)
        assert [colours.predict(source).path for source in sources] == [path, path, path, None, None]

    def test_lists_folders_and_patterns_give_lists(
        self, colours: m2f.Segmenter, save: Save, tmp_path: Path, rgb: np.ndarray
    ) -> None:
        paths = [save("folder/a.png"), save("folder/b.png")]
        (tmp_path / "folder" / "notes.txt").write_text("not a picture")
        for source in (paths, tmp_path / "folder", str(tmp_path / "folder" / "*.png"), iter(paths)):
            assert [result.path for result in colours.predict(source)] == paths
        nested = colours.predict([rgb, tmp_path / "folder", [rgb]])
        assert [result.path for result in nested] == [None, *paths, None]
        assert colours.predict([]) == []

    def test_gray_arrays_and_tensors(self, colours: m2f.Segmenter, rgb: np.ndarray) -> None:
        gray = rgb[..., 0]
        for source in (gray, torch.from_numpy(gray.copy())[None]):
            np.testing.assert_array_equal(colours.predict(source).image, np.dstack([gray] * 3))

    def test_arrays_may_change_afterwards(self, colours: m2f.Segmenter, rgb: np.ndarray) -> None:
        buffer = np.empty_like(rgb)

        def frames() -> Iterator[np.ndarray]:
            for shift in range(4):
                buffer[:] = np.roll(rgb, shift, axis=1)
                yield buffer

        for shift, result in enumerate(colours.stream(frames())):
            np.testing.assert_array_equal(result.image, np.roll(rgb, shift, axis=1))

    def test_orientation_is_honoured(self, colours: m2f.Segmenter, tmp_path: Path, rgb: np.ndarray) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown a quarter turn to the right
        Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
        for source in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
            np.testing.assert_array_equal(colours.predict(source).image, np.rot90(rgb, -1))

    def test_sixteen_bits_are_stretched_alike(self, colours: m2f.Segmenter, tmp_path: Path, rgb: np.ndarray) -> None:
        cv2.imwrite(str(tmp_path / "gray.tif"), rgb[..., 0].astype(np.uint16) * 200)
        by_path = colours.predict(tmp_path / "gray.tif")
        assert set(np.unique(by_path.image)) == {0, 255}
        np.testing.assert_array_equal(colours.predict(Image.open(tmp_path / "gray.tif")).image, by_path.image)

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            ("absent.png", FileNotFoundError, r"absent\.png: no such file"),
            ("absent-*.png", FileNotFoundError, "no picture matches this pattern"),
            (np.zeros((4, 4, 3)), ValueError, r"dtype float64, expected uint8 .*\* 255"),
            (np.zeros((4, 4, 4), np.uint8), ValueError, r"shape \(4, 4, 4\), expected \(H, W, 3\) RGB"),
            (np.zeros((0, 4, 3), np.uint8), ValueError, r"shape \(0, 4, 3\), expected .* not empty"),
            (Image.new("L", (4, 0)), ValueError, "PIL image has 4 x 0 pixels, expected a picture that is not empty"),
            (
                torch.zeros(4, 4, 3, dtype=torch.uint8),
                ValueError,
                r"tensor has shape \(4, 4, 3\), expected \(3, H, W\)",
            ),
            (torch.zeros(3, 4, 4, dtype=torch.bfloat16), ValueError, "dtype bfloat16, expected uint8"),
            (
                "clip.mp4",
                ValueError,
                r"clip\.mp4: predict takes pictures in files; a video or an address is for stream",
            ),
            (5.0, TypeError, "a picture is a path, .* not a float"),
            ([b"a.png"], TypeError, "not a bytes"),
            ({"a.png": 1}, TypeError, "not a dict"),
            (io.BytesIO(b"a.png"), TypeError, "not a BytesIO"),
        ],
    )
    def test_what_is_no_picture(
        self, colours: m2f.Segmenter, source: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            colours.predict(source)

    def test_a_damaged_picture_of_pil(self, colours: m2f.Segmenter, tmp_path: Path, rgb: np.ndarray) -> None:
        Image.fromarray(rgb).save(tmp_path / "whole.jpg")
        (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-100])
        with Image.open(tmp_path / "cut.jpg") as opened, pytest.raises(ValueError, match=r"cut\.jpg: cannot be read"):
            colours.predict(opened)

    def test_names_that_look_like_a_home_folder(
        self,
        colours: m2f.Segmenter,
        save: Save,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        save("~backup.png")
        monkeypatch.chdir(tmp_path)
        assert colours.predict("~backup.png").size == (48, 64)
        assert find_pictures(["~backup.png", "~nobody/a.png"]) == (
            [Path("~backup.png")],
            ["~nobody/a.png: no such file"],
        )

    def test_empty_folder(self, colours: m2f.Segmenter, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="no pictures in this folder"):
            colours.predict(tmp_path / "empty")

    def test_an_empty_name_is_not_the_working_directory(
        self, colours: m2f.Segmenter, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save("a.png")
        monkeypatch.chdir(tmp_path)
        for source in ("", ["a.png", ""]):
            with pytest.raises(FileNotFoundError, match=r"a picture's name is empty; '\.' stands for"):
                colours.predict(source)
        assert find_pictures(["", "."]) == ([Path("a.png")], [find_pictures([""])[1][0]])


class TestOptions:
    def test_first_task_is_the_default_and_several_can_be_asked_for(
        self, colours: m2f.Segmenter, rgb: np.ndarray
    ) -> None:
        assert colours.predict(rgb).predictions.keys() == {"panoptic_seg"}
        result = colours.predict(rgb, task=("semantic", "instance"))
        assert result.predictions.keys() == {"sem_seg", "instances"}
        assert result.tasks == ("semantic", "instance")

    @pytest.mark.parametrize(
        ("threshold", "instances", "panoptic"),
        [
            (None, ["apple", "berry"], ["apple", "berry", "grass"]),
            (0.61, ["apple"], ["apple", "grass"]),
            (0.92, [], ["grass"]),
        ],
    )
    def test_threshold(
        self,
        colours: m2f.Segmenter,
        rgb: np.ndarray,
        threshold: float | None,
        instances: list[str],
        panoptic: list[str],
    ) -> None:
        result = colours.predict(rgb, task=("panoptic", "instance"), threshold=threshold)
        assert result.instances.names == instances
        assert names(result) == panoptic

    def test_size_is_what_the_network_sees(self, colours: m2f.Segmenter, rgb: np.ndarray) -> None:
        for size in (None, 0, 24, np.int64(96)):
            assert colours.predict(rgb, size=size).size == (48, 64)
        assert colours.model.input_sizes == [(3, 48, 64), (3, 48, 64), (3, 24, 32), (3, 96, 128)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "depth"}, "task is 'depth'; give --task or task="),
            ({"task": ("panoptic", "depth")}, r"task is \('panoptic', 'depth'\); give --task or task="),
            ({"task": ()}, r"task is \(\); give --task or task="),
            ({"task": 3}, "task is 3; give --task or task="),
            ({"threshold": "0.5"}, r"threshold is '0\.5', expected 0 to 1"),
            ({"threshold": 1.5}, r"threshold is 1\.5, expected 0 to 1"),
            ({"size": -1}, "size is -1, expected pixels"),
            ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
            ({"size": (64, 64)}, r"size is \(64, 64\), expected a whole number"),
            ({"batch_size": 1.5}, r"batch_size is 1\.5, expected a whole number"),
        ],
    )
    def test_out_of_range(self, colours: m2f.Segmenter, rgb: np.ndarray, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            colours.predict(rgb, **options)
        with pytest.raises(ValueError, match=message):
            colours.stream([rgb], **options)  # at once, before the first result

    def test_threshold_means_nothing_to_semantic_results(
        self, colours: m2f.Segmenter, rgb: np.ndarray, caplog: pytest.LogCaptureFixture
    ) -> None:
        colours.predict(rgb, task="semantic", threshold=0.7)
        assert caplog.text.count("no effect on semantic") == 1

    @pytest.mark.parametrize(("limit", "warnings"), [(2, 1), (3, 0)])
    def test_instances_that_may_be_missing_are_told(
        self, config_file: Path, rgb: np.ndarray, caplog: pytest.LogCaptureFixture, limit: int, warnings: int
    ) -> None:
        model = m2f.load(config_file, opts=["TEST.DETECTIONS_PER_IMAGE", str(limit)])
        assert len(model.predict(rgb, task="instance").instances) == 2
        assert caplog.text.count(f"a picture: has 2 instances, of the {limit} that TEST.DETECTIONS_PER_") == warnings

    def test_instances_that_may_be_missing_are_told_once_and_counted(
        self, config_file: Path, rgb: np.ndarray, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = m2f.load(config_file, opts=["TEST.DETECTIONS_PER_IMAGE", "2"])
        caplog.clear()
        model.predict([np.zeros_like(rgb), rgb, rgb, rgb], task=("instance", "panoptic"), batch_size=3)
        first, count = (record.getMessage() for record in caplog.records)
        assert first.startswith("a picture: has 2 instances, of the 2 that TEST.DETECTIONS_PER_IMAGE allows")
        assert count == "4 of 4 pictures have that many instances, so some may be missing."
        caplog.clear()
        list(model.stream([rgb], task="instance"))
        (record,) = caplog.records
        assert record.getMessage() == first

    @pytest.mark.parametrize("order", ["BGR", "RGB"])
    def test_channel_order_of_the_model(self, config_file: Path, rgb: np.ndarray, order: str) -> None:
        assert names(m2f.load(config_file, opts=["INPUT.FORMAT", order]).predict(rgb)) == ["apple", "berry", "grass"]

    def test_unknown_channel_order(self, config_file: Path) -> None:
        with pytest.raises(ValueError, match=r'INPUT\.FORMAT is "YUV", expected "RGB", "BGR" or "L"'):
            m2f.load(config_file, opts=["INPUT.FORMAT", "YUV"])


class TestStream:
    def test_frames_of_a_video(self, colours: m2f.Segmenter, tmp_path: Path, picture: np.ndarray) -> None:
        with VideoWriter(tmp_path / "clip.avi", 10) as writer:
            for i in range(3):
                writer.write(np.roll(picture, 5 * i, axis=1))
        for source in (tmp_path / "clip.avi", str(tmp_path / "clip.avi"), open_video(str(tmp_path / "clip.avi"))):
            results = list(colours.stream(source, batch_size=2))
            assert [names(result) for result in results] == [["apple", "berry", "grass"]] * 3
            lefts = [result.to_coco()[0]["bbox"][0] for result in results]
            assert np.abs(np.array(lefts) - [4, 9, 14]).max() <= 1

    def test_a_video_in_the_home_folder(
        self, colours: m2f.Segmenter, tmp_path: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with VideoWriter(tmp_path / "clip.avi", 10) as writer:
            writer.write(picture)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(list(colours.stream("~/clip.avi"))) == 1

    def test_endless_generators_and_laziness(self, colours: m2f.Segmenter, rgb: np.ndarray) -> None:
        taken = 0

        def endless() -> Iterator[np.ndarray]:
            nonlocal taken
            while True:
                taken += 1
                yield rgb

        results = colours.stream(endless())
        assert [names(next(results)) for _ in range(3)] == [["apple", "berry", "grass"]] * 3
        results.close()
        assert taken < 20

    def test_bad_pictures_are_raised_or_reported(self, colours: m2f.Segmenter, save: Save, tmp_path: Path) -> None:
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"not a picture")
        sources = [save("a.png"), bad, save("b.png")]
        with pytest.raises(ValueError, match=r"bad\.png: cannot be read as an image"):
            list(colours.stream(sources))
        errors: list[Exception] = []
        assert [result.path for result in colours.stream(sources, on_error=errors.append)] == [sources[0], sources[2]]
        assert [str(bad) in str(error) for error in errors] == [True]

    def test_wrong_video(self, colours: m2f.Segmenter, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"absent\.mp4: cannot be opened as a video"):
            list(colours.stream(tmp_path / "absent.mp4"))


class TestRealModel:
    def test_it_is_the_model_on_the_resized_picture(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        """Shorter edge 64, longer at most 128, as the configuration says, done by hand."""
        resized = T.ResizeTransform(90, 120, 64, 85).apply_image(photograph[:, :, ::-1].copy())
        image = torch.from_numpy(resized.copy()).permute(2, 0, 1)
        with torch.no_grad():
            expected = tiny.model([{"image": image, "height": 90, "width": 120}])[0]
        result = tiny.predict(photograph[:, :, ::-1], task=("panoptic", "instance", "semantic"), threshold=0.0)
        torch.testing.assert_close(torch.from_numpy(result.semantic.scores), expected["sem_seg"])
        np.testing.assert_array_equal(result.panoptic.ids, expected["panoptic_seg"][0].numpy())
        order = expected["instances"].scores.argsort(descending=True, stable=True)
        np.testing.assert_array_equal(result.instances.scores, expected["instances"].scores[order].numpy())
        np.testing.assert_array_equal(result.instances.masks, expected["instances"].pred_masks[order].numpy())
        np.testing.assert_array_equal(result.instances.boxes, expected["instances"].pred_boxes.tensor[order].numpy())

    def test_test_scale_is_honoured(self, tiny_config: Path, photograph: np.ndarray) -> None:
        scaled = m2f.load(tiny_config, opts=["INPUT.TEST_SCALE", "0.5"])
        by_size = m2f.load(tiny_config).predict(photograph, task="semantic", size=45)
        np.testing.assert_array_equal(
            scaled.predict(photograph, task="semantic").semantic.scores, by_size.semantic.scores
        )

    @pytest.mark.parametrize("opts", [[], ["INPUT.TEST_SCALE", "0.5"]])
    def test_random_numbers_stay_the_callers(self, tiny_config: Path, photograph: np.ndarray, opts: list[str]) -> None:
        model = m2f.load(tiny_config, opts=opts)
        np.random.seed(0)
        torch.manual_seed(0)
        expected = np.random.random(), torch.rand(1)
        np.random.seed(0)
        torch.manual_seed(0)
        list(model.stream([photograph], task=("panoptic", "instance", "semantic")))
        model.predict(photograph, size=96, tile=64).draw()
        assert (np.random.random(), torch.rand(1)) == expected

    def test_batches_of_mixed_sizes_are_single_pictures(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        pictures = [photograph, photograph[:40], photograph[:, :50], photograph.transpose(1, 0, 2)]
        together = tiny.predict(pictures, task=("semantic", "panoptic"), batch_size=4, size=0)
        for ours, picture in zip(together, pictures, strict=True):
            alone = tiny.predict(picture, task=("semantic", "panoptic"), size=0)
            span = np.ptp(alone.semantic.scores)
            np.testing.assert_allclose(ours.semantic.scores, alone.semantic.scores, rtol=0, atol=1e-4 * span)
            assert [(s.id, s.category_id) for s in ours.panoptic.segments] == [
                (s.id, s.category_id) for s in alone.panoptic.segments
            ]
            assert (ours.panoptic.ids != alone.panoptic.ids).mean() < 1e-3

    def test_semantic_scores_are_computed_when_they_are_asked_for(
        self, tiny: m2f.Segmenter, photograph: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not load_library():
            pytest.skip("without native operators, labels are found in the scores")
        with monkeypatch.context() as patch:
            patch.setattr(ClassScores, "full", lambda self: pytest.fail("computed"))
            result = tiny.predict(photograph, task="semantic")
            labels, _ = result.semantic.labels, result.draw()
            result.save(tmp_path)
            result.to_coco()
        scores = result.semantic.scores
        assert scores is result.semantic.scores
        assert (scores.dtype, scores.shape) == (np.float32, (len(result.semantic.names), *result.size))
        np.testing.assert_array_equal(scores.argmax(0), labels)

    def test_panoptic_scores_are_class_probabilities(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        result = tiny.predict(photograph, threshold=0.0)
        assert result.panoptic.segments
        model = tiny.model.with_outputs(["panoptic"], object_mask_threshold=0.0)
        inputs = tiny._prepare(build_request(tiny, Options(task="panoptic")), photograph)[1]
        with torch.no_grad():
            outputs = model.sem_seg_head(model.backbone(model._normalise_and_pad([inputs]).tensor))
            without = model([inputs])[0]["panoptic_seg"][1]
        scores, labels = outputs["pred_logits"][0].softmax(-1).max(-1)
        for segment in result.panoptic.segments:
            of_class = scores[labels == segment.category_id].numpy()
            assert np.isclose(of_class, segment.score).any()
        assert all("score" not in info for info in without)  # the official form, where it is not asked for

    def test_instances_of_a_panoptic_model_are_things(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        result = tiny.predict(photograph, task="instance", threshold=0.0)
        assert len(result.instances)
        assert set(result.instances.classes.tolist()) <= {0, 1}
        assert (np.diff(result.instances.scores) <= 0).all()

    def test_instances_below_the_threshold_have_no_masks_made(
        self, tiny: m2f.Segmenter, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        every = tiny.predict(photograph, task="instance", threshold=0.0).instances
        threshold = float(np.median(every.scores))
        made = []
        binarise = instance._binarise
        monkeypatch.setattr(instance, "_binarise", lambda *args: made.append(len(args[1])) or binarise(*args))
        sure = tiny.predict(photograph, task="instance", threshold=threshold).instances
        assert len(sure) <= made[0] < len(every)
        np.testing.assert_array_equal(sure.scores, every.scores[: len(sure)])
        np.testing.assert_array_equal(sure.masks, every.masks[: len(sure)])
        assert every.scores[len(sure)] < threshold

    def test_one_model_for_many_threads(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        requests = [
            {"task": task, "threshold": threshold, "size": size}
            for task in ("panoptic", "instance", "semantic")
            for threshold in (0.0, 0.3)
            for size in (32, 64)
        ]
        expected = [tiny.predict(photograph, **request) for request in requests]
        with ThreadPoolExecutor(max_workers=4) as pool:
            found = list(pool.map(lambda request: tiny.predict(photograph, **request), requests * 2))
        for ours, alone in zip(found, expected * 2, strict=True):
            assert ours.predictions.keys() == alone.predictions.keys()
            assert ours.to_coco() == alone.to_coco()

    def test_model_stays_as_it_was(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        before = {key: value for key, value in vars(tiny.model).items() if not key.startswith("_")}
        tiny.predict(photograph, task="semantic")
        tiny.predict(photograph, threshold=0.9)
        assert {key: value for key, value in vars(tiny.model).items() if not key.startswith("_")} == before

    def test_no_panoptic_result_without_things(self, tiny: m2f.Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiny.model, "metadata", Metadata(name="scenes", stuff_classes=["sky"]))
        with pytest.raises(ValueError, match="data set scenes does not say which classes are things"):
            tiny.predict(np.zeros((8, 8, 3), np.uint8), task="panoptic")

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_gray_models_take_pictures_as_they_are(self, tiny_config: Path, photograph: np.ndarray) -> None:
        opts = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[100.0]", "MODEL.PIXEL_STD", "[50.0]"]
        gray = m2f.load(tiny_config, opts=opts)
        torch.set_warn_always(True)
        try:
            assert gray.predict(photograph, size=0).size == (90, 120)
        finally:
            torch.set_warn_always(False)

    def test_gray_models_get_one_channel(self, tiny: m2f.Segmenter, photograph: np.ndarray) -> None:
        gray = _reorder(photograph, "L")
        assert gray.shape == (90, 120, 1)
        assert np.abs(gray[..., 0] - cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY).astype(int)).max() <= 1
