"""Renders the pages of the report from the Jinja templates of this folder.

Every text is escaped by the templates; only figures are HTML before.
"""

import functools
import math
import pathlib
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import markupsafe

from speechbrain_ssl.report import plots
from speechbrain_ssl.report.plots import is_number

if TYPE_CHECKING:
    import matplotlib.figure


class Figure(NamedTuple):
    """A figure for the macro ``figures``: title, SVG and caption."""

    title: str
    svg: markupsafe.Markup
    text: str


class Row(NamedTuple):
    """A row for the macro ``table``: label, cells, words below the label."""

    label: str
    cells: list
    text: str = ""


def figure(
    drawn: "matplotlib.figure.Figure", title: str, text: str = ""
) -> Figure:
    """Prepares a figure for a page; its title makes its ids unique there."""
    prefix = f"f{zlib.crc32(title.encode()):08x}"
    svg = plots.svg(drawn, prefix, str(markupsafe.escape(title)))
    return Figure(title, markupsafe.Markup(svg), text)


def render(template: str, **values: Any) -> str:
    """Renders a template, by the name of its file, to an HTML document."""
    return _environment().get_template(template).render(**values)


def show(value: Any) -> str:
    """A value for readers.

    Example
    -------
    >>> show(1234.0), show(0.12345678), show(None), show(float("nan"))
    ('1,234', '0.1235', '–', 'not finite')
    """
    if value is None:
        return "–"
    if not is_number(value):
        return str(value)
    if not math.isfinite(value):
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def fixed(value: Any, digits: int = 2, factor: float = 1.0) -> str:
    """A number times a factor, with so many digits after the point.

    Example
    -------
    >>> fixed(0.125, 1, 100), fixed(None), fixed(float("inf"))
    ('12.5', '–', 'not finite')
    """
    if not is_number(value) or not math.isfinite(value):
        return show(value)
    return f"{value * factor:,.{digits}f}"


def percent(value: Any) -> str:
    """A share for readers; the no-break space keeps it together.

    Example
    -------
    >>> percent(0.125), percent(None)
    ('12.5\\xa0%', '–')
    """
    text = fixed(value, 1, 100)
    return f"{text}\u00a0%" if text[-1:].isdigit() else text


def duration(seconds: float) -> str:
    """Seconds as hours and minutes.

    Example
    -------
    >>> duration(3725.0), duration(1.5)
    ('1 h 2 min', '1.5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, name: str) -> str:
    """A number with its noun."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


@functools.cache
def _environment():
    """Templates that escape all text and accept no unknown name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        show=show, fixed=fixed, duration=duration, count=count
    )
    return environment
