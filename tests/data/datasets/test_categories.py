"""Classes of a data set, and what Detectron2 is told of them."""

from mask2former.data.datasets.categories import Category, panoptic_metadata, thing_metadata


def test_classes_without_a_colour_get_different_ones() -> None:
    categories = [Category(i, f"c{i}", True, (1, 2, 3) if i == 2 else None) for i in range(1, 41)]
    colors = [tuple(color) for color in thing_metadata(categories)["thing_colors"]]
    assert colors[1] == (1, 2, 3)
    assert len(set(colors)) == 40
    assert all(isinstance(value, int) and 0 <= value <= 255 for color in colors for value in color)


def test_there_may_be_more_classes_than_colours() -> None:
    colors = thing_metadata([Category(i, str(i), True) for i in range(1000)])["thing_colors"]
    assert len(colors) == 1000
    assert len({tuple(color) for color in colors}) > 50


def test_order_of_contiguous_ids() -> None:
    categories = [
        Category(7, "sky", False),
        Category(9, "dog", True),
        Category(3, "cat", True),
        Category(5, "sea", False),
    ]
    things_first = panoptic_metadata(categories)
    assert things_first["stuff_classes"] == ["cat", "dog", "sea", "sky"]
    assert things_first["stuff_dataset_id_to_contiguous_id"] == {3: 0, 9: 1, 5: 2, 7: 3}
    assert things_first["thing_dataset_id_to_contiguous_id"] == {3: 0, 9: 1}
    by_id = panoptic_metadata(categories, things_first=False)
    assert by_id["stuff_classes"] == ["cat", "sea", "sky", "dog"]
    assert by_id["thing_classes"] == ["cat", "dog"]
    assert by_id["thing_dataset_id_to_contiguous_id"] == {3: 0, 9: 3}


def test_as_in_a_coco_file() -> None:
    entry = {"id": 4, "name": "road", "isthing": 0, "color": [9, 8, 7]}
    assert Category.from_coco(entry) == Category(4, "road", False, (9, 8, 7))
    assert Category.from_coco({"id": 5, "name": "car"}) == Category(5, "car", True)
    assert Category.from_coco({"id": 5, "name": "car", "isthing": None}) == Category(5, "car", True)
    assert Category(4, "road", False).to_coco() == {"id": 4, "name": "road", "isthing": 0, "supercategory": "road"}
