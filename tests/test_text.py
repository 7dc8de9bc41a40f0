from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanin._plan import InitPlan
from fanin._report import Coverage, Finding, Layer, Signal, SignalReport
from fanin._rows import Packed, Row
from fanin._text import (
    diff_text,
    drawn,
    html_table,
    plan_markdown,
    plan_text,
    report_markdown,
    report_text,
)
from fanin.distributions import Constant, Normal, Orthogonal, TruncatedNormal, Uniform


def row(name, shape, role, distribution, why, *, fan=None, aliases=(), packed=()):
    fan_out = None if fan is None else float(shape[0])
    return Row(
        name,
        aliases,
        shape,
        "float32",
        role,
        fan,
        fan_out,
        None,
        0,
        distribution,
        distribution.std_for(shape),
        why,
        packed,
    )


def gpt(blocks=12, residual=0.004083):
    scaled = (
        "gpt2: N(0, 0.02)",
        f"x0.2041: {2 * blocks} residual branches add up to one stream, so that each brings 1/{2 * blocks} of its variance",
    )
    rows = [
        row(
            "wte.weight",
            (50257, 768),
            "embed",
            Normal(0.02),
            ("gpt2: N(0, 0.02)",),
            fan=1.0,
            aliases=("lm_head.weight",),
        )
    ]
    for i in range(blocks):
        rows += [
            row(
                f"h.{i}.ln_1.weight",
                (768,),
                "norm",
                Constant(1.0),
                ("a norm starts as the identity",),
            ),
            row(
                f"h.{i}.attn.c_attn.weight",
                (2304, 768),
                "qkv",
                Normal(0.02),
                ("gpt2: N(0, 0.02)",),
                fan=768.0,
            ),
            row(
                f"h.{i}.mlp.c_proj.weight",
                (768, 3072),
                "ffn_out",
                TruncatedNormal(residual),
                scaled,
                fan=3072.0,
            ),
        ]
    return InitPlan(tuple(rows), "gpt2", notes=("planned from module types",))


GPT_TEXT = """\
fanin plan: scheme gpt2, 37 parameters (88.15M elements), rng fanin-1

parameter                        role      fan       std  distribution       why
wte.weight *                     embed       1      0.02  Normal(0.02)       [1]
h.0..11.ln_1.weight         x12  norm        -         0  Constant(1)        [2]
h.0..11.attn.c_attn.weight  x12  qkv       768      0.02  Normal(0.02)       [1]
h.0..11.mlp.c_proj.weight   x12  ffn_out  3072  0.004028  TruncatedNormal    [3]
                                                          (0.004083, 3)

[1]  gpt2: N(0, 0.02)
[2]  a norm starts as the identity
[3]  gpt2: N(0, 0.02); x0.2041: 24 residual branches add up to one stream, so
     that each brings 1/24 of its variance
*    tied, drawn once: wte.weight = lm_head.weight
note planned from module types"""


def test_plan_golden():
    assert plan_text(gpt()) == GPT_TEXT


def test_plan_is_what_str_prints():
    assert str(gpt()) == plan_text(gpt())


def test_reasons_stand_once_and_every_mark_points_to_one():
    text = plan_text(gpt())
    marks = set(re.findall(r"\[(\d+)\]$", text, flags=re.MULTILINE))
    assert marks == set(re.findall(r"^\[(\d+)\]", text, flags=re.MULTILINE)) == {"1", "2", "3"}


def test_blocks_that_differ_are_not_folded():
    plan = gpt(4).replace("h.2.attn.c_attn.weight", Normal(0.5), "because")
    text = plan_text(plan)
    assert "h.0..1.attn" in text
    assert re.search(r"h\.2\.attn\.c_attn\.weight +qkv +768 +0\.5 ", text)
    assert "because" in text


def test_slices_that_start_alike_stand_together():
    def part(name, at, distribution):
        return Packed(name, 0, at, at + 64, 64.0, 64.0, distribution, distribution.std)

    same = [part(n, 64 * i, Normal(0.1)) for i, n in enumerate("qkv")]
    uneven = [*same[:2], part("v", 128, Normal(0.2))]
    shown = {}
    for key, parts in (("same", same), ("uneven", uneven)):
        plan = InitPlan(
            (row("w", (192, 64), "qkv", Normal(0.1), ("why",), fan=64.0, packed=tuple(parts)),)
        )
        shown[key] = plan_text(plan)
    assert ":" not in shown["same"].split("\n\n")[1]
    assert re.search(r"^  :q,k +64 +0\.1  Normal\(0\.1\)", shown["uneven"], flags=re.MULTILINE)
    assert re.search(r"^  :v +64 +0\.2  Normal\(0\.2\)", shown["uneven"], flags=re.MULTILINE)


def test_a_padding_row_is_shown():
    padding = Packed("padding", 0, 0, 1, None, None, Constant(0.0), 0.0)
    plan = InitPlan(
        (row("emb.weight", (10, 4), "embed", Normal(1.0), (), fan=1.0, packed=(padding,)),)
    )
    assert re.search(r"^  :padding +- +0  Constant\(0\)", plan_text(plan), flags=re.MULTILINE)


def test_an_empty_plan_is_a_title():
    assert (
        plan_text(InitPlan(())) == "fanin plan: scheme auto, 0 parameters (0 elements), rng fanin-1"
    )


deep_names = st.lists(
    st.text("abcdefgh_0123", min_size=1, max_size=30), min_size=1, max_size=6
).map(".".join)
distributions = st.one_of(
    st.floats(1e-30, 1e30).map(Normal),
    st.floats(1e-30, 1e30).map(TruncatedNormal),
    st.floats(1e-30, 1e30).map(lambda a: Uniform(-a, a)),
    st.floats(0, 1e9).map(Orthogonal),
)


@given(
    st.lists(st.tuples(deep_names, distributions), max_size=8, unique_by=lambda t: t[0]),
    st.text(max_size=200),
)
def test_plan_fits_80_columns(named, why):
    rows = tuple(row(n, (30, 20), "rnn_hidden", d, (why,), fan=20.0) for n, d in named)
    assert max(map(len, plan_text(InitPlan(rows)).splitlines())) <= 80


def test_drawn_is_the_constructor_by_position():
    assert drawn(TruncatedNormal(0.02, 2.0)) == "TruncatedNormal(0.02, 2)"
    assert eval(drawn(Uniform(-0.5, 0.5)), {"Uniform": Uniform}) == Uniform(-0.5, 0.5)


def test_plan_markdown_has_every_row():
    text = plan_markdown(gpt())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count(" | ") for line in table if "---" not in line} == {6}
    assert "1. gpt2: N(0, 0.02)" in text


# reports -------------------------------------------------------------------------------------


def relu_default(depth=100):
    """The figures of PyTorch's default in a deep ReLU network: research/ux.md's case."""
    layers = []
    for i in range(depth):
        act, corr, grad = max(0.578 * 0.5**i, 0.028), 1 - 10 ** (-i / 8), 0.1 * 2.45 ** (i - depth)
        layers.append(
            Layer(f"{2 * i}", "linear", (64, 512), None, Signal(act, 0.0, corr, grad, 0.0, None))
        )
        layers.append(
            Layer(f"{2 * i + 1}", "relu", (64, 512), None, Signal(act, 0.0, corr, grad, 0.05, None))
        )
    return tuple(layers)


VANISHES = Finding(
    "FAN102", "error", "0", "gradient shrinks 2.45x per layer, 1e-39 over 100",
    "torch.nn.Linear's default has gain 0.577; relu needs 1.414 (He et al. 2015)", "fanin.initialize_(model, x)",
)  # fmt: skip
COLLAPSE = Finding(
    "FAN104", "warning", "22", "inputs look alike", "chi < 1", "fanin.initialize_(model, x)"
)


def deep_report():
    return SignalReport(
        relu_default(), (VANISHES, COLLAPSE), Coverage(200, 201, ("fft_r2c x1",)), inputs=Signal(1.0, 0.0, 0.1),
        loss=2.31, chance=math.log(10), notes=("measured in float64",),
    )  # fmt: skip


def test_report_of_a_deep_network_is_short_and_says_it_all():
    text = report_text(deep_report())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert lines[0] == "fanin report: 200 ops measured in float32, loss 2.31 (chance 2.303)"
    assert re.search(r"^0 +linear +0\.578 +0\.00 +\S+e-40 .* 102$", text, flags=re.MULTILINE)
    assert re.search(r"^22 +linear .* 104$", text, flags=re.MULTILINE)
    assert re.search(r"^24\.\.198 +x88 +linear +0\.028 +\.\.1-\de-13 ", text, flags=re.MULTILINE)
    assert "FAN102 error 0: gradient shrinks 2.45x per layer" in text
    assert "  why  torch.nn.Linear's default" in text
    assert "  fix  fanin.initialize_(model, x)" in text
    assert "note measured in float64" in text
    assert "covered 200/201 ops, not measured: fft_r2c x1; 1 error, 1 warning;" in text
    assert "more: fanin explain FAN102" in " ".join(text.split())


def test_every_layer_is_in_one_row_of_the_table():
    text = report_text(deep_report())
    block = text.split("\n\n")[1].splitlines()[2:]
    times = [re.search(r"\bx(\d+)\b", line) for line in block]
    assert sum(int(m[1]) if m else 1 for m in times) == 200


def test_a_short_report_shows_every_layer_whole():
    layers = relu_default(5)
    block = report_text(SignalReport(layers)).split("\n\n")[1].splitlines()
    assert len(block) - 1 <= 10
    assert "no findings" in report_text(SignalReport(layers))


def test_what_is_not_known_is_a_dash():
    text = report_text(SignalReport((Layer("", "linear", (2, 3), None, Signal(0.5)),)))
    assert re.search(r"^\(model\) +linear +0\.5 +- +-$", text, flags=re.MULTILINE)


def test_zero_and_not_finite_figures_are_told_apart():
    signals = [Signal(1.0, 0.0, None, g) for g in (0.0, math.nan, math.inf, 1e-300)]
    text = report_text(
        SignalReport(
            tuple(Layer(f"{'abcd'[i]}", "linear", (2, 3), None, s) for i, s in enumerate(signals))
        )
    )
    assert [line.split()[4] for line in text.split("\n\n")[1].splitlines()[1:]] == [
        "0",
        "nan",
        "inf",
        "1e-300",
    ]


def test_an_empty_report():
    text = report_text(SignalReport(()))
    assert text.startswith("fanin report: 0 ops")
    assert text.endswith("covered 0/0 ops; no findings")


def test_a_finding_for_the_whole_model_marks_no_layer():
    whole = Finding("FAN106", "warning", "", "loss far from chance", "y", "z")
    text = report_text(SignalReport((Layer("", "linear", (2, 3), None, Signal(1.0)),), (whole,)))
    assert not re.search(r" 106$", text, flags=re.MULTILINE)
    assert "FAN106 warning loss far from chance" in text


signals = st.builds(
    Signal,
    st.none() | st.floats(0, 1e300), st.none() | st.floats(-1e9, 1e9), st.none() | st.floats(-1, 1),
    st.none() | st.floats(0, 1e300), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1),
)  # fmt: skip
layers = st.builds(
    Layer,
    deep_names,
    st.sampled_from(["scaled_dot_product_attention", "relu"]),
    st.just((2, 3)),
    st.none(),
    signals,
)


@given(st.lists(layers, max_size=12), st.text(max_size=300))
def test_report_fits_80_columns(some, message):
    where = some[0].name if some else ""
    report = SignalReport(
        tuple(some), (Finding("FAN101", "error", where, message, message, message),)
    )
    assert max(map(len, report_text(report).splitlines())) <= 80


def test_report_markdown():
    text = report_markdown(deep_report())
    assert "- **FAN102 error** 0: gradient shrinks" in text
    assert "| 22 |  | linear |" in text


# diff ----------------------------------------------------------------------------------------


def test_diff_folds_and_gives_the_ratio():
    plan = gpt()
    other = plan.scaled("h.*.attn.*", 0.5, "half as loud")
    assert diff_text(plan.diff(other)).splitlines() == [
        "~ h.0..11.attn.c_attn.weight x12",
        "    Normal(0.02) -> Normal(0.01), std x0.5",
        "    why: gpt2: N(0, 0.02); x0.5: half as loud",
        "",
        "0 removed, 0 added, 12 changed",
    ]


def test_diff_names_what_came_and_went():
    plan = InitPlan((row("a", (2, 2), "linear", Normal(1.0), ()),))
    other = InitPlan((row("b", (2, 2), "linear", Normal(2.0), ()),))
    assert diff_text(plan.diff(other)).splitlines()[:2] == ["- a Normal(1)", "+ b Normal(2)"]


def test_equal_plans_say_so():
    assert diff_text(gpt().diff(gpt())) == "the plans write the same values"


# HTML ----------------------------------------------------------------------------------------


class _Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1] += data


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_html_cells_come_back_as_they_were(rows):
    parser = _Cells()
    parser.feed(html_table(("<a>", "b&"), rows))
    parser.close()
    assert parser.open == []
    clean = [c.replace("\r\n", "\n") for r in rows for c in r]
    assert [c.replace("\r\n", "\n") for c in parser.cells] == ["<a>", "b&", *clean]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0255155, "0.02552"), (Normal(0.02), "Normal(std=0.02)"), (3, "3")],
)
def test_html_values(value, shown):
    assert f"<td>{shown}</td>" in html_table(("x",), [(value,)])
