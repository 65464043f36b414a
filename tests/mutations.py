"""Damaging good files, at random but always alike: what a reader may meet."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["JUNK", "ROUNDS", "at_every_path", "mutate", "mutate_bytes"]

# How many damaged files a test reads; more for a longer search.
ROUNDS = int(os.environ.get("MASK2FORMER_FUZZ_ROUNDS", 40))
JUNK: list[Any] = [
    None, True, -1, 0, 1.5, 10**9, 10**400, -(2**63), float("nan"), float("inf"), 1e308, "", "0", "../x", "/", "\0",
    "é", [], {}, [[]], [[[]]], [None], [1, 2], [[1, 2], [3, 4]], {"size": [1, 1], "counts": [1]}, {"id": {}},
    "x" * 5000,
]  # fmt: skip


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key of it."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [pair for key, child in list(entries) for pair in [(value, key), *nodes(child)]]


def mutate_json(text: str, rng: random.Random) -> str:
    content = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(nodes(content) or [(content, None)])
        action = rng.randrange(4)
        if key is None:
            return json.dumps(rng.choice(JUNK))
        if action == 0 and isinstance(container, dict):
            del container[key]
        elif action == 1 and isinstance(container, list):
            container.insert(rng.randint(0, len(container)), container[key])
        elif action == 2:
            container[key] = rng.choice(rng.choice(nodes(content))[0:1])
        else:
            container[key] = rng.choice(JUNK)
        if action == 2:  # a cycle cannot be written
            try:
                content = json.loads(json.dumps(content))
            except ValueError:
                container[key] = None
    return json.dumps(content)


def mutate_words(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    for _ in range(rng.randint(1, 3)):
        words.insert(rng.randrange(len(words) + 1), str(rng.choice(JUNK)))
        words.pop(rng.randrange(len(words)))
    return " ".join(words)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        action, at = rng.randrange(4), rng.randrange(len(changed) + 1)
        if action == 0:
            del changed[at : at + rng.randint(1, 40)]
        elif action == 1:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
        elif changed:
            changed[min(at, len(changed) - 1)] = rng.randrange(256)
    return bytes(changed)


def mutate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    try:
        if path.suffix == ".json" and rng.random() < 0.8:
            path.write_text(mutate_json(content.decode(), rng))
        elif path.suffix in (".txt", ".csv") and rng.random() < 0.7:
            path.write_text(mutate_words(content.decode(), rng), "utf-8", "surrogateescape")
        else:
            path.write_bytes(mutate_bytes(content, rng))
    except (RecursionError, UnicodeEncodeError):  # such a file cannot be written
        path.write_bytes(mutate_bytes(content, rng))


def at_every_path(content: Any, values: list[Any]) -> Iterator[tuple[str, Any]]:
    """The content of a JSON or YAML file with each of its values replaced by each of ``values``, and where that is."""
    text = json.dumps(content)
    for place in range(len(nodes(content))):
        for value in values:
            changed = json.loads(text)
            container, key = nodes(changed)[place]
            container[key] = value
            yield f"{key} = {value!r:.60}", changed
    for value in values:
        yield f"all = {value!r:.60}", value
