"""Imported first: says what to do where Detectron2 is missing, and imports it as its newer surroundings demand."""

import importlib
import importlib.resources
import importlib.util
import sys
import types
import warnings

__all__: list[str] = []


def _import_detectron2() -> None:
    for module, role in (("detectron2", "extends Detectron2"), ("panopticapi", "evaluates with panopticapi")):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"Mask2Former {role}, which is not installed here: run `python tools/install_detectron2.py`."
            )
    with warnings.catch_warnings():
        # fvcore scripts its focal loss when it is imported; newer releases of PyTorch warn of that.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is (deprecated|not supported)")
        importlib.import_module("detectron2.modeling")
        evaluation = importlib.import_module("detectron2.evaluation.sem_seg_evaluation")
    # Its `copy=False` is an error in NumPy 2 where a copy has to be made; NumPy 1 does not know None, which allows it.
    evaluation.load_image_into_numpy_array.__defaults__ = (True, None)
    if importlib.util.find_spec("pkg_resources") is None:
        _import_model_zoo()


def _import_model_zoo() -> None:
    """Import ``detectron2.model_zoo``, which wants one function of pkg_resources; setuptools 82 has that no more."""
    stand_in = types.ModuleType("pkg_resources")
    vars(stand_in)["resource_filename"] = lambda package, name: str(importlib.resources.files(package) / name)
    sys.modules[stand_in.__name__] = stand_in
    try:
        importlib.import_module("detectron2.model_zoo")
    finally:
        del sys.modules[stand_in.__name__]


_import_detectron2()
