"""Pieces of pages escape what they are given."""

import pytest

from speechbrain_ssl.report import html


def test_what_is_text_is_escaped():
    pieces = [
        html.document("<b>", ""),
        html.card("<b>", "<b>"),
        html.table(["<b>"], [html.row("<b>", ["<b>"], "<b>")]),
        html.details("<b>", ""),
    ]
    for piece in pieces:
        assert "&lt;b&gt;" in piece
        assert "<b><" not in piece


def test_what_is_html_stays_so():
    assert "<p>x</p>" in html.document("t", "<p>x</p>")
    assert html.items(["<i>x</i>"]) == "<ul><li><i>x</i></li></ul>"
    assert "<i>x</i>" in html.card("name", "1", "<i>x</i>")


def test_groups_of_nothing_are_nothing():
    assert html.cards(["", ""]) == html.grid([]) == ""


def test_a_document_has_no_address_and_fits_a_phone():
    text = html.document("t", "")
    assert "http" not in text and "width=device-width" in text


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
    assert html.show(value) == words


def test_numbers_of_fixed_length():
    assert html.fixed(1 / 3, 2) == "0.33"
    assert html.fixed(None, 2) == "–"


@pytest.mark.parametrize(
    "seconds, words",
    [(59.4, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")],
)
def test_durations(seconds, words):
    assert html.duration(seconds) == words
