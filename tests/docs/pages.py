"""What the pages tell to type: the commands and the Python of their blocks of code, and commands within sentences."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
LANGUAGES = ("bash", "python", "yaml", "text", "bibtex")
PROGRAMS = ("python", "pip", "make", "mask2former", "sbatch", "torchrun", "tools/run_on_arm.sh")
# What is history tells of commands, but not what to type.
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "configs/**/*.md", "datasets/*.md", "demo/*.md", "tools/**/*.md")
    for path in REPOSITORY.glob(pattern)
    if path.name != "CHANGELOG.md"
)

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
_MENTION = re.compile(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    line: int
    language: str
    code: str


class Command(NamedTuple):
    """A command with the variables that it sets before itself."""

    page: str
    line: int
    environment: dict[str, str]
    words: list[str]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def read_blocks(page: str) -> list[Block]:
    text = (REPOSITORY / page).read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 2, match["language"], _dedent(match["code"], match["indent"]))
        for match in _BLOCK.finditer(text)
    ]


def read_commands(page: str) -> list[Command]:
    """Commands of the page's blocks, in its order."""
    commands = []
    for block in read_blocks(page):
        if block.language == "bash":
            joined = re.sub(r"\\\n", lambda _: "\\\0", block.code)  # one line a command, and lines stay countable
            line = block.line
            for text in joined.split("\n"):
                words = shlex.split(text.replace("\\\0", " "), comments=True)
                if words:
                    commands.append(_command(page, line, words))
                line += 1 + text.count("\0")
    return commands


def read_mentions(page: str) -> list[Command]:
    """Commands within sentences, which may leave out what goes without saying."""
    text = _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), (REPOSITORY / page).read_text("utf-8"))
    return [
        _command(page, text.count("\n", 0, match.start()) + 1, [w for w in shlex.split(match[1]) if w != "..."])
        for match in _MENTION.finditer(text)
    ]


def _command(page: str, line: int, words: list[str]) -> Command:
    environment = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    return Command(page, line, environment, words)


def _dedent(code: str, indent: str) -> str:
    return re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
