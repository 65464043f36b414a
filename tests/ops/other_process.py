"""Python in a process of its own, for what libraries decide when they are imported."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_python(program: str, *arguments: str, **environment: str) -> str:
    """What it prints. It can import what is beside this file; Triton reads its environment when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
