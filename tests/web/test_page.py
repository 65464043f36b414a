"""The page: what its function returns, and, where Chromium and Playwright are, the page in the browser."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import mask2former as m2f
from mask2former import cli

gradio = pytest.importorskip("gradio")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mask2former.web import build_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return build_page(m2f.load(config_file), "Colours")


@pytest.fixture
def segment(page: Any) -> Callable[..., tuple[str, str | None]]:
    functions = {function.fn for function in page.fns.values()}
    assert len(functions) == 1
    return functions.pop()


@pytest.fixture
def file(picture: np.ndarray, tmp_path: Path) -> str:
    """A picture's file, which is what Gradio gives the function."""
    Image.fromarray(picture).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_segments_and_their_masks(segment: Callable[..., Any], file: str) -> None:
    view, packed = segment(file, "panoptic", 0.5)
    assert "apple" in view
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        described = json.loads(archive.read("picture.json"))
        masks = {
            name: cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
            for name in names
            if name.startswith("masks/")
        }
    assert {"picture.png", "picture.json", "picture_ids.png"} < set(names)
    assert len(masks) == len(described["segments"]) > 1
    areas = sorted(int(np.count_nonzero(mask == 255)) for mask in masks.values())
    assert areas == sorted(segment["area"] for segment in described["segments"])


def test_threshold(segment: Callable[..., Any], file: str) -> None:
    assert "berry" in segment(file, "instance", 0.5)[0]
    assert "berry" not in segment(file, "instance", 0.8)[0]


@pytest.mark.parametrize("name", ["indices.gif", "deep.png", "turned.jpg"])
def test_uploads_are_read_like_files(
    page: Any, segment: Callable[..., Any], picture: np.ndarray, config_file: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = picture[..., 0].astype(np.uint16) * 200 + 1000 if name == "deep.png" else picture
    Image.fromarray(pixels).save(path, **({"exif": exif} if name == "turned.jpg" else {}))
    (upload,) = (block for block in page.blocks.values() if isinstance(block, gradio.Image))
    given = upload.preprocess(gradio.image_utils.ImageData(path=str(path), orig_name=name))
    _, packed = segment(given, "panoptic", 0.5)
    with zipfile.ZipFile(packed) as archive:
        drawing = cv2.imdecode(np.frombuffer(archive.read("picture.png"), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(drawing, m2f.load(config_file).predict(path).draw())


def test_what_is_no_picture_is_told_without_its_place(page: Any, segment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("hello")
    (upload,) = (block for block in page.blocks.values() if isinstance(block, gradio.Image))
    given = upload.preprocess(gradio.image_utils.ImageData(path=str(tmp_path / "note.png"), orig_name="note.png"))
    with pytest.raises(gradio.Error, match=r"^'note.png: cannot be read as an image") as told:
        segment(given, "panoptic", 0.5)
    assert not told.value.print_exception  # to the log, with its place


def test_no_picture_is_no_result(segment: Callable[..., Any]) -> None:
    assert segment(None, "panoptic", 0.5) == ("", None)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_file: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--web", "--model", str(config_file)]) == 1
    assert "pip install 'mask2former[web]'" in capsys.readouterr().err


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.mark.timeout(180)
def test_in_the_browser(page: Any, browser: Any, picture: np.ndarray, tmp_path: Path) -> None:
    """A dropped picture shows its segments; the one under the mouse says what it is; nothing comes from elsewhere."""
    file = tmp_path / "picture.png"
    cv2.imwrite(str(file), picture[..., ::-1])
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        tab = browser.new_page()
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address, wait_until="domcontentloaded")
        tab.set_input_files("#picture input[type=file]", str(file))
        tab.wait_for_selector(".m2f-view")
        found = {}
        for row in tab.locator(".m2f-view tr[data-number]").all():
            row.hover()
            found[row.inner_text().split("\t")[0]] = tab.locator(".m2f-tip").inner_text()
        assert found == {"apple": "apple 90 %", "berry": "berry 60 %", "grass": "grass 95 %"}
        rows, columns = np.nonzero((picture[..., 0] > 128) & (picture[..., 1] <= 128))
        middle = len(rows) // 2
        drawing = tab.locator(".m2f-drawing").bounding_box()
        x = drawing["x"] + (columns[middle] + 0.5) / picture.shape[1] * drawing["width"]
        y = drawing["y"] + (rows[middle] + 0.5) / picture.shape[0] * drawing["height"]
        tab.mouse.move(x, y)
        assert tab.locator(".m2f-tip").inner_text() == "apple 90 %"
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    finally:
        page.close()
