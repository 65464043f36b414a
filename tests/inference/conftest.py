"""Models whose answers are known, and small ones of the real structure."""

from tests.colour_model import _colours, config_file, picture, save, weights  # noqa: F401
from tests.tiny_model import photograph, tiny_config  # noqa: F401
