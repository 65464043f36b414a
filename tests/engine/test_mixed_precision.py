import pytest
import torch

from mask2former.engine.mixed_precision import amp_dtype


@pytest.mark.parametrize(
    ("device", "dtype", "capabilities", "expected"),
    [
        ("cpu", "auto", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", "auto", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("cpu", "auto", {"bf16": True}, torch.bfloat16),
        ("cpu", "auto", {"avx512_bf16": False, "amx_bf16": False}, None),
        ("cpu", "auto", {}, None),
        ("cpu", "bfloat16", {}, torch.bfloat16),
        ("cuda:0", "auto", {}, torch.float16),
        ("cuda", "float16", {}, torch.float16),
        ("cuda", "bfloat16", {}, torch.bfloat16),
    ],
)
def test_amp_dtype(toy_config, monkeypatch, device, dtype, capabilities, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cfg = toy_config(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype, MODEL__DEVICE=device)

    assert amp_dtype(cfg) == expected


def test_amp_is_off_by_default(toy_config):
    assert amp_dtype(toy_config()) is None


@pytest.mark.parametrize(
    ("dtype", "message"), [("float16", "on a GPU only.*'bfloat16'"), ("int8", "'int8'; expected 'auto'")]
)
def test_impossible_amp_types_are_errors(toy_config, dtype, message):
    with pytest.raises(ValueError, match=message):
        amp_dtype(toy_config(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype))


@pytest.mark.parametrize(("has_units", "warned"), [(True, False), (False, True)])
def test_bfloat16_without_units_is_told_to_be_slow(toy_config, monkeypatch, caplog, has_units, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_units})
    amp_dtype(toy_config(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="bfloat16"))

    assert ("'auto' would train in float32" in caplog.text) is warned
