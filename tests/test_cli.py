"""The command ``mask2former``."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

import mask2former as m2f
from mask2former import cli
from mask2former.inference.convert import convert_weights
from mask2former.inference.video import VideoWriter, open_video, read_frames
from tests.colour_model import _colours, config_file, picture, save, weights  # noqa: F401
from tests.small_disk import disk_of
from tests.tiny_model import tiny_config  # noqa: F401

Save = Callable[..., Path]

COMMANDS = ("predict", "inspect", "train", "eval", "export", "benchmark", "browse", "convert", "demo", "models")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"mask2former {m2f.__version__}\n"


@pytest.fixture
def run(config_file: Path) -> Callable[..., int]:  # noqa: F811
    """Run ``mask2former predict`` with the colour model."""
    return lambda *words: cli.main(["predict", *map(str, words), "--model", str(config_file)])


class TestPredict:
    def test_pictures(
        self,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        save("folder/b.png"), save("folder/c.png")
        inputs = (save("a.png"), tmp_path / "folder")
        assert run(*inputs, "--output", tmp_path / "out", "--task", "instance", "--threshold", 0.7) == 0
        for name in "abc":
            (segment,) = json.loads((tmp_path / "out" / f"{name}.json").read_text())["segments"]
            assert (segment["category_name"], segment["area"]) == ("apple", 400)
        assert capsys.readouterr().out.splitlines()[0].startswith("a.png: 1 segments -> ")

    def test_a_home_folder(
        self,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Shells leave the sign alone in ``--output=~/out``."""
        monkeypatch.setenv("HOME", str(tmp_path))
        assert run(save("a.png"), "--output=~/out") == 0
        assert (tmp_path / "out" / "a.json").is_file()

    def test_video(self, run: Callable[..., int], picture: np.ndarray, tmp_path: Path) -> None:  # noqa: F811
        with VideoWriter(tmp_path / "clip.avi", 10) as writer:
            for _ in range(3):
                writer.write(picture)
        assert run(tmp_path / "clip.avi", "--output", tmp_path / "out", "--batch-size", 2) == 0
        assert len(list(read_frames(open_video(str(tmp_path / "out" / "clip.mp4"))))) == 3

    def test_videos_of_one_name_do_not_overwrite_each_other(
        self,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        picture: np.ndarray,  # noqa: F811
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        videos = [tmp_path / "first/clip.avi", tmp_path / "second/clip.mp4"]
        for number, video in enumerate(videos, 1):
            with VideoWriter(video, 10) as writer:
                for _ in range(number):
                    writer.write(picture)
        assert run(*videos, "--output", tmp_path / "out") == 0
        for number, name in enumerate(("clip.mp4", "clip_2.mp4"), 1):
            assert len(list(read_frames(open_video(str(tmp_path / "out" / name))))) == number
        capsys.readouterr()
        for inputs, output, message in (
            (videos, "one.avi", "one.avi is one file, but there are 2 videos"),
            ([save("a.png"), videos[0]], "one.avi", "one.avi is one file, but there are pictures and a video"),
            (videos, "second", "second/clip.mp4 would be overwritten by a result"),
        ):
            assert run(*inputs, "--output", tmp_path / output) == 1
            assert message in capsys.readouterr().err

    def test_videos_are_not_open_all_at_once(
        self,
        run: Callable[..., int],
        tmp_path: Path,
        picture: np.ndarray,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        videos = [tmp_path / "a.avi", tmp_path / "b.avi"]
        for video in videos:
            with VideoWriter(video, 10) as writer:
                writer.write(picture)
        opened: list[cv2.VideoCapture] = []
        still_open: list[int] = []

        def note(source: str) -> cv2.VideoCapture:
            still_open.append(sum(video.isOpened() for video in opened))
            opened.append(open_video(source))
            return opened[-1]

        monkeypatch.setattr(cli.predict, "open_video", note)
        assert run(*videos, "--output", tmp_path / "out") == 0
        assert still_open == [0] * 4  # to check them, and to segment them

    def test_an_exported_file_without_its_package(
        self,
        save: Save,  # noqa: F811
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        (tmp_path / "m.onnx").touch()
        words = [save("a.png"), "--output", tmp_path / "out", "--model", tmp_path / "m.onnx"]
        assert cli.main(["predict", *map(str, words)]) == 1
        assert "error: running ONNX needs onnxruntime: pip install" in capsys.readouterr().err

    def test_one_bad_input_among_good_ones(
        self,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run(save("a.png"), "absent.png", "--output", tmp_path / "out") == 1
        assert capsys.readouterr().err == "error: absent.png: no such file\n"
        assert (tmp_path / "out" / "a.json").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--model", "coco/panoptik/R50"], "there is no model 'coco/panoptik/R50'"),
            (["--weights", "nowhere.pth"], "there is no file nowhere.pth"),
            (["--threshold", "3"], "threshold is 3.0, expected 0 to 1"),
            (["--opts", "INPUT.FORMAT", "YUV"], 'INPUT.FORMAT is "YUV"'),
            (["--opts", "INPUT.FORMATS", "YUV"], "Non-existent key: INPUT.FORMATS"),
            (["--opts", "INPUT.FORMAT"], "INPUT.FORMAT has no value"),
            (["--device", "gpu"], "MODEL.DEVICE is 'gpu', expected"),
        ],
    )
    def test_errors_have_one_line(
        self,
        config_file: Path,  # noqa: F811
        save: Save,  # noqa: F811
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        message: str,
    ) -> None:
        given = ["predict", str(save("a.png")), "--output", str(tmp_path / "out"), "--model", str(config_file)]
        assert cli.main([*given, *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line

    @pytest.mark.parametrize("kind", ["picture", "video"])
    def test_output_that_cannot_be_a_folder_is_told_before_the_model_is_loaded(
        self,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        picture: np.ndarray,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        kind: str,
    ) -> None:
        with VideoWriter(tmp_path / "clip.avi", 10) as writer:
            writer.write(picture)
        monkeypatch.setattr(cli.common, "load", lambda *_, **__: pytest.fail("the model was loaded"))
        (tmp_path / "notes").write_text("a file")
        given = save("a.png") if kind == "picture" else tmp_path / "clip.avi"
        for output in (tmp_path / "notes", tmp_path / "notes/below"):
            assert run(given, "--output", output) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: {output}: cannot be made a folder for results")

    @pytest.mark.parametrize("full", ["a.png", "a_ids.png", "a.json"])
    def test_a_full_disk_has_one_line_and_leaves_no_half_of_a_file(
        self,
        full: str,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert run(save("a.png"), "--output", tmp_path / "out") == 0
        sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
        with disk_of(sizes[full] - 1):
            capsys.readouterr()
            assert run(save("a.png"), "--output", tmp_path / "again") == 1
        (line,) = capsys.readouterr().err.splitlines()
        # The first that is written of those that are as large.
        failed = next(name for name in ("a.png", "a_ids.png", "a.json") if sizes[name] >= sizes[full])
        assert line.startswith(f"error: {tmp_path / 'again' / failed}: cannot be written (File too large); is there")
        assert not (tmp_path / "again" / failed).exists()

    def test_names_that_are_not_utf8(
        self,
        run: Callable[..., int],
        save: Save,  # noqa: F811
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        given = save("a.png").rename(tmp_path / "\udcff.png")
        assert run(given, "--output", tmp_path / "out") == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"\udcff.png", "\udcff.json", "\udcff_ids.png"}
        assert capsys.readouterr().out.startswith(r"\udcff.png: 3 segments -> ")


DATA_SETS = "DATASETS: {TRAIN: [coco_2017_train], TEST: [coco_2017_val]}"


class TestTrainAndEval:
    @pytest.mark.parametrize(("command", "eval_only"), [("train", False), ("eval", True)])
    def test_arguments_are_those_of_train_net(
        self, command: str, eval_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        monkeypatch.setattr(cli.train, "run", seen.append)
        file = tmp_path / "a.yaml"
        file.write_text(DATA_SETS)
        words = [command, "--config-file", str(file), "--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "5"]
        assert cli.main(words) == 0
        (args,) = seen
        assert (args.config_file, args.num_gpus, args.resume, args.eval_only) == (str(file), 2, True, eval_only)
        assert args.opts == ["SOLVER.MAX_ITER", "5"]

    @pytest.mark.parametrize("command", ["train", "eval"])
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "say what to run: --config-file FILE"),
            (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
            (["--config-file", "a.yaml", "SOLVER.MAXITER", "5"], "Non-existent key: SOLVER.MAXITER"),
            (["--config-file", "a.yaml", "SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
            (["--config-file", "a.yaml", "SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
            (["--config-file", "a.yaml", "--num-gpus", "0"], "--num-gpus is 0; expected at least 1"),
            (["--config-file", "a.yaml"], "there is no file nowhere.pth"),
            (["--config-file", "a.yaml", "MODEL.WEIGHTS", "other.pth"], "MODEL.WEIGHTS lacks 3 parameters"),
        ],
    )
    def test_wrong_configurations_have_one_line(
        self,
        command: str,
        words: list[str],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        def find_weights(args: argparse.Namespace) -> None:
            if args.opts:
                raise ValueError("MODEL.WEIGHTS lacks 3 parameters")
            raise FileNotFoundError("there is no file nowhere.pth")

        monkeypatch.setattr(cli.train, "run", find_weights)
        (tmp_path / "a.yaml").write_text(DATA_SETS)
        assert cli.main([command, *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line

    @pytest.mark.parametrize(
        ("key", "names", "train_error", "eval_error"),
        [
            ("TRAIN", "()", "DATASETS.TRAIN is empty; name a data set to train on.", None),
            ("TEST", "()", None, "DATASETS.TEST is empty; name a data set to evaluate on."),
            ("TRAIN", "('coco_2017_trian',)", "there is no data set 'coco_2017_trian'", None),
            ("TEST", "('coco_2017_vall',)", "closest are coco_2017_val", "closest are coco_2017_val"),
        ],
    )
    def test_wrong_data_sets_have_one_line(
        self,
        key: str,
        names: str,
        train_error: str | None,
        eval_error: str | None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A training's are told before its first step, not at the evaluation in the end."""
        monkeypatch.setattr(cli.train, "run", lambda _: None)
        (tmp_path / "a.yaml").write_text(DATA_SETS)
        for command, error in (("train", train_error), ("eval", eval_error)):
            words = [command, "--config-file", str(tmp_path / "a.yaml"), f"DATASETS.{key}", names]
            assert cli.main(words) == (0 if error is None else 1)
            assert (error or "") in capsys.readouterr().err

    @pytest.mark.parametrize("kind", [PermissionError, FileExistsError, NotADirectoryError])
    def test_an_output_folder_that_may_not_be_made(
        self,
        kind: type[OSError],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def make_folder(_: object) -> None:
            raise kind(13, "Permission denied", "/output")

        monkeypatch.setattr(cli.train, "run", make_folder)
        (tmp_path / "a.yaml").write_text(DATA_SETS)
        assert cli.main(["eval", "--config-file", str(tmp_path / "a.yaml")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "error: [Errno 13] Permission denied: '/output'"


class TestConvert:
    def test_there_and_back(self, tiny_config: Path, tmp_path: Path) -> None:  # noqa: F811
        pytest.importorskip("safetensors")
        ours = torch.load(tiny_config.parent / "model.pth", weights_only=True)["model"]
        head = {name: tensor for name, tensor in ours.items() if name.startswith("sem_seg_head.")}
        torch.save({"model": head, "optimizer": {"state": {}}, "iteration": 3}, tmp_path / "ours.pth")
        there, back = str(tmp_path / "theirs.safetensors"), str(tmp_path / "back.pth")
        assert cli.main(["convert", str(tmp_path / "ours.pth"), there, "--to", "huggingface"]) == 0
        assert cli.main(["convert", there, back]) == 0
        loaded = torch.load(back, weights_only=True)
        assert loaded.keys() == {"model"}
        assert loaded["model"].keys() == head.keys()
        assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in head.items())

    def test_half_of_the_size(self, tmp_path: Path) -> None:
        tensors = {"sem_seg_head.predictor.a": torch.randn(1000), "backbone.num_batches_tracked": torch.tensor(7)}
        torch.save({"model": tensors}, tmp_path / "a.pth")
        assert cli.main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--half"]) == 0
        loaded = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
        assert torch.equal(loaded["sem_seg_head.predictor.a"], tensors["sem_seg_head.predictor.a"].half())
        assert loaded["backbone.num_batches_tracked"] == 7
        assert (tmp_path / "b.pth").stat().st_size < 0.7 * (tmp_path / "a.pth").stat().st_size

    def test_folders_of_the_target_are_made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save({"model": {"sem_seg_head.a": torch.ones(1)}}, tmp_path / "a.pth")
        target = tmp_path / "one/two/b.pth"
        assert cli.main(["convert", str(tmp_path / "a.pth"), str(target)]) == 0
        assert target.is_file()
        assert cli.main(["convert", str(tmp_path / "a.pth"), str(target / "c.pth")]) == 1
        assert capsys.readouterr().err.startswith("error: ")

    def test_older_names_become_todays(self, tmp_path: Path) -> None:
        old = {
            "sem_seg_head.predictor.static_query.weight": torch.ones(2),
            "sem_seg_head.layer_1.weight": torch.ones(1),
        }
        torch.save({"model": old}, tmp_path / "old.pth")
        assert convert_weights(tmp_path / "old.pth", tmp_path / "new.pth") == 2
        assert torch.load(tmp_path / "new.pth", weights_only=True)["model"].keys() == {
            "sem_seg_head.predictor.query_feat.weight",
            "sem_seg_head.pixel_decoder.layer_1.weight",
        }

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("a.pth", "b.onnx", "cannot write weights of type '.onnx', only .pth, .pkl and .safetensors"),
            ("a.pth", "a.pth", "would be overwritten by its own conversion"),
            ("absent.pth", "b.pth", "there is no file"),
        ],
    )
    def test_errors(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, target: str, message: str
    ) -> None:
        torch.save({"model": {"sem_seg_head.a": torch.ones(1)}}, tmp_path / "a.pth")
        assert cli.main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 1
        assert message in capsys.readouterr().err


class TestBrowse:
    @pytest.mark.parametrize(
        ("words", "names", "given"),
        [
            ([], ("cells_train",), {"number": 16, "seed": 0, "augment": True, "sheet": False}),
            (
                ["--split", "test", "--no-augmentation", "--sheet", "--number", "3", "--seed", "5"],
                ("cells_val",),
                {"number": 3, "seed": 5, "augment": False, "sheet": True},
            ),
            (["--dataset", "coco_2017_val"], ("coco_2017_val",), {}),
        ],
    )
    def test_arguments(
        self, words: list[str], names: tuple[str, ...], given: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        monkeypatch.setattr(cli.data, "load_config", lambda file, opts: _config_with(file, opts))
        monkeypatch.setattr(cli.data, "for_data_sets", lambda cfg, chosen: chosen)
        monkeypatch.setattr(cli.data, "browse", lambda *args, **options: seen.append((*args, options)) or True)
        arguments = ["browse", "--config-file", "a.yaml", "--output", "out", *words, "SOLVER.MAX_ITER", "5"]
        assert cli.main(arguments) == 0
        ((chosen, output, options),) = seen
        assert (chosen, output) == (names, Path("out"))
        assert options | given == options

    def test_errors_have_one_line(self, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = str(repository / "configs/coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml")
        arguments = ["browse", "--config-file", config, "--output", str(tmp_path), "--dataset", "nothing"]
        assert cli.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: there is no data set 'nothing'")


def _config_with(file: str, opts: list[str]) -> CfgNode:
    assert (file, opts) == ("a.yaml", ["SOLVER.MAX_ITER", "5"])
    return CfgNode({"DATASETS": {"TRAIN": ("cells_train",), "TEST": ("cells_val",)}})


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == m2f.list_models()
    assert "PQ 51.9, AP 41.7, mIoU 61.7" in next(line for line in lines if line.startswith("coco/panoptic/R50 "))


def test_models_for_a_reader_that_has_enough(repository: Path) -> None:
    command = [sys.executable, "-m", "mask2former", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=repository) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_ctrl_c_has_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mask2former.cli.train.prepare_training", interrupt)
    assert cli.main(["train", "--data", "own"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_help_names_every_command(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mask2former", "--help"], capture_output=True, text=True, check=True, cwd=repository
    )
    for command in COMMANDS:
        assert f"    {command} " in done.stdout
    assert cv2.__name__ not in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict a.png --output out --model {}", "there is no model '{}'"),
        ("benchmark {}", "there is no model '{}'"),
        ("convert {} b.pth", "there is no file {}"),
        ("inspect --data {}", "{}: no such file"),
    ],
)
def test_a_path_of_a_user_who_is_not_there(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.zeros((4, 4, 3), np.uint8))
    assert cli.main([word.format("~nobody-at-all/a.pth") for word in command.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format("~nobody-at-all/a.pth") in line
