"""For tools that look for this file; pyproject.toml describes the package."""

from setuptools import setup

setup()
