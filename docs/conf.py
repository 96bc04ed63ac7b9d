"""Configuration of the documentation: ``sphinx-build -W docs docs/_build``."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import keys  # noqa: E402

import speechbrain_ssl  # noqa: E402

project = "speechbrain_ssl"
author = "speechbrain_ssl developers"
release = speechbrain_ssl.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "speechbrain_ssl"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = [("Arguments", "params_style")]


def _underline(app, what, name, obj, options, lines):
    """SpeechBrain writes Arguments where numpydoc writes Parameters."""
    for place, line in enumerate(lines):
        if line == "Arguments" and re.fullmatch("-+", lines[place + 1]):
            lines[place] = "Parameters"
            lines[place + 1] = "----------"


def setup(app):
    """Writes the key reference before the pages are read."""
    keys.write(ROOT / "recipes", ROOT / "docs" / "keys")
    # before napoleon
    app.connect("autodoc-process-docstring", _underline, priority=1)
