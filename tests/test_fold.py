from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from fanin._fold import fold


def folded(names, alike=lambda a, b: True):
    return [f"{f.name} {f.times}".rstrip() for f in fold([(n, n) for n in names], alike)]


def test_numbered_blocks_fold_with_their_rows():
    names = [
        f"h.{i}.{leaf}" for i in range(12) for leaf in ("attn.weight", "mlp.weight", "mlp.bias")
    ]
    assert folded(["wte.weight", *names, "ln_f.weight"]) == [
        "wte.weight", "h.0..11.attn.weight x12", "h.0..11.mlp.weight x12", "h.0..11.mlp.bias x12", "ln_f.weight",
    ]  # fmt: skip


def test_a_sequential_with_steps_folds():
    names = [f"{i}.{leaf}" for i in range(0, 20, 2) for leaf in ("weight", "bias")]
    assert folded(names) == ["0..18.weight x10", "0..18.bias x10"]


def test_a_pattern_over_several_numbers_folds():
    names = [f"{3 * i + k}.weight" for i in range(5) for k in (0, 1)]
    assert folded([*names, "head.weight"]) == ["0..12.weight x5", "1..13.weight x5", "head.weight"]


def test_blocks_in_blocks_fold_twice():
    names = [f"layers.{i}.experts.{j}.w" for i in range(4) for j in range(8)]
    assert folded(names) == ["layers.0..3.experts.0..7.w x32"]


def test_a_fold_does_not_cut_a_longer_block():
    names = [f"{s}.{b}.conv" for s, n in enumerate((3, 4)) for b in range(n)]
    assert folded(names) == ["0.0..2.conv x3", "1.0..3.conv x4"]


def test_what_is_not_alike_stays_apart():
    names = [f"h.{i}.w" for i in range(6)]
    odd = {"h.2.w"}
    assert folded(names, lambda a, b: (a in odd) == (b in odd)) == [
        "h.0..1.w x2",
        "h.2.w",
        "h.3..5.w x3",
    ]


def test_names_that_go_back_or_only_look_alike_do_not_fold():
    assert folded(["a.1.w", "a.0.w", "b.2.w", "a.x.w"]) == ["a.1.w", "a.0.w", "b.2.w", "a.x.w"]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from("wb")), max_size=24
    )
)
def test_nothing_is_lost_or_reordered_within_a_row(parts):
    names = [f"{a}.{i}.{b}" for a, i, b in parts]
    folds = fold([(n, n) for n in names], lambda a, b: True)
    assert sorted(n for f in folds for n in f.items) == sorted(names)
    for f in folds:
        places = [int(n.split(".")[1]) for n in f.items]
        assert places == sorted(places)


def test_thousands_of_rows_cost_little():
    start = time.process_time()
    many = [f"{i}.w" for i in range(3000)]
    assert len(folded(many)) == 1
    assert len(folded(many, lambda a, b: a == b)) == 3000
    assert time.process_time() - start < 3.0
