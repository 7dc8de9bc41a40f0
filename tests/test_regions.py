"""Boxes of views: found for what torch's views make, and right wherever they are found."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin import _regions
from fanin._regions import box


@st.composite
def views(draw):
    """A contiguous tensor of distinct numbers, and a view of it."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    view = whole = torch.arange(math.prod(shape)).view(shape)
    for _ in range(draw(st.integers(0, 4))):
        axes = view.dim()
        dim = draw(st.integers(0, max(axes - 1, 0)))
        n = view.shape[dim] if axes else 1
        start = draw(st.integers(0, n - 1))
        kind = draw(
            st.sampled_from(["select", "narrow", "step", "permute", "merge", "split", "unsqueeze"])
        )
        if kind == "permute":
            view = view.permute(draw(st.permutations(range(axes))))
        elif kind == "unsqueeze":
            view = view.unsqueeze(dim)
        elif not axes:
            continue
        elif kind == "select":
            view = view.select(dim, start)
        elif kind == "narrow":
            view = view.narrow(dim, start, draw(st.integers(1, n - start)))
        elif kind == "step":
            view = view[(slice(None),) * dim + (slice(start, None, 2),)]
        elif kind == "split" and n % 2 == 0:
            view = view.unflatten(dim, (2, -1))
        elif kind == "merge" and dim and view.is_contiguous():
            view = view.flatten(dim - 1, dim)
    return whole, view


class Nodes:
    """Runs the nodes that are written down."""

    def __init__(self, *values):
        self.values = list(values)

    def emit(self, op, shape, **args):
        x = self.values[args["x"].index]
        if op == "view":
            made = x.reshape(args["size"])
        elif op == "permute":
            made = x.permute(args["dims"])
        elif op == "slice":
            made = x[
                (slice(None),) * args["dim"] + (slice(args["start"], args["end"], args["step"]),)
            ]
        else:
            assert op == "view_write"
            made = x.clone()
            runs = zip(args["starts"], args["stops"], args["steps"], strict=True)
            made[tuple(slice(*run) for run in runs)] = self.values[args["value"].index]
        assert tuple(made.shape) == shape
        self.values.append(made)
        return len(self.values) - 1


def found(whole, view):
    return box(
        tuple(whole.shape), whole.stride(), tuple(view.shape), view.stride(), view.storage_offset()
    )


@settings(max_examples=300, deadline=None)
@given(views())
def test_reading_and_writing_a_box(pair):
    whole, view = pair
    seen = found(whole, view)
    if seen is None:
        return
    shape, sizes = tuple(whole.shape), tuple(view.shape)
    nodes = Nodes(whole)
    assert torch.equal(nodes.values[_regions.read(nodes.emit, 0, shape, sizes, seen)], view)
    new = -1 - torch.arange(view.numel()).view(sizes)
    nodes = Nodes(whole, new)
    written = nodes.values[_regions.write(nodes.emit, 0, shape, 1, sizes, seen)]
    wanted = whole.clone()
    wanted.as_strided(sizes, view.stride(), view.storage_offset()).copy_(new)
    assert torch.equal(written, wanted)


def test_a_head_is_a_box_of_the_split_axis():
    x = torch.zeros(2, 5, 12)
    seen = found(x, x.view(2, 5, 3, 4)[:, :, 1].transpose(0, 1))
    assert seen.factors == (2, 5, 12)
    assert (seen.starts, seen.stops, seen.steps) == ((0, 0, 4), (2, 5, 8), (1, 1, 1))
    assert seen.order == (1, 0, 2)
    half = found(x, x.view(2, 5, 3, 4)[..., :2])
    assert half.factors == (2, 5, 3, 4)
    assert half.stops == (2, 5, 3, 2)


def test_what_is_no_box():
    x = torch.zeros(4, 4)
    assert found(x, x.diagonal()) is None
    assert found(x, x.unfold(1, 2, 1)) is None
    assert found(x, x.view(-1)[1:]) is None
    assert found(x, x[:1].expand(4, 4)) is None
    assert found(x, x[:0]) is None
    assert found(x, x.t()).whole
