"""The demo's modules, and a model for them whose answers are known."""

import sys
from pathlib import Path

from tests.colour_model import _colours, config_file, picture, save, weights  # noqa: F401
from tests.tiny_model import photograph, tiny_config  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "demo"))
