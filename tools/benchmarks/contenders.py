"""Processes that are timed against one another: each answers a line with a line."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Contender"]

REPOSITORY = Path(__file__).resolve().parents[2]


class Contender:
    """A script in a process of its own, so that nothing that it loads or sets concerns the others."""

    def __init__(self, script: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """
        Args:
            script: that reads lines from its standard input, and prints a line for each.
            arguments: its command line.
            environment: variables besides those of this process.
        """
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            # The threads of one contender must not go on spinning while the next one is timed.
            "OMP_WAIT_POLICY": "passive",
            **environment,
        }
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: str) -> str:
        """Send a line, and return the line that is answered."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(request, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} failed; what it says is above.")
        return answer

    def stop(self) -> None:
        """Let it end."""
        self._process.communicate()
