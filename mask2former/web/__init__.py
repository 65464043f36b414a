"""A page to try a model in the browser: drop a picture, see and download its segments."""

from .page import build_page

__all__ = ["build_page"]
