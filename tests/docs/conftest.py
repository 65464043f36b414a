"""Programs of tools/ and demo/ change loggers and catalogs; nothing of that is left for other tests."""

from tests.engine.conftest import _loggers  # noqa: F401
