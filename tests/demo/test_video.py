from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from predictor import VisualizationDemo

import demo
from mask2former.engine.setup import load_config
from mask2former.inference.result import Result
from mask2former.inference.segmenter import Segmenter
from mask2former.inference.video import VideoWriter, frame_rate, open_video, read_frames


@pytest.fixture
def clip(tmp_path: Path, picture: np.ndarray) -> Path:
    """Five frames, ten a second, in which the picture moves to the right."""
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        for i in range(5):
            writer.write(np.roll(picture, 3 * i, axis=1))
    return path


@pytest.fixture
def run(config_file: Path) -> Callable[..., int]:
    return lambda *arguments: demo.main([str(word) for word in ("--config-file", config_file, *arguments)])


class TestVideo:
    @pytest.mark.parametrize("output", ["drawn.mp4", "drawn.avi", "folder"])
    def test_every_frame_is_drawn(self, run: Callable[..., int], clip: Path, tmp_path: Path, output: str) -> None:
        assert run("--video-input", clip, "--output", tmp_path / "out" / output) == 0
        path = tmp_path / "out" / (f"{output}/clip.mp4" if output == "folder" else output)
        video = open_video(str(path))
        before, after = list(read_frames(open_video(str(clip)))), list(read_frames(video))
        assert len(after) == 5
        assert frame_rate(video) == pytest.approx(10)
        for old, new in zip(before, after, strict=True):
            assert np.abs(old.astype(int) - new).mean() > 20

    def test_frames_are_those_of_run_on_image(self, config_file: Path, picture: np.ndarray) -> None:
        model = VisualizationDemo(load_config(str(config_file)))
        frames = [np.roll(picture, 5 * i, axis=1) for i in range(7)]
        drawn = list(model.run_on_video(frames))
        assert len(drawn) == 7
        for frame, drawing in zip(frames, drawn, strict=True):
            np.testing.assert_array_equal(drawing[:, :, ::-1], model.run_on_image(frame)[1].get_image())

    def test_unreadable(self, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--video-input", tmp_path / "absent.mp4", "--output", tmp_path / "out.mp4") == 1
        assert "absent.mp4: cannot be opened as a video" in capsys.readouterr().err

    def test_unknown_type(
        self, run: Callable[..., int], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--video-input", clip, "--output", tmp_path / "out.gif") == 1
        assert "cannot write a video of type '.gif', only .mp4" in capsys.readouterr().err

    def test_never_overwrites_its_input(
        self, run: Callable[..., int], clip: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("--video-input", clip, "--output", clip) == 1
        assert run("--video-input", clip, "--output", clip.parent) == 1
        assert capsys.readouterr().err.count("would be overwritten") == 2


class FakeCamera:
    """Three frames, then nothing; says nothing of its rate. Files are opened as ever."""

    frames: list[np.ndarray]
    real_capture = cv2.VideoCapture

    def __new__(cls, source: int | str) -> Any:
        return super().__new__(cls) if source == 0 else cls.real_capture(source)

    def __init__(self, source: int) -> None:
        self.left = list(type(self).frames)

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, key: int) -> float:
        return -1.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        return (True, self.left.pop()) if self.left else (False, None)


class TestWebcam:
    @pytest.fixture(autouse=True)
    def _camera(self, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray) -> None:
        FakeCamera.frames = [picture] * 3
        monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)

    def test_into_a_file(self, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--webcam", "--output", tmp_path / "out") == 0
        assert capsys.readouterr().out == f"3 frames -> {tmp_path}/out/webcam.mp4\n"
        video = cv2.VideoCapture(str(tmp_path / "out" / "webcam.mp4"))
        assert len(list(read_frames(video))) == 3
        assert frame_rate(video) == pytest.approx(25)

    def test_no_frame(self, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        FakeCamera.frames = []
        assert run("--webcam", "--output", tmp_path / "out") == 1
        assert "no frame that can be read" in capsys.readouterr().err

    def test_into_a_window_until_escape(self, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[np.ndarray] = []
        monkeypatch.setattr(demo, "_has_windows", lambda: True)
        monkeypatch.setattr(cv2, "imshow", lambda title, image: shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(shown) == 2 else -1)
        assert run("--webcam") == 0
        assert len(shown) == 2

    def test_interrupt_leaves_a_whole_file(
        self, run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = Segmenter.stream

        def interrupted(self: Segmenter, source: object, **options: object) -> Iterator[Result]:
            yield next(stream(self, source, **options))
            raise KeyboardInterrupt

        monkeypatch.setattr(Segmenter, "stream", interrupted)
        assert run("--webcam", "--output", tmp_path / "out.mp4") == 0
        assert len(list(read_frames(cv2.VideoCapture(str(tmp_path / "out.mp4"))))) == 1
