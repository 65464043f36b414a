"""How many cores a process may use."""

import os
import subprocess
import sys

import pytest

from mask2former.processors import count_usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives no cores to processes")
def test_only_those_that_the_process_was_given() -> None:
    command = [
        sys.executable,
        "-c",
        f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
        "from mask2former.processors import count_usable_cores; print(count_usable_cores())",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


def test_all_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert count_usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_usable_cores() == 1
