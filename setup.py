"""Metadata is in pyproject.toml. This file is for what that cannot say: the compiled op, once there is one."""

from setuptools import setup

setup()
