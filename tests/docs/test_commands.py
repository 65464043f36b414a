"""Every command and block of Python of every page: that it could be typed; and that it runs, where it can here."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former import cli
from tests.docs import plan, world
from tests.docs.checks import check
from tests.docs.pages import LANGUAGES, PAGES, REPOSITORY, Command, read_blocks, read_commands, read_mentions

COMMANDS = [command for page in PAGES for command in read_commands(page)]


@pytest.fixture
def in_world(tmp_path: Path) -> Iterator[None]:
    """In a directory of one's own, see tests/docs/world.py."""
    world.make_world(tmp_path)
    with world.living_in(tmp_path):
        yield


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_their_language(page: str) -> None:
    unknown = [f"{page}:{block.line - 1}" for block in read_blocks(page) if block.language not in LANGUAGES]
    assert unknown == [], f"write one of {', '.join(LANGUAGES)} behind the three backticks"


@pytest.mark.parametrize("page", PAGES)
def test_commands_could_be_typed(page: str) -> None:
    faults = [f"{c.place}: {c.text}: {fault}" for c in read_commands(page) for fault in check(c.words)]
    faults += [f"{c.place}: {c.text}: {f}" for c in read_mentions(page) for f in check(c.words, complete=False)]
    assert faults == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("python tools/absent.py", "there is no tools/absent.py"),
        ("python train_net.py --config-file configs/absent.yaml", "there is no configs/absent.yaml"),
        ("python train_net.py --config-fil a.yaml --gpus 3", "unrecognized arguments: --gpus"),
        ("python train_net.py --num-gpus two", "invalid int value: 'two'"),
        ("python train_net.py SOLVER.MAX_ITERS 3", "Non-existent key: SOLVER.MAX_ITERS"),
        ("python train_net.py SOLVER.MAX_ITER", "Override list has odd length"),
        ("python train_net.py DATASETS.TRAIN \"('coco_2027_train',)\"", "there is no data set coco_2027_train"),
        ("python tools/run_ablations.py 4a --seed", "expected one argument|ambiguous option"),
        ("python tools/write_model_zoo.py --all", "it takes no arguments"),
        ("python tools/browse_dataset.py --output out", "required: --config-file"),
        ("python -m mask2former.absent", "there is no module mask2former.absent"),
        ("mask2former predicts a.jpg", "invalid choice: 'predicts'"),
        ("mask2former predict a.jpg --model coco/panoptic/R51 --output out", "the model zoo has no coco/panoptic/R51"),
        ("mask2former predict a.jpg --model m --output out --opts INPUT.SIZE 3", "Non-existent key: INPUT.SIZE"),
        ("torchrun --nproc_per_node 2 train_net.py --resumes", "unrecognized arguments: --resumes"),
        ("torchrun --processes 2 train_net.py", "torchrun does not take these options"),
        ("sbatch --nodes 2 tools/slurm/train.sbatch --resumes", "unrecognized arguments: --resumes"),
        ("sbatch --nodes 2 tools/slurm/absent.sbatch", "there is no tools/slurm/absent.sbatch"),
        ("make tests", "no target tests"),
        ("make demo PYTHONS=python3", "no variable PYTHONS"),
        ("pip install 'mask2former[absent]'", "there is no extra absent"),
        ("pip install tensorflow", "does not name the package tensorflow"),
        ("conda install x", "teach it to tests/docs/checks.py"),
    ],
)
def test_faults_are_found(words: str, fault: str) -> None:
    assert any(re.search(fault, found) for found in check(shlex.split(words)))


def test_every_command_of_the_command_line_is_documented() -> None:
    (commands,) = (action.choices for action in cli.get_parser()._actions if action.dest == "==SUPPRESS==")
    assert {c.words[1] for c in COMMANDS if c.words[0] == "mask2former"} == set(commands)


def stories(slow: bool) -> list[str]:
    """Pages with commands to run."""
    return [page for page in PAGES if any(plan.is_slow(command) == slow for command in commands_to_run(page))]


def commands_to_run(page: str) -> list[Command]:
    return [command for command in COMMANDS if command.page == page and not plan.reason_not_to_run(command)]


@pytest.mark.usefixtures("in_world")
@pytest.mark.parametrize("page", stories(slow=False))
def test_commands_run(page: str) -> None:
    run_story(page, slow=False)


@pytest.mark.slow
@pytest.mark.usefixtures("in_world")
@pytest.mark.parametrize("page", stories(slow=True))
def test_slow_commands_run(page: str) -> None:
    run_story(page, slow=True)


def run_story(page: str, slow: bool) -> None:
    """A page's commands in their order, each once, in one directory; with the slow ones or without."""
    done: set[str] = set()
    for command in commands_to_run(page):
        if (slow or not plan.is_slow(command)) and command.text not in done:
            done.add(command.text)
            torch.manual_seed(0)
            world.run(command)


def pages_of_python() -> list[Any]:
    """Pages with blocks of Python, the slow ones marked."""
    pages = [page for page in PAGES if any(block.language == "python" for block in read_blocks(page))]
    return [pytest.param(page, marks=[pytest.mark.slow] if page in plan.SLOW_PYTHON else []) for page in pages]


@pytest.mark.usefixtures("in_world")
@pytest.mark.parametrize("page", pages_of_python())
def test_python_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks one after the other, as one program."""
    monkeypatch.setattr("sys.path", sys.path.copy())
    names: dict[str, object] = {}
    exec(plan.BEFORE_PYTHON.get(page, ""), names)
    for block in read_blocks(page):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)


def test_reasons_are_needed_and_true() -> None:
    texts = [command.text for command in COMMANDS]
    for pattern in (*plan.NOT_RUN, *plan.SLOW):
        assert any(re.fullmatch(pattern, text) for text in texts), f"no page has {pattern}: take it out of plan.py"
    for reason in plan.NOT_RUN.values():
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", reason):
            assert (REPOSITORY / path).exists(), path
    elsewhere = (REPOSITORY / "tests/datasets/test_train_net.py").read_text()
    assert all(f'("{section}", ' in elsewhere for section in plan.DATA_SETS)
