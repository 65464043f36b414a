import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

import demo
from mask2former.inference.loading import model_config
from mask2former.weights import find_weights
from tests.small_disk import disk_of

Save = Callable[..., Path]


@pytest.fixture
def run(config_file: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the demo with the colour model; results go to ``out`` unless told otherwise."""

    def call(*arguments: object, output: Path | None = tmp_path / "out") -> int:
        given = [] if output is None else ["--output", output]
        return demo.main([str(word) for word in ("--config-file", config_file, *given, *arguments)])

    return call


def decode(segment: dict[str, Any]) -> np.ndarray:
    return mask_util.decode(segment["segmentation"]).astype(bool)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


class TestResults:
    def test_panoptic_is_the_default(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        assert run("--input", save("fruit.png")) == 0
        result = load(tmp_path / "out" / "fruit.json")
        head = {key: value for key, value in result.items() if key != "segments"}
        assert head == {
            "file_name": "fruit.png",
            "task": "panoptic",
            "id_map": "fruit_ids.png",
            "height": 48,
            "width": 64,
        }
        names = [(s["id"], s["category_id"], s["category_name"], s["isthing"], s["score"]) for s in result["segments"]]
        assert names == [(1, 0, "apple", True, 0.9), (2, 1, "berry", True, 0.6), (3, 2, "grass", False, 0.95)]
        assert [s["area"] for s in result["segments"]] == [400, 80, 48 * 64 - 480]
        assert [s["bbox"] for s in result["segments"]] == [[4, 6, 20, 20], [40, 30, 10, 8], [0, 0, 64, 48]]

    def test_masks_and_id_map_agree(
        self, run: Callable[..., int], save: Save, tmp_path: Path, picture: np.ndarray
    ) -> None:
        run("--input", save("fruit.png"))
        ids = np.asarray(Image.open(tmp_path / "out" / "fruit_ids.png"))
        assert ids.max() == 3
        for segment, channel in zip(load(tmp_path / "out" / "fruit.json")["segments"], (2, 0, 1), strict=True):
            expected = picture[..., channel] > 128
            np.testing.assert_array_equal(decode(segment), expected)
            np.testing.assert_array_equal(ids == segment["id"], expected)

    def test_instances(self, run: Callable[..., int], save: Save, tmp_path: Path, picture: np.ndarray) -> None:
        assert run("--input", save("fruit.png"), "--task", "instance") == 0
        result = load(tmp_path / "out" / "fruit.json")
        assert result["task"] == "instance"
        assert result["id_map"] is None
        assert not (tmp_path / "out" / "fruit_ids.png").exists()
        assert [s["category_name"] for s in result["segments"]] == ["apple", "berry"]
        assert [s["score"] for s in result["segments"]] == pytest.approx([0.9, 0.6])
        np.testing.assert_array_equal(decode(result["segments"][1]), picture[..., 0] > 128)

    def test_semantic(self, run: Callable[..., int], save: Save, tmp_path: Path, picture: np.ndarray) -> None:
        assert run("--input", save("fruit.png"), "--task", "semantic") == 0
        result = load(tmp_path / "out" / "fruit.json")
        assert [(s["id"], s["category_id"], s["score"]) for s in result["segments"]] == [
            (1, 0, None),
            (2, 1, None),
            (3, 2, None),
        ]
        ids = np.asarray(Image.open(tmp_path / "out" / "fruit_ids.png"))
        np.testing.assert_array_equal(ids == 1, picture[..., 2] > 128)
        np.testing.assert_array_equal(decode(result["segments"][2]), picture[..., 1] > 128)

    def test_drawing_shows_the_segments_on_the_picture(
        self, run: Callable[..., int], save: Save, tmp_path: Path, picture: np.ndarray
    ) -> None:
        run("--input", save("fruit.png"), "--task", "instance")
        drawing = cv2.imread(str(tmp_path / "out" / "fruit.png"))
        changed = np.any(drawing != picture, axis=2)
        assert changed[picture[..., 2] > 128].mean() > 0.9
        np.testing.assert_array_equal(drawing[0], picture[0])  # BGR came back as BGR

    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    @pytest.mark.parametrize("size", [0, 24, 96])
    def test_channel_order_and_resizing(
        self, run: Callable[..., int], save: Save, tmp_path: Path, order: str, size: int
    ) -> None:
        assert run("--input", save("fruit.png"), "--opts", "INPUT.FORMAT", order, "INPUT.MIN_SIZE_TEST", size) == 0
        segments = load(tmp_path / "out" / "fruit.json")["segments"]
        assert [s["category_name"] for s in segments] == ["apple", "berry", "grass"]
        assert segments[0]["area"] == pytest.approx(400, rel=0.05)
        assert segments[0]["segmentation"]["size"] == [48, 64]


class TestThreshold:
    @pytest.mark.parametrize(
        ("threshold", "names"), [(0.5, ["apple", "berry"]), (0.6, ["apple", "berry"]), (0.61, ["apple"]), (0.91, [])]
    )
    def test_instances(
        self, run: Callable[..., int], save: Save, tmp_path: Path, threshold: float, names: list[str]
    ) -> None:
        # The score is a float32, a little above 0.6.
        run("--input", save("fruit.png"), "--task", "instance", "--confidence-threshold", threshold)
        assert [s["category_name"] for s in load(tmp_path / "out" / "fruit.json")["segments"]] == names

    def test_instances_drawn(self, run: Callable[..., int], save: Save, tmp_path: Path, picture: np.ndarray) -> None:
        run("--input", save("fruit.png"), "--task", "instance", "--confidence-threshold", 0.99)
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out" / "fruit.png")), picture)

    def test_panoptic(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        run("--input", save("fruit.png"), "--confidence-threshold", 0.7)
        assert [s["category_name"] for s in load(tmp_path / "out" / "fruit.json")["segments"]] == ["apple", "grass"]

    def test_panoptic_default_is_the_configurations(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        run("--input", save("fruit.png"), "--opts", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.92)
        assert [s["category_name"] for s in load(tmp_path / "out" / "fruit.json")["segments"]] == ["grass"]

    def test_semantic_says_that_it_has_none(
        self, run: Callable[..., int], save: Save, caplog: pytest.LogCaptureFixture
    ) -> None:
        run("--input", save("fruit.png"), "--task", "semantic", "--confidence-threshold", 0.7)
        assert "no effect on semantic" in caplog.text

    @pytest.mark.parametrize("value", ["1.5", "-0.1"])
    def test_outside_0_to_1(self, run: Callable[..., int], value: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run(f"--confidence-threshold={value}")
        assert "is not between 0 and 1" in capsys.readouterr().err


class TestInputs:
    def test_files_folders_and_patterns(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        save("folder/b.jpg"), save("folder/a.png"), save("folder/deep/c.png")
        save("scans/x.tif"), save("scans/y.TIF"), save("scans/z.txt.png")
        (tmp_path / "folder" / "notes.txt").write_text("not a picture")
        inputs = (save("one.jpeg"), tmp_path / "folder", tmp_path / "scans" / "*.[tT][iI][fF]")
        assert run("--input", *inputs) == 0
        written = {path.name for path in (tmp_path / "out").iterdir() if "_ids" not in path.name}
        assert written == {f"{stem}.json" for stem in ("one", "a", "b", "x", "y")} | {
            "one.jpeg",
            "a.png",
            "b.jpg",
            "x.tif",
            "y.TIF",
        }

    def test_recursive_pattern(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        save("folder/a.png"), save("folder/deep/c.png")
        assert run("--input", f"{tmp_path}/folder/**") == 0
        assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"a", "c"}

    def test_one_picture_given_twice_is_segmented_once(
        self, run: Callable[..., int], save: Save, tmp_path: Path
    ) -> None:
        path = save("folder/a.png")
        run("--input", path, tmp_path / "folder", path)
        assert len(list((tmp_path / "out").glob("*.json"))) == 1

    def test_equal_names_do_not_overwrite_each_other(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        run("--input", save("1/a.png"), save("2/a.png"), save("2/a.jpg"))
        assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"a.json", "a_2.json", "a_3.json"}
        assert {path.name for path in (tmp_path / "out").glob("a*.[jp][pn]g")} >= {"a.png", "a_2.png", "a_3.jpg"}

    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("absent.png", "no such file"),
            ("no-*.png", "no picture matches this pattern"),
            ("empty", "no pictures in this folder"),
        ],
    )
    def test_nothing_found(
        self,
        run: Callable[..., int],
        save: Save,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        name: str,
        complaint: str,
    ) -> None:
        (tmp_path / "empty").mkdir()
        assert run("--input", save("good.png"), tmp_path / name) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path / name}: {complaint}")
        assert (tmp_path / "out" / "good.json").exists()
        assert run("--input", tmp_path / name) == 1

    @pytest.mark.parametrize("content", [b"", b"not a picture", "cut"])
    def test_bad_file_has_one_line_and_the_others_go_on(
        self,
        run: Callable[..., int],
        save: Save,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        content: bytes | str,
    ) -> None:
        bad = save("b.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
        bad.write_bytes(bad.read_bytes()[:2000] if content == "cut" else content)
        assert run("--input", save("a.png"), bad, save("c.png")) == 1
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        assert str(bad) in line
        assert {path.stem for path in (tmp_path / "out").glob("*.json")} == {"a", "c"}
        assert "a.png: 3 segments" in captured.out

    def test_sixteen_bit_gray_alpha_and_orientation(
        self, run: Callable[..., int], save: Save, tmp_path: Path, picture: np.ndarray
    ) -> None:
        gray = save("gray.tif", picture[..., 2].astype(np.uint16) * 200)
        alpha = save("alpha.png", np.dstack([picture, np.full((48, 64), 7, np.uint8)]))
        turned = tmp_path / "turned.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown a quarter turn to the right
        Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(turned, exif=exif, quality=95)
        assert run("--input", gray, alpha, turned) == 0
        out = tmp_path / "out"
        # Where the apple was is white now: of the three colours, the colour model lets green win.
        assert load(out / "gray.json")["segments"][2]["area"] == 400
        assert len(load(out / "alpha.json")["segments"]) == 3
        result = load(out / "turned.json")
        assert (result["height"], result["width"]) == (64, 48)
        x, y, width, height = result["segments"][0]["bbox"]
        assert np.abs(np.array([x, y, width, height]) - [48 - 26, 4, 20, 20]).max() <= 2

    def test_no_input(self, run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 1
        assert "nothing to segment: give --input, --video-input or --webcam" in capsys.readouterr().err

    def test_two_kinds_of_input(self, run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run("--input", "a.png", "--webcam")
        assert "not allowed with" in capsys.readouterr().err


class TestOutput:
    def test_single_file(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        assert run("--input", save("a.png"), output=tmp_path / "deep" / "drawn.jpg") == 0
        assert {path.name for path in (tmp_path / "deep").iterdir()} == {"drawn.jpg", "drawn.json", "drawn_ids.png"}

    def test_existing_folder_with_a_suffix(self, run: Callable[..., int], save: Save, tmp_path: Path) -> None:
        (tmp_path / "v1.png").mkdir()
        assert run("--input", save("a.png"), output=tmp_path / "v1.png") == 0
        assert (tmp_path / "v1.png" / "a.json").exists()

    def test_never_overwrites_an_input(
        self, run: Callable[..., int], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = save("folder/a.png")
        before = path.read_bytes()
        assert run("--input", path, output=tmp_path / "folder") == 1
        assert "would be overwritten by a result; choose another --output" in capsys.readouterr().err
        assert path.read_bytes() == before

    def test_that_cannot_be_written(
        self, run: Callable[..., int], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "taken").touch()
        assert run("--input", save("a.png"), output=tmp_path / "taken" / "out") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")

    def test_needed_without_a_display(
        self,
        run: Callable[..., int],
        save: Save,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        assert run("--input", save("a.png"), output=None) == 1
        assert "--output is needed" in capsys.readouterr().err

    def test_window(self, run: Callable[..., int], save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[np.ndarray] = []
        monkeypatch.setattr(demo, "_has_windows", lambda: True)
        monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(shown) == 2 else ord(" "))
        assert run("--input", save("a.png"), save("b.png"), save("c.png"), output=None) == 0
        assert [image.shape for image in shown] == [(48, 64, 3)] * 2

    def test_closing_lines_name_the_files(
        self, run: Callable[..., int], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run("--input", save("a.png"))
        assert capsys.readouterr().out == f"a.png: 3 segments -> {tmp_path}/out/a.png, a.json\n"
        for i in range(11):
            save(f"many/{i}.png")
        run("--input", tmp_path / "many")
        assert capsys.readouterr().out == f"11 pictures, 33 segments -> {tmp_path}/out/\n"

    def test_unwritable(
        self,
        run: Callable[..., int],
        save: Save,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = tmp_path / "a.png"
        Image.new("RGB", (9, 9)).save(path)
        with disk_of(0):
            assert run("--input", path) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("a.png: cannot be written (File too large); is there space, and may you write there?")


class TestModel:
    @pytest.mark.parametrize("weights", ["", "nowhere/model.pth"])
    def test_missing_weights(
        self, run: Callable[..., int], save: Save, capsys: pytest.CaptureFixture[str], weights: str
    ) -> None:
        assert run("--input", save("a.png"), "--opts", "MODEL.WEIGHTS", weights) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(
            r"error: MODEL\.WEIGHTS.*(is empty.* MODEL\.WEIGHTS model\.pth at the end|no file nowhere/model\.pth)", line
        )

    def test_backbone_alone_is_no_model(
        self, run: Callable[..., int], save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "backbone.pth"
        torch.save({"model": {"backbone.weight": torch.ones(1, 1), "backbone.bias": torch.ones(1)}}, path)
        assert run("--input", save("a.png"), "--opts", "MODEL.WEIGHTS", path) == 1
        assert re.search(r"lacks 2 parameters of the head, sem_seg_head\.[\w.]+ the first", capsys.readouterr().err)

    def test_missing_config(self, tmp_path: Path, save: Save, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--config-file", "nowhere.yaml", "--input", str(save("a.png")), "--output", str(tmp_path / "out")]
        assert demo.main(arguments) == 1
        assert "there is no configuration nowhere.yaml" in capsys.readouterr().err

    def test_no_task(self, run: Callable[..., int], save: Save, capsys: pytest.CaptureFixture[str]) -> None:
        off = [word for name in ("SEMANTIC", "INSTANCE", "PANOPTIC") for word in (_key(name), "False")]
        assert run("--input", save("a.png"), "--opts", *off) == 1
        assert "turns no task on; give --task" in capsys.readouterr().err
        assert run("--input", save("a.png"), "--task", "semantic", "--opts", *off) == 0

    def test_unknown_input_format(
        self, run: Callable[..., int], save: Save, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--input", save("a.png"), "--opts", "INPUT.FORMAT", "YUV") == 1
        assert 'INPUT.FORMAT is "YUV", expected "RGB", "BGR" or "L"' in capsys.readouterr().err


class TestDefaults:
    def test_sample_picture(self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(demo, "DEFAULT_MODEL", str(config_file))
        assert demo.main([]) == 0
        result = load(tmp_path / demo.SAMPLE_OUTPUT / "ihc.json")
        assert (result["height"], result["width"]) == (512, 512)

    def test_weights_of_the_command_line_win(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(demo, "DEFAULT_MODEL", str(config_file))
        assert demo.main(["--opts", "MODEL.WEIGHTS", "mine.pth"]) == 1
        assert "no file mine.pth" in capsys.readouterr().err

    def test_default_is_the_model_of_the_repository(self) -> None:
        cfg = model_config(demo.DEFAULT_MODEL)
        assert Path(find_weights(cfg.MODEL.WEIGHTS)).is_file()
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2

    def test_sample_package_missing(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(demo, "SAMPLE_PACKAGE", "no_such_package")
        assert demo.main([]) == 1
        assert "pip install scikit-image, or give --input" in capsys.readouterr().err

    def test_runs_as_a_script(self, repository: Path) -> None:
        done = subprocess.run(
            [sys.executable, repository / "demo" / "demo.py", "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(repository), "PATH": ""},
        )
        for flag in ("config-file", "webcam", "video-input", "input", "output", "confidence-threshold", "opts", "task"):
            assert f"--{flag}" in done.stdout


def _key(name: str) -> str:
    return f"MODEL.MASK_FORMER.TEST.{name}_ON"
