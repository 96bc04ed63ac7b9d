"""Templates escape what they are given, and values are for readers."""

import jinja2
import pytest

from speechbrain_ssl.report import render


def pieces():
    """Each macro and the layout, with a tag as text everywhere."""
    card = {"name": "<b>", "value": "<b>", "lines": ["<b>"]}
    row = render.Row("<b>", ["<b>"], "<b>")
    template = render._environment().from_string(
        '{% extends "layout.html" %}'
        '{% from "parts.html" import cards, figures, table %}'
        "{% block body %}{{ cards([card]) }}{{ figures([figure]) }}"
        '{{ table("<b>", ["<b>"], [row]) }}{% endblock %}'
    )
    figure = render.Figure("<b>", "<b>", "<b>")
    return template.render(title="<b>", card=card, row=row, figure=figure)


def test_what_is_text_is_escaped():
    # two in the head, three in the card, three in the figure, six in the table
    assert pieces().count("&lt;b&gt;") >= 14
    assert "<b><b>" not in pieces() and "<td><b>" not in pieces()


def test_a_page_has_no_address_and_one_main_landmark_and_fits_a_phone():
    text = pieces()
    assert "http" not in text and "width=device-width" in text
    assert text.count("<main>") == 1 and '<html lang="en">' in text


def test_a_template_with_an_unknown_name_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render.render("layout.html")


@pytest.mark.parametrize(
    "value, words",
    [
        (None, "–"),
        (float("inf"), "not finite"),
        (12345, "12,345"),
        (0.000123456, "0.0001235"),
        ("text", "text"),
        (True, "True"),
    ],
)
def test_values_for_readers(value, words):
    assert render.show(value) == words


def test_numbers_of_fixed_length():
    assert render.fixed(1 / 3, 2) == "0.33"
    assert render.fixed(None, 2) == render.percent(None) == "–"
    assert render.percent(float("nan")) == "not finite"


@pytest.mark.parametrize(
    "seconds, words",
    [(5.04, "5.0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")],
)
def test_durations(seconds, words):
    assert render.duration(seconds) == words
