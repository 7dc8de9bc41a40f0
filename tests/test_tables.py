from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin._tables import BARS, markdown, number, shorten, sparkline, table, wrap

finite = st.floats(allow_nan=False, allow_infinity=False)
word = st.text("abcdefghijklmnop._", min_size=1, max_size=60)


@given(st.floats(-1e308, 1e308))
def test_number_keeps_four_digits_in_eleven_characters(x):
    # half a unit in the 4th digit: 5e-4 relative, at most (leading digit 1)
    assert float(number(x)) == pytest.approx(x, rel=5e-4, abs=0)
    assert len(number(x)) <= 11


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0"), (-0.0, "0"), (3, "3"), (768.0, "768"), (999999.0, "999999"), (1e6, "1e6"),
        (1.5e9, "1.5e9"), (0.1767766952966369, "0.1768"), (2.53e-5, "2.53e-5"), (1e-41, "1e-41"),
        (5e-324, "4.941e-324"), (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


@given(word, st.integers(1, 70))
def test_shorten_keeps_both_ends(name, width):
    short = shorten(name, width)
    assert len(short) <= width
    assert short == name or (len(short) == width and "…" in short)
    head, _, tail = short.partition("…")
    assert name.startswith(head) and name.endswith(tail)


@given(
    st.lists(
        st.tuples(word, st.lists(finite, min_size=6, max_size=6), st.text("abc (,)", max_size=200)),
        max_size=5,
    ),
    st.integers(44, 120),
)
def test_no_line_is_too_long_and_no_number_is_cut(rows, width):
    header = ("name", *(f"c{i}" for i in range(6)), "why")
    cells = [(name, *map(number, values), why) for name, values, why in rows]
    text = table(header, cells, width=width, kinds="nrrrrrrt")
    assert all(len(line) <= width for line in text.splitlines())
    words = text.split()
    for _, values, _ in rows:
        assert all(number(v) in words for v in values)


@given(st.lists(st.text("abcde ", max_size=150), min_size=1, max_size=4))
def test_prose_wraps_and_loses_nothing(texts):
    lines = table(
        ("n", "why"), [(str(i), t) for i, t in enumerate(texts)], width=40, kinds="lt"
    ).splitlines()
    told = "".join(line[3:] for line in lines[1:])
    assert told.replace(" ", "") == "".join(texts).replace(" ", "")


def test_columns_align():
    text = table(
        ("layer", "std", "op"), [("fc1.weight", "0.02552", "linear"), ("b", "1", "x")], kinds="nrl"
    )
    assert text == "layer           std  op\nfc1.weight  0.02552  linear\nb                 1  x"


def test_a_table_too_wide_goes_on_below_and_names_its_rows_again():
    text = table(("name", *"abcd"), [("first.row", *["1234567890"] * 4)], width=40, kinds="nrrrr")
    top, bottom = text.split("\n\n")
    assert top.split() == ["name", "a", "b", "first.row", "1234567890", "1234567890"]
    assert bottom.split() == ["name", "c", "d", "first.row", "1234567890", "1234567890"]


def test_a_call_breaks_before_its_parenthesis():
    row = ("w", "1234567890", "TruncatedNormal(0.004083, 3)")
    assert table(("n", "f", "distribution"), [row], width=34, kinds="nrc").splitlines()[1:] == [
        "w  1234567890  TruncatedNormal",
        "               (0.004083, 3)",
    ]


def test_newlines_in_a_cell_are_spaces():
    assert table(("n",), [("a\nb\tc",)]).splitlines() == ["n", "a b c"]


def test_an_empty_table_is_its_header():
    assert table(("name", "std"), [], kinds="nr") == "name  std"


def test_wrap_leads_and_indents():
    assert wrap("one two three", 11, first="why  ") == ["why  one", "     two", "     three"]
    assert wrap("", first="why  ") == ["why"]
    assert "".join(wrap("x" * 100, 30)) == "x" * 100


def test_markdown_escapes():
    assert markdown(("a|b", "c"), [("h.*.w_1", "x\ny")]).splitlines() == [
        r"| a\|b | c |",
        "|---|---|",
        r"| h.\*.w\_1 | x y |",
    ]


@given(st.lists(st.none() | finite, max_size=120), st.booleans())
def test_sparkline_has_a_bar_for_each_known_value(values, log):
    line = sparkline(values, log)
    assert len(line) == min(len(values), 80)
    if len(values) <= 80:
        assert [c == " " for c in line] == [v is None for v in values]
        assert set(line) <= {*BARS, " "}


def test_sparkline_orders_and_spans():
    assert sparkline(range(8)) == BARS
    assert sparkline([10.0**-i for i in range(8)], log=True) == BARS[::-1]
    assert sparkline([math.nan, 1.0, None, 2.0]) == f" {BARS[0]} {BARS[-1]}"


def test_a_steady_signal_looks_flat():
    # +-5 % is 0.04 of a decade: within one of eight bars of the decade that is the least span
    line = sparkline([1.0, 1.05, 0.95, 1.02], log=True)
    assert len(set(line)) == 1
    assert sparkline([3.0, 3.0, 3.0]) == sparkline([0.0, 0.0, 0.0]) == BARS[4] * 3


def test_a_vanished_signal_is_the_lowest_bar_and_an_infinite_one_the_highest():
    assert sparkline([1.0, 1e-3, 0.0], log=True)[-1] == BARS[0]
    assert sparkline([1.0, 1e3, math.inf], log=True)[-1] == BARS[-1]
