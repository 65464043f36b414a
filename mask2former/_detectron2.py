"""Imported first: says what to do where Detectron2 is missing, and imports it without its libraries' complaints."""

import importlib
import importlib.util
import warnings

__all__: list[str] = []


def _import_detectron2() -> None:
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(
            "Mask2Former extends Detectron2, which is not installed here: run `python tools/install_detectron2.py`."
        )
    with warnings.catch_warnings():
        # fvcore scripts its focal loss when it is imported; newer releases of PyTorch warn of that.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        importlib.import_module("detectron2.modeling")


_import_detectron2()
