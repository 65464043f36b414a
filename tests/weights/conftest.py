"""A server to download from, and small models."""

from tests.tiny_model import photograph, tiny_config  # noqa: F401
from tests.website import cache, downloaded, site  # noqa: F401
