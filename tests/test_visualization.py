import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances

from mask2former.visualization import (
    contact_sheet,
    draw_ground_truth,
    draw_instances,
    draw_panoptic,
    draw_predictions,
    draw_semantic,
    spread_palette,
)
from mask2former.visualization.colors import assign_colors, color_distance
from mask2former.visualization.drawing import to_rgb
from mask2former.visualization.labels import place_labels, render_label
from mask2former.visualization.segments import class_name, crop_segment

METADATA = SimpleNamespace(
    thing_classes=["cat", "dog"],
    stuff_classes=["cat", "dog", "sky", "grass-merged"],
    stuff_colors=[(9, 9, 9), (8, 8, 8), (70, 130, 180), (107, 142, 35)],
    thing_dataset_id_to_contiguous_id={17: 0, 18: 1},
)


@pytest.fixture
def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def disc(x: int, y: int, radius: int, height: int = 120, width: int = 160) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def instances(masks: list[np.ndarray], scores: list[float], classes: list[int]) -> Instances:
    result = Instances((120, 160))
    result.pred_masks = torch.as_tensor(np.array(masks))
    result.scores = torch.tensor(scores)
    result.pred_classes = torch.tensor(classes)
    return result


class TestColors:
    def test_palette_has_no_two_alike_even_for_colour_blind_eyes(self) -> None:
        palette = spread_palette(24)
        distance = color_distance(palette, palette) + np.eye(24)
        assert distance.min() > 0.08

    def test_distance_of_red_and_green_shrinks_for_the_colour_blind(self) -> None:
        red, green, blue = np.array([[200, 60, 0]]), np.array([[120, 120, 0]]), np.array([[0, 90, 255]])
        assert color_distance(red, green)[0, 0] < 0.5 * color_distance(red, blue)[0, 0]

    @pytest.mark.parametrize(
        ("first", "second"), [([251, 0, 4], [62, 103, 7]), ([214, 34, 208], [40, 146, 204])], ids=["protan", "deutan"]
    )
    def test_what_one_kind_of_eyes_takes_for_the_same_is_near(self, first: list[int], second: list[int]) -> None:
        assert color_distance(np.array([first]), np.array([second]))[0, 0] < 0.01

    @pytest.mark.parametrize(("gray", "lightness"), [(10, 0.1448), (128, 0.5999), (255, 1)])
    def test_distance_of_black_to_gray_is_its_lightness(self, gray: int, lightness: float) -> None:
        assert color_distance(np.zeros((1, 3)), np.full((1, 3), gray))[0, 0] == pytest.approx(lightness, abs=1e-3)

    def test_longer_palette_begins_with_the_shorter_one(self) -> None:
        np.testing.assert_array_equal(spread_palette(200)[:24], spread_palette(24))
        assert len(np.unique(spread_palette(200), axis=0)) == 200
        assert not spread_palette(24).flags.writeable  # all who ask get the same array

    def test_neighbours_of_one_class_differ_more_than_a_random_pair(self) -> None:
        centers = np.random.default_rng(0).uniform(0, 1000, (300, 2))
        colors = assign_colors(centers, np.zeros(300, dtype=int), np.zeros((0, 3), dtype=np.uint8))
        distance = np.linalg.norm(centers[:, None] - centers, axis=2) + np.eye(300) * 1e6
        contrast = color_distance(colors, colors)[np.arange(300), distance.argmin(1)]
        assert contrast.min() > 0.1
        assert contrast.mean() > 0.3

    def test_single_instance_has_the_colour_of_its_class_wherever_it_is(self) -> None:
        for center in ([0, 0], [900, 20]):
            color = assign_colors(np.array([center]), np.array([5]), np.zeros((0, 3), dtype=np.uint8))
            np.testing.assert_array_equal(color[0], spread_palette(24)[5])

    def test_instances_avoid_a_colour_that_stuff_has(self) -> None:
        own = spread_palette(24)[5:6]
        chosen = assign_colors(np.array([[0, 0]]), np.array([5]), own)
        assert color_distance(chosen, own)[0, 0] > 0.1


class TestLabels:
    def test_centre_of_the_largest_circle(self) -> None:
        mask = disc(100, 60, 40) | disc(20, 20, 10)
        segment = crop_segment(mask, 0, True)
        (label,) = place_labels([segment], ["cat"], 120, 160)
        assert abs(label.left + label.width / 2 - 100) <= 1
        assert abs(label.top + label.height / 2 - 60) <= 1

    def test_never_overlap_and_never_leave_the_picture(self) -> None:
        rng = np.random.default_rng(1)
        masks = [disc(*rng.integers(0, (800, 600)), rng.integers(3, 60), 600, 800) for _ in range(20)]
        segments = [segment for mask in masks if (segment := crop_segment(mask, 0, True)) is not None]
        labels = [label for label in place_labels(segments, ["racket"] * len(segments), 600, 800) if label is not None]
        assert len(labels) >= 15
        covered = np.zeros((600, 800), dtype=int)
        for label in labels:
            area = covered[label.top : label.top + label.height, label.left : label.left + label.width]
            assert area.shape == (label.height, label.width)
            assert min(label.top, label.left) >= 0
            area += 1
        assert covered.max() == 1

    def test_never_overlap_where_segments_do(self) -> None:
        segments = [crop_segment(disc(400, 300, radius, 600, 800), 0, True) for radius in (200, 150)]
        first, second = place_labels(segments, ["cat", "dog"], 600, 800)
        assert abs(first.top - second.top) >= first.height

    def test_long_thing_is_labelled_within_itself(self) -> None:
        mask = np.zeros((300, 400), dtype=bool)
        mask[100:116, 50:350] = True
        (label,) = place_labels([crop_segment(mask, 0, True)], ["sports ball"], 300, 400)
        assert 100 <= label.top + label.height / 2 <= 116

    def test_small_thing_is_labelled_beside_itself(self) -> None:
        segment = crop_segment(disc(200, 150, 4, 300, 400), 0, True)
        (label,) = place_labels([segment], ["sports ball"], 300, 400)
        assert label.top + label.height <= 146

    def test_hundreds_of_small_segments_stay_unlabelled(self) -> None:
        masks = [disc(x, y, 5, 400, 400) for x in range(10, 400, 20) for y in range(10, 400, 20)]
        segments = [crop_segment(mask, 0, True) for mask in masks]
        assert place_labels(segments, ["nucleus"] * len(segments), 400, 400) == [None] * 400

    def test_size_follows_the_picture(self) -> None:
        small = place_labels([crop_segment(np.ones((300, 400), dtype=bool), 0, True)], ["cat"], 300, 400)[0]
        large = place_labels([crop_segment(np.ones((1200, 1600), dtype=bool), 0, True)], ["cat"], 1200, 1600)[0]
        assert large.font_size > 2 * small.font_size

    def test_text_is_drawn_within_its_box(self) -> None:
        (label,) = place_labels([crop_segment(np.ones((300, 400), dtype=bool), 0, True)], ["Ågjp Ünï"], 300, 400)
        coverage = render_label(label)
        assert coverage.shape == (label.height, label.width)
        assert coverage.max() > 0.9
        assert coverage[[0, -1]].max() == 0
        assert coverage[:, [0, -1]].max() == 0


class TestNames:
    def test_things_and_stuff_have_lists_of_their_own(self) -> None:
        assert class_name(METADATA, 1, True) == "dog"
        assert class_name(METADATA, 2, False) == "sky"

    def test_things_whose_ids_have_gaps(self) -> None:
        metadata = SimpleNamespace(
            thing_classes=["bed", "person"],
            stuff_classes=["wall", "bed", "sky", "person"],
            thing_dataset_id_to_contiguous_id={7: 1, 12: 3},
        )
        assert [class_name(metadata, i, True) for i in (1, 3, 2)] == ["bed", "person", "2"]
        metadata.thing_classes = metadata.stuff_classes  # Mapillary Vistas and Cityscapes list all of them
        assert [class_name(metadata, i, True) for i in (1, 3)] == ["bed", "person"]

    @pytest.mark.parametrize("metadata", [None, SimpleNamespace(), SimpleNamespace(thing_classes=["cat"])])
    def test_id_where_there_is_no_name(self, metadata: SimpleNamespace | None) -> None:
        assert class_name(metadata, 7, True) == "7"


class TestDrawing:
    def test_leaves_the_input_and_the_uncovered_part_alone(self, photograph: np.ndarray) -> None:
        before = photograph.copy()
        drawn = draw_instances(photograph, [disc(80, 60, 10)], [0])
        np.testing.assert_array_equal(photograph, before)
        far = ~disc(80, 60, 10)
        far[30:90, 40:120] = False  # edge and label
        np.testing.assert_array_equal(drawn[far], photograph[far])
        assert drawn.dtype == np.uint8

    def test_fill_is_the_blend_of_photograph_and_class_colour(self, photograph: np.ndarray) -> None:
        labels = np.full((120, 160), 2)
        drawn = draw_semantic(photograph, labels, METADATA)
        corner = (slice(5, 20), slice(5, 20))  # away from edge and label
        expected = 0.55 * photograph[corner] + 0.45 * np.array([70, 130, 180])
        assert np.abs(drawn[corner] - expected).max() <= 1

    def test_edge_has_the_full_colour_and_is_anti_aliased(self) -> None:
        black = np.zeros((120, 160, 3), dtype=np.uint8)
        drawn = draw_instances(black, [disc(80, 60, 40)], [0]).max(axis=2)
        color = spread_palette(24)[0].max()
        ring = disc(80, 60, 41) & ~disc(80, 60, 38)
        assert drawn[ring].max() == color
        assert len(np.unique(drawn[ring])) > 20  # many shades between fill, line and black
        angles = np.linspace(0, 2 * np.pi, 32)
        x, y = np.round(80 + 39.5 * np.cos(angles)).astype(int), np.round(60 + 39.5 * np.sin(angles)).astype(int)
        assert drawn[y, x].min() > 0.7 * color  # all around

    def test_small_instance_shows_on_a_large_one_in_any_order(self, photograph: np.ndarray) -> None:
        masks = [disc(80, 60, 50), disc(60, 60, 12)]
        forward = draw_instances(photograph, masks, [0, 1])
        np.testing.assert_array_equal(forward, draw_instances(photograph, masks[::-1], [1, 0]))
        assert np.any(forward != draw_instances(photograph, masks[:1], [0]))

    def test_gray_pictures_become_colour(self, photograph: np.ndarray) -> None:
        gray = photograph[..., 0]
        expected = draw_instances(np.stack([gray] * 3, axis=2), [disc(80, 60, 30)], [0])
        np.testing.assert_array_equal(draw_instances(gray, [disc(80, 60, 30)], [0]), expected)
        np.testing.assert_array_equal(draw_instances(gray[..., None], [disc(80, 60, 30)], [0]), expected)

    @pytest.mark.parametrize("shape", [(120, 160, 4), (120,)])
    def test_other_pictures_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected a uint8 picture .* got uint8 .*convert it first"):
            to_rgb(np.zeros(shape, dtype=np.uint8))
        with pytest.raises(ValueError, match="got float64"):
            to_rgb(np.zeros((4, 4, 3)))

    @pytest.mark.parametrize("point", [(0, 0), (119, 159), (60, 80)])
    def test_one_pixel_segment(self, photograph: np.ndarray, point: tuple[int, int]) -> None:
        mask = np.zeros((120, 160), dtype=bool)
        mask[point] = True
        drawn = draw_instances(photograph, [mask], [0])
        assert np.any(drawn[point] != photograph[point])

    def test_empty_masks_and_tiny_pictures(self) -> None:
        assert draw_instances(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1), bool), [3]).shape == (1, 1, 3)
        black = np.zeros((9, 7, 3), np.uint8)
        np.testing.assert_array_equal(draw_instances(black, np.zeros((2, 9, 7), bool), [0, 1]), black)
        np.testing.assert_array_equal(draw_instances(black, np.zeros((0, 9, 7), bool), []), black)
        assert crop_segment(np.zeros((9, 7), bool), 0, True) is None

    def test_label_is_white_on_a_rounded_box_in_a_dark_shade(self) -> None:
        gray = np.full((300, 400, 3), 200, np.uint8)
        (label,) = place_labels([crop_segment(np.ones((300, 400), dtype=bool), 2, False)], ["sky"], 300, 400)
        drawn = draw_semantic(gray, np.full((300, 400), 2), METADATA).astype(float)
        sky = np.array([70, 130, 180])
        fill = 0.55 * 200 + 0.45 * sky
        area = drawn[label.top : label.top + label.height, label.left : label.left + label.width]
        assert np.abs(area[0, 0] - fill).max() <= 1
        assert np.abs(area[label.height // 2, 1] - (0.18 * fill + 0.82 * 0.25 * sky)).max() <= 2
        assert area[render_label(label) > 0.9].min() > 0.9 * 255

    def test_large_picture_takes_the_other_path(self) -> None:
        drawn = draw_instances(np.zeros((2100, 2000, 3), np.uint8), [disc(1000, 1000, 800, 2100, 2000)], [0])
        assert drawn.shape == (2100, 2000, 3)
        assert drawn.any()

    def test_size_mismatch(self, photograph: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"picture is \(120, 160\).*segmentation is \(60, 80\)"):
            draw_semantic(photograph, np.zeros((60, 80)))

    def test_three_hundred_segments_on_a_megapixel_are_fast(self) -> None:
        ids = np.zeros((1000, 1000), dtype=np.int32)
        rng = np.random.default_rng(0)
        for i in range(1, 301):
            cv2.circle(ids, rng.integers(0, 1000, 2).tolist(), int(rng.integers(10, 40)), i, -1)
        infos = [{"id": i, "category_id": i % 50, "isthing": True, "score": 0.9} for i in range(1, 301)]
        start = time.perf_counter()
        draw_panoptic(np.zeros((1000, 1000, 3), np.uint8), ids, infos)
        assert time.perf_counter() - start < 2


class TestPredictions:
    def test_threshold_filters_instances(self, photograph: np.ndarray) -> None:
        masks = [disc(40, 60, 20), disc(120, 60, 20)]
        predictions = {"instances": instances(masks, [0.9, 0.4], [0, 1])}
        drawn = draw_predictions(photograph, predictions, METADATA, threshold=0.5)
        np.testing.assert_array_equal(drawn[masks[1]], photograph[masks[1]])
        assert np.any(drawn[masks[0]] != photograph[masks[0]], axis=-1).all()
        both = draw_predictions(photograph, predictions, METADATA, threshold=0.4)
        assert np.any(both[masks[1]] != photograph[masks[1]], axis=-1).mean() > 0.9
        nothing = draw_predictions(photograph, predictions, METADATA, threshold=0.95)
        np.testing.assert_array_equal(nothing, photograph)

    def test_task_chooses_and_panoptic_is_first(self, photograph: np.ndarray) -> None:
        ids = torch.zeros(120, 160, dtype=torch.int32)
        ids[:60] = 1
        info = [{"id": 1, "category_id": 2, "isthing": False}]
        scores = torch.zeros(4, 120, 160)
        scores[3] = 1
        predictions = {
            "sem_seg": scores,
            "panoptic_seg": (ids, info),
            "instances": instances([disc(80, 60, 30)], [0.8], [1]),
        }
        panoptic = draw_panoptic(photograph, ids, info, METADATA)
        semantic = draw_semantic(photograph, np.full((120, 160), 3), METADATA)
        instance = draw_instances(photograph, [disc(80, 60, 30)], [1], [0.8], METADATA)
        np.testing.assert_array_equal(draw_predictions(photograph, predictions, METADATA), panoptic)
        np.testing.assert_array_equal(draw_predictions(photograph, predictions, METADATA, task="panoptic"), panoptic)
        np.testing.assert_array_equal(draw_predictions(photograph, predictions, METADATA, task="semantic"), semantic)
        np.testing.assert_array_equal(draw_predictions(photograph, predictions, METADATA, task="instance"), instance)
        del predictions["panoptic_seg"]
        np.testing.assert_array_equal(draw_predictions(photograph, predictions, METADATA), instance)

    def test_absent_result(self, photograph: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"no panoptic result among .*'sem_seg'.*PANOPTIC_ON"):
            draw_predictions(photograph, {"sem_seg": torch.zeros(1, 120, 160)}, task="panoptic")
        with pytest.raises(ValueError, match="no drawable result"):
            draw_predictions(photograph, {})

    def test_background_void_and_unlisted_segments_stay_undrawn(self, photograph: np.ndarray) -> None:
        metadata = SimpleNamespace(stuff_classes=["background", "sky"], ignore_label=7)
        np.testing.assert_array_equal(draw_semantic(photograph, np.zeros((120, 160)), metadata), photograph)
        np.testing.assert_array_equal(draw_semantic(photograph, np.full((120, 160), 7), metadata), photograph)
        np.testing.assert_array_equal(draw_semantic(photograph, np.full((120, 160), -1), metadata), photograph)
        np.testing.assert_array_equal(draw_panoptic(photograph, np.ones((120, 160)), [], metadata), photograph)

    def test_stuff_keeps_its_colour_from_picture_to_picture(self, photograph: np.ndarray) -> None:
        alone = draw_semantic(photograph, np.full((120, 160), 5))
        labels = np.full((120, 160), 5)
        labels[80:] = 9
        shared = draw_semantic(photograph, labels)
        np.testing.assert_array_equal(alone[5:15, 5:15], shared[5:15, 5:15])

    def test_panoptic_score_is_written(self, photograph: np.ndarray) -> None:
        info = {"id": 1, "category_id": 0, "isthing": True}
        without = draw_panoptic(photograph, np.ones((120, 160)), [info], METADATA)
        with_score = draw_panoptic(photograph, np.ones((120, 160)), [{**info, "score": 0.93}], METADATA)
        assert np.any(without != with_score)


class TestGroundTruth:
    @pytest.mark.parametrize("wrap", [torch.as_tensor, BitMasks])
    def test_things_and_stuff_of_a_training_example(self, photograph: np.ndarray, wrap: type) -> None:
        targets = Instances((120, 160))
        sky = np.zeros((120, 160), dtype=bool)
        sky[:50] = True
        targets.gt_masks = wrap(torch.as_tensor(np.array([sky, disc(80, 85, 30)])))
        targets.gt_classes = torch.tensor([2, 0])
        inputs = {"image": torch.as_tensor(photograph.transpose(2, 0, 1).copy()), "instances": targets}
        ids = sky * 1 + disc(80, 85, 30) * 2
        infos = [{"id": 1, "category_id": 2, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}]
        expected = draw_panoptic(photograph, ids, infos, METADATA)
        np.testing.assert_array_equal(draw_ground_truth(inputs, METADATA), expected)

    def test_semantic_example_in_bgr_and_float(self, photograph: np.ndarray) -> None:
        labels = torch.full((120, 160), 3)
        labels[:60] = 255
        bgr = torch.as_tensor(photograph[..., ::-1].transpose(2, 0, 1).copy()).float()
        drawn = draw_ground_truth({"image": bgr, "sem_seg": labels}, METADATA, image_format="BGR")
        np.testing.assert_array_equal(drawn, draw_semantic(photograph, labels, METADATA))

    def test_task_semantic_prefers_the_label_map(self, photograph: np.ndarray) -> None:
        image = torch.as_tensor(photograph.transpose(2, 0, 1).copy())
        targets = Instances((120, 160), gt_masks=torch.zeros(0, 120, 160).bool(), gt_classes=torch.zeros(0).long())
        inputs = {"image": image, "instances": targets, "sem_seg": torch.full((120, 160), 3)}
        np.testing.assert_array_equal(draw_ground_truth(inputs, METADATA), photograph)
        drawn = draw_ground_truth(inputs, METADATA, task="semantic")
        np.testing.assert_array_equal(drawn, draw_semantic(photograph, np.full((120, 160), 3), METADATA))


class TestContactSheet:
    def test_pictures_stand_in_rows(self) -> None:
        pictures = [np.full((10, 10, 3), value, dtype=np.uint8) for value in range(5)]
        sheet = contact_sheet(pictures)
        assert sheet.shape == (2 * 18 + 8, 3 * 18 + 8, 3)
        assert [int(sheet[8 + 18 * (i // 3) + 5, 8 + 18 * (i % 3) + 5, 0]) for i in range(5)] == list(range(5))
        assert sheet[-12, -12, 0] == 255  # nothing in the last cell
        assert contact_sheet(pictures, columns=1).shape == (5 * 18 + 8, 26, 3)

    def test_large_ones_are_shrunk_and_keep_their_shape(self) -> None:
        sheet = contact_sheet([np.zeros((100, 400, 3), dtype=np.uint8)], side=40)
        rows, columns = (np.flatnonzero((sheet == 0).any(axis=(axis, 2))) for axis in (1, 0))
        assert (len(rows), len(columns)) == (10, 40)
        assert sheet.shape == (26, 56, 3)
        assert contact_sheet([np.zeros((1, 400, 3), dtype=np.uint8)], side=40).shape == (17, 56, 3)
        assert contact_sheet([np.zeros((400, 1, 3), dtype=np.uint8)], side=40).shape == (56, 17, 3)
