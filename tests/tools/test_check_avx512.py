"""tools/check_avx512.py needs AVX-512 or an emulator; here is only what it says without them."""

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


def test_no_avx512(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["check_avx512.py"])
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    with pytest.raises(SystemExit):
        check_avx512.main()
    assert "this processor has no AVX-512: name a --kernel" in capsys.readouterr().err
