import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mask2former.inference.video import VideoWriter, frame_rate, is_video, open_video, prefetch, read_frames
from tests.small_disk import disk_of


class TestVideo:
    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
    def test_written_frames_can_be_read(self, tmp_path: Path, picture: np.ndarray, suffix: str) -> None:
        path = tmp_path / "new" / f"clip{suffix}"
        with VideoWriter(path, 12.5) as writer:
            for _ in range(5):
                writer.write(picture)
        video = open_video(str(path))
        frames = list(read_frames(video))
        assert frame_rate(video) == pytest.approx(12.5, abs=0.1)
        assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
        assert np.abs(frames[0].astype(int) - picture).mean() < 15

    def test_unwritable(self, tmp_path: Path, picture: np.ndarray) -> None:
        (tmp_path / "taken.mp4").mkdir()
        with (
            pytest.raises(ValueError, match=r"taken\.mp4: OpenCV cannot write 64 x 48 video there"),
            VideoWriter(tmp_path / "taken.mp4", 10) as writer,
        ):
            writer.write(picture)

    @pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
    def test_full_disk(self, tmp_path: Path, suffix: str) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
        writer = VideoWriter(tmp_path / f"clip{suffix}", 10)
        writer.write(frames[0])
        with disk_of(10_000):
            for frame in frames[1:]:
                writer.write(frame)
            with pytest.raises(OSError, match=f"clip{suffix}: not all of its 20 frames could be written; make space"):
                writer.__exit__(None, None, None)

    def test_names_at_which_opencv_crashes(self) -> None:
        message = r"\.mp4: the name of a video must be text in UTF-8; rename it"
        with pytest.raises(ValueError, match=message):
            open_video("\udcff.mp4")
        with pytest.raises(ValueError, match=message):
            VideoWriter(Path("\udcff.mp4"), 10)

    def test_what_is_a_video(self, tmp_path: Path) -> None:
        assert all(is_video(source) for source in ("a.MP4", Path("a.mkv"), "rtsp://camera/1", 0, cv2.VideoCapture()))
        assert not any(is_video(source) for source in ("a.jpg", "scan", tmp_path, np.zeros((2, 2, 3)), ["a.mp4"]))


class TestPrefetch:
    def test_order_and_end(self) -> None:
        assert list(prefetch(iter(range(20)), depth=3)) == list(range(20))
        assert list(prefetch([], depth=3)) == []
        assert list(prefetch([None, 0, ""])) == [None, 0, ""]

    def test_works_ahead_but_not_too_far(self) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for i in range(100):
                taken.append(i)
                yield i

        ahead = prefetch(items(), depth=3)
        assert next(ahead) == 0
        time.sleep(0.1)
        assert len(taken) == 4  # the one that is out, and three more
        ahead.close()
        assert len(taken) <= 5
        assert threading.active_count() < 20

    def test_error_arrives_after_what_came_before_it(self) -> None:
        def items() -> Iterator[int]:
            yield 1
            raise OSError("cable")

        ahead = prefetch(items())
        assert next(ahead) == 1
        with pytest.raises(OSError, match="cable"):
            next(ahead)
