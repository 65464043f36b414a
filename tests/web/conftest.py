"""A model whose answers are known."""

from tests.colour_model import _colours, config_file, picture, save, weights  # noqa: F401
