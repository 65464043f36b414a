"""tools/check_avx512.py needs an emulator; here is only what it says without one."""

import shutil

import check_avx512
import pytest


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["check_avx512.py", "--kernel", "absent/vmlinuz"])
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "xorriso" else f"/bin/{program}")
    with pytest.raises(SystemExit):
        check_avx512.main()
    assert "xorriso is not installed" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}")
    with pytest.raises(SystemExit):
        check_avx512.main()
    assert "there is no Linux kernel absent/vmlinuz" in capsys.readouterr().err
