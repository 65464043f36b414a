"""Reading images and label PNGs."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from mask2former.image_io import image_size, read_image, read_label_image, verify_image

RNG = np.random.default_rng(0)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_channel_order(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(path), pixels)
    np.testing.assert_array_equal(read_image(path, "BGR"), pixels[..., ::-1])
    assert read_image(path, "L").shape == (5, 7, 1)


def test_gray_alpha_and_palette_become_three_channels(tmp_path: Path) -> None:
    gray = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "gray.png", gray)), np.stack([gray] * 3, axis=2))
    with_alpha = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "alpha.png", with_alpha)), with_alpha[..., :3])
    palette = Image.fromarray(gray % 4)
    palette.putpalette([9, 8, 7, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png")[gray % 4 == 1], [[20, 30, 40]] * (gray % 4 == 1).sum()
    )


@pytest.mark.parametrize("kind", ["uint16.png", "int32.tif", "float32.tif"])
def test_deep_images_are_stretched(tmp_path: Path, kind: str) -> None:
    ramp = np.linspace(100, 4000, 10_000).reshape(100, 100).astype(kind.split(".")[0])
    image = read_image(save(tmp_path / kind, ramp))[..., 0]
    assert (image.dtype, image.min(), image.max()) == (np.uint8, 0, 255)
    np.testing.assert_allclose(image.ravel(), np.linspace(0, 255, 10_000), atol=1.01)


def test_deep_images_that_are_nearly_constant(tmp_path: Path) -> None:
    pixels = np.full((100, 100), 700, dtype=np.uint16)
    assert not read_image(save(tmp_path / "constant.png", pixels)).any()
    pixels[3, 4], pixels[5, 6] = 900, 800
    image = read_image(save(tmp_path / "specks.png", pixels))[..., 0]
    assert (image[3, 4], image[5, 6], np.count_nonzero(image)) == (255, 128, 2)


def test_what_was_not_measured_is_black_and_does_not_count(tmp_path: Path) -> None:
    ramp = np.linspace(100, 4000, 10_000, dtype=np.float32).reshape(100, 100)
    holes = ramp.copy()
    holes[-2:, :5], holes[-3, 0], holes[-3, 1] = np.nan, np.inf, -np.inf
    whole, image = (read_image(save(tmp_path / "a.tif", pixels))[..., 0] for pixels in (ramp, holes))
    assert not image[-2:, :5].any()
    assert image[-3, :2].tolist() == [255, 0]
    np.testing.assert_allclose(image[:-3].astype(int), whole[:-3], atol=1)
    assert not read_image(save(tmp_path / "nothing.tif", np.full_like(ramp, np.nan))).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, orientation: int) -> None:
    stored = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", stored, exif=exif)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == upright.shape[:2]


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RNG.integers(0, 256, (50, 50, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image .* copy it again"):
        read_image(path)
    (tmp_path / "b.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"b\.jpg: cannot be read as an image \(its content has no format that"):
        image_size(tmp_path / "b.jpg")
    with pytest.raises(FileNotFoundError, match=r"c\.png: no such file"):
        read_image(tmp_path / "c.png")
    with pytest.raises(ValueError, match=r'INPUT\.FORMAT is "RGBA", expected "RGB", "BGR" or "L"'):
        read_image(path, "RGBA")


@pytest.mark.parametrize(
    ("name", "dtype", "largest"), [("a.png", "uint8", 255), ("a.png", "uint16", 65535), ("a.tif", "int32", 10**6)]
)
def test_labels_of_every_depth(tmp_path: Path, name: str, dtype: str, largest: int) -> None:
    labels = RNG.integers(0, largest + 1, (6, 5)).astype(dtype)
    read = read_label_image(save(tmp_path / name, labels))
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, labels)


def test_labels_that_stay_bytes(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 200]])
    for dtype, kept in ((np.uint8, np.uint8), (np.uint16, np.int64)):
        read = read_label_image(save(tmp_path / f"{dtype.__name__}.png", labels.astype(dtype)), bytes_stay=True)
        np.testing.assert_array_equal(read, labels)
        assert read.dtype == kept


def test_labels_of_palettes_and_gray_saved_as_colour(tmp_path: Path) -> None:
    labels = RNG.integers(0, 4, (6, 5), dtype=np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette([200, 1, 2, 3, 100, 5, 6, 7, 8, 9, 10, 11])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "palette.png"), labels)
    np.testing.assert_array_equal(read_label_image(save(tmp_path / "rgb.png", np.stack([labels] * 3, axis=2))), labels)


def test_labels_that_are_not_ids(tmp_path: Path) -> None:
    colours = save(tmp_path / "colours.png", RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"colours\.png: is a colour picture of 3 channels, expected one channel of ids"
    ):
        read_label_image(colours)
    for pixels in (np.full((2, 2), -1, dtype=np.int32), np.full((2, 2), 0.5, dtype=np.float32)):
        with pytest.raises(ValueError, match=r"a\.tif: has negative or fractional values"):
            read_label_image(save(tmp_path / "a.tif", pixels))
    not_measured = save(tmp_path / "a.tif", np.array([[0, np.nan], [np.inf, 1]], dtype=np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"a\.tif: has negative or fractional values"):
            read_label_image(not_measured)
    save(tmp_path / "a.jpg", np.zeros((6, 5), dtype=np.uint8)).rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: is a JPEG, which changes ids, whatever its name says"):
        read_label_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_verify_image(tmp_path: Path, suffix: str) -> None:
    pixels = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert verify_image(path) == (40, 60)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ValueError, match=r"cannot be read as an image"):
        verify_image(path)


def test_pictures_that_claim_to_be_enormous_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.zeros((4, 4), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image \(Image size \(10000000000 pixels\)"):
        verify_image(path)


def test_so_many_pixels_are_left_to_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", np.zeros((40, 60, 3), dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        ValueError,
        match=r"a\.png: cannot be read as an image \(Image size \(2400 pixels\) exceeds limit.*"
        r"lift Pillow's limit: PIL\.Image\.MAX_IMAGE_PIXELS = None",
    ):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "turned"])
def test_pngs_are_what_pillow_makes_of_them(tmp_path: Path, mode: str) -> None:
    """OpenCV reads some of them."""
    image = Image.fromarray(np.random.randint(0, 256, (8, 6, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = image.convert(mode) if mode != "turned" else image
    image.save(tmp_path / "a.png", **({"exif": exif} if mode == "turned" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")).convert("RGB"))
    assert expected.shape == ((6, 8, 3) if mode == "turned" else (8, 6, 3))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "BGR"), expected[..., ::-1])
    np.testing.assert_array_equal(read_image("elsewhere", content=(tmp_path / "a.png").read_bytes()), expected)


def _says_in_text(orientation: int, keyword: str) -> PngInfo:
    info, exif = PngInfo(), Image.Exif()
    exif[0x0112] = orientation
    if keyword == "Raw profile type exif":  # as ImageMagick writes it
        info.add_text(keyword, f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}", zip=True)
    else:
        info.add_itxt(keyword, f'<rdf:Description tiff:Orientation="{orientation}"/>', zip=True)
    return info


@pytest.mark.parametrize("keyword", ["Raw profile type exif", "XML:com.adobe.xmp"])
def test_pngs_that_say_in_text_how_to_turn_them(tmp_path: Path, keyword: str) -> None:
    pixels = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=_says_in_text(6, keyword))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, -1))
    assert image_size(tmp_path / "a.png") == (6, 8)


def test_animated_pngs_are_what_pillow_makes_of_them(tmp_path: Path) -> None:
    first, second = (Image.fromarray(RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)) for _ in range(2))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second], blend=1, disposal=1)
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.jpg"])
def test_the_first_of_several_frames(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("L", (6, 4), grey) for grey in (10, 200)]
    kind = "MPO" if name == "a.jpg" else None  # what telephones write, where nobody wants the second
    frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:])
    for _ in range(2):
        assert abs(read_image(tmp_path / name).astype(int) - 10).max() <= 1
    if not kind:
        read_label_image(tmp_path / name)
    told = [record.getMessage() for record in caplog.records]
    assert told == (
        []
        if kind
        else [f"{tmp_path / name}: has 2 frames or pages, of which the first is read; write each to a file of its own."]
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_sizes_are_of_turned_images(tmp_path: Path, suffix: str) -> None:
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(path, exif=exif)
    assert read_image(path).shape[:2] == image_size(path) == verify_image(path) == (6, 8)


def test_damaged_pngs_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.random.randint(0, 256, (80, 60, 3)).astype(np.uint8))
    content = path.read_bytes()
    for end in (0, 3, 30, len(content) // 2, len(content) - 40):
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image .* damaged, cut short"):
            read_image(path)
    for place in range(100, len(content), 3000):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
            read_image(path)
