"""Pieces of HTML pages: one look, no scripts, readable on a phone."""

import html
import math
import zlib

from speechbrain_ssl.report import plots
from speechbrain_ssl.report.plots import is_number

CSS = """
:root{color-scheme:light dark;--page:#fff;--text:#1b1f24;--soft:#57606a;
--line:#d5dae0;--box:#f5f7f9;--accent:#0b5cad;--good:#1a6b37;--bad:#9a3412;
--bad-box:#fff4e5}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--text:#e6e8eb;
--soft:#a3abb5;--line:#353b43;--box:#1e2329;--accent:#7db8f5;--good:#74d093;
--bad:#ffb678;--bad-box:#33261a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:20px 16px 48px;max-width:1120px;
background:var(--page);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;margin:.3em 0 .2em}
h2{font-size:1.3rem;margin:2em 0 .6em;padding-top:.5em;
border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.6em 0 .5em}
p{margin:.5em 0;max-width:75ch}
.soft,figcaption{color:var(--soft)}
.cards{display:grid;gap:12px;margin:18px 0;
grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr))}
.card,.note{background:var(--box);border:1px solid var(--line);
border-radius:8px;padding:12px 14px}
.card b{display:block;font-size:1.45rem;line-height:1.3;font-weight:650}
.card .name{font-size:.9rem;color:var(--soft)}
.card .more{font-size:.9rem}
.note{background:var(--bad-box);border-color:var(--bad);margin:14px 0}
.note ul{margin:.3em 0;padding-left:1.2em}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
.figures{display:grid;gap:16px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.multiples{grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr))}
figure{margin:0;min-width:0}
figure .white{background:#fff;border:1px solid var(--line);border-radius:8px;
padding:8px;text-align:center}
figure svg{display:block;width:100%;max-width:540px;height:auto;margin:0 auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{font-size:.9rem;padding:6px 2px}
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.94rem}
th,td{text-align:left;vertical-align:top;padding:5px 14px 5px 0;
border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;overflow-wrap:normal}
tbody th{font-weight:500;overflow-wrap:break-word}
.number{white-space:nowrap;font-variant-numeric:tabular-nums}
.small{font-size:.88rem;font-weight:400;min-width:11em}
.facts th{color:var(--soft);min-width:7.5em}
.facts td{min-width:10em}
pre{background:var(--box);border:1px solid var(--line);border-radius:8px;
padding:10px 12px;font:.85rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere;margin:.6em 0}
summary{cursor:pointer;color:var(--accent);padding:6px 0}
audio{display:block;width:min(300px,62vw);height:38px}
code{font:.85em ui-monospace,"DejaVu Sans Mono",monospace}
a{color:var(--accent)}
@media (max-width:480px){table{font-size:.85rem}th,td{padding-right:7px}}
"""


def document(title, body):
    """A whole page.

    Arguments
    ---------
    title : str
        Its title, as text.
    body : str
        HTML below the title.

    Returns
    -------
    str
        An HTML document.
    """
    title = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{title}</title>\n<style>{CSS}</style>\n'
        f"</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def card(name, value, more=""):
    """One headline number.

    Arguments
    ---------
    name : str
        What it is.
    value : str
        The number.
    more : str
        HTML below it.

    Returns
    -------
    str
        HTML.
    """
    return (
        f'<div class="card"><span class="name">{escape(name)}</span>'
        f'<b>{escape(value)}</b><span class="more">{more}</span></div>'
    )


def cards(found):
    """Headline numbers beside each other.

    Arguments
    ---------
    found : list of str
        What ``card`` gave; empty ones are left out.

    Returns
    -------
    str
        HTML, empty if there is none.
    """
    body = "\n".join(text for text in found if text)
    return f'<div class="cards">\n{body}\n</div>' if body else ""


def figure(drawn, title, text=""):
    """A figure with its caption.

    Arguments
    ---------
    drawn : matplotlib.figure.Figure
        The figure.
    title : str
        Its title, which also makes its ids unique on the page.
    text : str
        What else the caption says.

    Returns
    -------
    str
        HTML.
    """
    prefix = f"f{zlib.crc32(title.encode()):08x}"
    picture = plots.svg(drawn, prefix, escape(title))
    return (
        f'<figure><div class="white">{picture}</div><figcaption><b>'
        f"{escape(title)}</b>{': ' if text else ''}{escape(text)}"
        "</figcaption></figure>"
    )


def grid(figures, multiples=False):
    """Figures beside each other where there is room.

    Arguments
    ---------
    figures : list of str
        What ``figure`` gave.
    multiples : bool
        Whether they are many alike, which may be small.

    Returns
    -------
    str
        HTML, empty if there is none.
    """
    if not figures:
        return ""
    body = "\n".join(figures)
    name = "figures multiples" if multiples else "figures"
    return f'<div class="{name}">\n{body}\n</div>'


def items(lines):
    """A list.

    Arguments
    ---------
    lines : list of str
        HTML of each item.

    Returns
    -------
    str
        HTML.
    """
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def details(summary, body):
    """What is hidden until somebody asks for it.

    Arguments
    ---------
    summary : str
        The text to click on.
    body : str
        The hidden HTML.

    Returns
    -------
    str
        HTML.
    """
    return (
        f"<details>\n<summary>{escape(summary)}</summary>\n{body}\n</details>"
    )


def table(heads, rows):
    """A table that scrolls by itself where the screen is narrow.

    Arguments
    ---------
    heads : list of str
        Names of the columns; empty for none.
    rows : list of str
        What ``row`` gave.

    Returns
    -------
    str
        HTML.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    head = f"<thead><tr>{head}</tr></thead>" if heads else ""
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
    )


def row(label, cells, text=""):
    """A table row.

    Arguments
    ---------
    label : str
        What it is about.
    cells : list of str
        The values.
    text : str
        Words below the label.

    Returns
    -------
    str
        HTML.

    Example
    -------
    >>> row("a < b", ["1"])
    '<tr><th>a &lt; b</th><td class="number">1</td></tr>'
    """
    words = f'<div class="soft small">{escape(text)}</div>' if text else ""
    values = "".join(f'<td class="number">{escape(c)}</td>' for c in cells)
    return f"<tr><th>{escape(label)}{words}</th>{values}</tr>"


def escape(text):
    """Text for HTML.

    Arguments
    ---------
    text : Any
        What is shown as ``str`` does.

    Returns
    -------
    str
        HTML.
    """
    return html.escape(str(text))


def show(value):
    """A value for readers.

    Arguments
    ---------
    value : Any
        The value, None if there is none.

    Returns
    -------
    str
        Text.

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


def fixed(value, digits):
    """A number with so many digits after the point.

    Arguments
    ---------
    value : float
        The number; what is none is shown as ``show`` does.
    digits : int
        How many digits.

    Returns
    -------
    str
        Text.
    """
    if not is_number(value) or not math.isfinite(value):
        return show(value)
    return f"{value:.{digits}f}"


def duration(seconds):
    """Seconds as hours and minutes.

    Arguments
    ---------
    seconds : float
        How long.

    Returns
    -------
    str
        Text.

    Example
    -------
    >>> duration(3725.0)
    '1 h 2 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number, name):
    """A number with its noun.

    Arguments
    ---------
    number : int
        How many.
    name : str
        Of what, in the singular.

    Returns
    -------
    str
        Text.

    Example
    -------
    >>> count(1, "epoch"), count(2000, "epoch")
    ('1 epoch', '2,000 epochs')
    """
    return f"{number:,} {name}{'' if number == 1 else 's'}"
