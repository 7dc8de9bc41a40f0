"""Our shape functions against torch's kernels: every registered op, on small tensors with numbers."""

import pytest
import torch

from fanin import _layer_shapes  # noqa: F401 - registers its functions
from fanin._aten import ATEN
from fanin._shapes import SHAPES, broadcast, promoted
from fanin._views import VIEWS, contiguous

F32, F64, I64, C64 = torch.float32, torch.float64, torch.int64, torch.complex64


def t(*shape, dtype=F32):
    """Numbers of a dtype; positive, so that every function of one variable is defined."""
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if dtype is I64:
        return torch.randint(0, 2, shape, generator=generator)
    return (torch.rand(shape, generator=generator) * 0.8 + 0.1).to(dtype)


X, Y = t(2, 3, 4), t(3, 1)
INTS, TRUTHS = t(2, 3, 4, dtype=I64), t(2, 3, 4, dtype=torch.bool)
IMAGE, VOLUME, WAVE = t(2, 4, 7, 6), t(2, 4, 5, 6, 7), t(2, 4, 9)
EINSUMS = [("bij,bkj->bik", [t(2, 3, 4), t(2, 5, 4)]), ("...ij,...jk->...ik", [t(2, 3, 4), t(4, 5)]),
           ("ij,jk", [t(3, 4), t(4, 5)]), ("ii->i", [t(3, 3)]), ("b...->...", [t(2, 3, 4)])]  # fmt: skip

SAME = ("relu neg clone hardtanh relu6 square positive ceil floor round trunc sign leaky_relu elu celu selu gelu "
        "silu mish hardswish hardsigmoid softplus hardshrink softshrink nan_to_num rrelu log_sigmoid logit zero "
        "abs logical_not isnan isinf isfinite signbit isposinf isneginf").split()  # fmt: skip
REAL = ("exp log sigmoid tanh sqrt rsqrt sin cos tan erf erfc erfinv reciprocal log1p log2 log10 expm1 exp2 sinh "
        "cosh atan asin acos asinh atanh lgamma digamma").split()  # fmt: skip
BINARY = "add sub mul div rsub fmod remainder floor_divide pow".split()
COMPARE = "eq ne lt gt le ge logical_and logical_or logical_xor isclose".split()
POOLS = [(1, WAVE), (2, IMAGE), (3, VOLUME)]

CASES = {
    **{name: [(X,)] for name in SAME},
    **{name: [(X,), (INTS,), (t(3, dtype=F64),)] for name in REAL},
    "acosh": [(X + 1,)],
    **{name: [(X, Y), (X, 2.0), (X, t(3, 4, dtype=F64)), (X, torch.tensor(2.0, dtype=F64))] for name in BINARY},
    **{name: [(X, Y), (Y, X)] for name in COMPARE}, "maximum": [(X, Y)], "minimum": [(X, INTS)],
    "bitwise_and": [(TRUTHS, TRUTHS), (INTS, 1)], "bitwise_or": [(TRUTHS, TRUTHS)], "bitwise_xor": [(TRUTHS, TRUTHS)],
    "bitwise_not": [(TRUTHS,), (INTS,)], "atan2": [(X, Y)],
    "clamp": [(X, 0.2), (X, None, 0.5), (X, Y, t(4))], "clamp_min": [(X, 0.1)], "clamp_max": [(X, 0.5)],
    "where": [(TRUTHS, X, Y), (TRUTHS, 1.0, X), (TRUTHS, INTS, 0.5)],
    "addcmul": [(X, Y, t(4))], "addcdiv": [(X, Y, t(4))], "lerp": [(X, Y, 0.3), (X, Y, t(4))],
    "softmax": [(X, -1), (X, 1, F64), (INTS, 0, F32)], "log_softmax": [(X, -1)], "glu": [(X,), (t(4, 3), 0)],
    "type_as": [(X, INTS)], "outer": [(t(3), t(4))], "ger": [(t(3), t(4))], "complex": [(X, X), (X, t(4))],
    "threshold": [(X, 0.1, 0.0)], "prelu": [(X, t(3))], "masked_fill": [(X, TRUTHS, 0.0)],
    "tril": [(X,)], "triu": [(X, 1)], "flip": [(X, [0, 2])], "roll": [(X, [1], [0])], "renorm": [(X, 2, 0, 1.0)],
    "fill": [(X, 1.0)], "bernoulli": [(X,)], "normal": [(X,)], "uniform": [(X,)], "exponential": [(X,)],
    "masked_scatter": [(X, TRUTHS, X)], "index_copy": [(X, 1, torch.tensor([0]), t(2, 1, 4))],
    "index_add": [(X, 1, torch.tensor([0]), t(2, 1, 4))], "index_fill": [(X, 1, torch.tensor([0]), 1.0)],
    "index_put": [(X, [torch.tensor([0])], t(3, 4))], "scatter": [(X, 1, t(2, 1, 4, dtype=I64), X)],
    "scatter_add": [(X, 1, t(2, 1, 4, dtype=I64), X)],
    "scatter_reduce": [(X, 1, t(2, 1, 4, dtype=I64), X, "amax")],
    "select_scatter": [(X, t(2, 4), 1, 0)], "slice_scatter": [(X, t(2, 1, 4), 1, 0, 1)],
    "dropout": [(X, 0.5, False), (X, 0.5, True)], "feature_dropout": [(IMAGE, 0.5, True)],
    "alpha_dropout": [(X, 0.5, True)], "feature_alpha_dropout": [(IMAGE, 0.5, True)],
    "rand": [([2, 3],)], "randn": [([2, 3],)], "rand_like": [(X,)], "randn_like": [(X,)],
    "cat": [([X, X], 1), ([X, t(2, 3, 4, dtype=F64)],), ([torch.zeros(0), X], -1)],
    "stack": [([X, X], 1), ([X, X], -1), ([X, INTS],)], "repeat": [(X, [2, 1, 3, 1])],
    "pad": [(X, [1, 2], "constant", 0.0), (X, [0, 1, 2, 0], "reflect")], "constant_pad_nd": [(X, [1, 2, 3, 0])],
    **{name: [(X,), (X, [1]), (X, [0, 2], True)] for name in ("mean", "sum", "nansum", "nanmean")},
    "amax": [(X, [1]), (X, [0, 2], True), (X,)], "amin": [(X, [1])], "logsumexp": [(X, [1]), (X, [0], True)],
    "all": [(TRUTHS,), (TRUTHS, 1), (TRUTHS, 1, True)], "any": [(TRUTHS,), (TRUTHS, 1)],
    "cumsum": [(X, 1), (INTS, 0)], "cumprod": [(X, 1)],
    "var": [(X,), (X, True), (X, [1]), (X, [1], True, True)], "std": [(X,), (X, [1], False, True)],
    "linalg_vector_norm": [(X,), (X, 2, [1]), (X, 1, [0, 1], True)],
    **{name: [(X, X), (X, X, 0)] for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")},
    "linear": [(X, t(5, 4)), (X, t(5, 4), t(5))], "matmul": [(X, t(4, 5)), (X, t(2, 4, 5))],
    "mm": [(t(3, 4), t(4, 5))], "bmm": [(X, t(2, 4, 5))], "addmm": [(t(5), t(3, 4), t(4, 5))],
    "baddbmm": [(t(2, 3, 5), X, t(2, 4, 5))],
    "einsum": EINSUMS,
    **{f"conv{n}d": [(x, t(6, 4, *[3] * n)), (x, t(6, 2, *[3] * n), None, [2] * n, [1] * n, [1] * n, 2),
                     (x, t(6, 4, *[3] * n), t(6), [1] * n, "same"), (x[0], t(6, 4, *[3] * n))] for n, x in POOLS},
    **{f"conv_transpose{n}d": [(x, t(4, 6, *[3] * n)), (x, t(4, 3, *[3] * n), None, [2] * n, [1] * n, [1] * n, 2)]
       for n, x in POOLS},
    "scaled_dot_product_attention": [(t(2, 3, 4, 5), t(2, 3, 6, 5), t(2, 3, 6, 7))],
    "layer_norm": [(X, [4]), (X, [3, 4])], "rms_norm": [(X, [4])],
    "batch_norm": [(IMAGE, t(4), t(4), t(4), t(4), False, 0.1, 1e-5, False)],
    "instance_norm": [(IMAGE, None, None, None, None, True, 0.1, 1e-5, False)],
    "group_norm": [(IMAGE, 2), (IMAGE, 2, t(4), t(4))],
    "embedding": [(t(5, 6), INTS)], "index_select": [(X, 1, torch.tensor([0, 0]))],
    "gather": [(X, 1, t(2, 2, 4, dtype=I64))],
    "index": [(X, [torch.tensor([0, 1])]), (X, [None, torch.tensor([[0], [1]])]),
              (X, [torch.tensor([0, 1]), None, torch.tensor([1, 2])]),
              (X, [torch.tensor([0, 1]), torch.tensor([1, 2])])],
    "embedding_bag": [(t(5, 6), torch.tensor([0, 1, 2]), torch.tensor([0, 2]))],
    "_weight_norm": [(t(5, 4), t(5, 1))],
    **{f"adaptive_avg_pool{n}d": [(x, [2] * n)] for n, x in POOLS},
    **{f"max_pool{n}d": [(x, [3] * n), (x, [2] * n, [2] * n, [1] * n, [1] * n, True)] for n, x in POOLS},
    **{f"avg_pool{n}d": [(x, [3] * n), (x, [2] * n, [2] * n, [1] * n, True)] for n, x in POOLS},
    "upsample_nearest1d": [(WAVE, [5])], "upsample_nearest2d": [(IMAGE, [3, 5]), (IMAGE, None, [2.0, 1.5])],
    "upsample_nearest3d": [(VOLUME, [3, 5, 7])], "upsample_linear1d": [(WAVE, [5], True)],
    "upsample_bilinear2d": [(IMAGE, [3, 5], True), (IMAGE, None, False, [2.0, 1.5])],
    "upsample_trilinear3d": [(VOLUME, [3, 5, 7], True)], "upsample_bicubic2d": [(IMAGE, [3, 5], True)],
    "_upsample_nearest_exact1d": [(WAVE, [5])], "_upsample_nearest_exact2d": [(IMAGE, [3, 5])],
    "_upsample_nearest_exact3d": [(VOLUME, [3, 5, 7])], "_upsample_bilinear2d_aa": [(IMAGE, [3, 5], True)],
    "_upsample_bicubic2d_aa": [(IMAGE, [3, 5], True)],
    "grid_sampler": [(IMAGE, t(2, 3, 5, 2), 0, 0, True)], "grid_sampler_2d": [(IMAGE, t(2, 3, 5, 2), 0, 0, True)],
    "grid_sampler_3d": [(VOLUME, t(2, 3, 5, 4, 3), 0, 0, True)],
    "im2col": [(IMAGE, [3, 2], [1, 1], [1, 0], [2, 1]), (IMAGE[0], [3, 2], [1, 1], [1, 0], [2, 1])],
    "col2im": [(t(2, 24, 25), [7, 6], [3, 2], [1, 1], [0, 0], [1, 1])],
    "lstm_cell": [(t(2, 4), [t(2, 3), t(2, 3)], t(12, 4), t(12, 3))], "gru_cell": [(t(2, 4), t(2, 3), t(9, 4), t(9, 3))],
    "rnn_tanh_cell": [(t(2, 4), t(2, 3), t(3, 4), t(3, 3))], "rnn_relu_cell": [(t(2, 4), t(2, 3), t(3, 4), t(3, 3))],
    "lstm": [(t(5, 2, 4), [t(2, 2, 3), t(2, 2, 3)], [t(12, 4), t(12, 3)] * 2, False, 1, 0.0, False, True, False)],
    **{name: [(t(5, 2, 4), t(2, 2, 3), [t(g, 4), t(g, 3)] * 2, False, 1, 0.0, False, True, False)]
       for name, g in (("gru", 9), ("rnn_tanh", 3), ("rnn_relu", 3))},
    "_grouped_mm": [],
}  # fmt: skip

VIEW_CASES = {
    "view": [(X, [6, 4]), (X, [2, -1]), (X.transpose(0, 1), [3, 2, 2, 2]), (X[:, :, ::2], [2, 3, 1, 2])],
    "reshape": [(X, [6, 4]), (X.transpose(0, 1), [6, 4]), (X[:, ::2], [2, -1])],
    "flatten": [(X,), (X, 1), (X, 0, 1), (X.transpose(0, 1), 0, 1), (torch.tensor(1.0),)],
    "unflatten": [(X, 2, [2, -1])], "view_as": [(X, t(6, 4))], "reshape_as": [(X.mT, t(6, 4))],
    "contiguous": [(X,), (X.mT,)], "squeeze": [(t(1, 3, 1),), (t(1, 3, 1), 0), (X, 0), (t(1, 3, 1), [0, 2])],
    "unsqueeze": [(X, 0), (X, -1), (X.mT, 2)], "permute": [(X, [2, 0, 1]), (X, [-1, 0, 1])],
    "transpose": [(X, 0, 2), (X, -1, -2)], "swapaxes": [(X, 0, 2)], "swapdims": [(X, 0, 2)],
    "t": [(t(2, 3),), (t(3),)], "numpy_T": [(X,)], "mT": [(X,)], "adjoint": [(X,)],
    "movedim": [(X, 0, 2), (X, [0, 1], [2, 0])], "moveaxis": [(X, 0, 2)],
    "select": [(X, 1, 0), (X, -1, -1)], "slice": [(X,), (X, 1, 1), (X, 2, 0, 3, 2), (X, 1, -2, -1), (X, 1, 5)],
    "narrow": [(X, 1, 1, 2), (X, 1, -2, 1)], "split": [(X, 2, 1), (X, [1, 2], 1)],
    "split_with_sizes": [(X, [1, 2], 1)], "chunk": [(X, 2, -1), (X, 2, 1)], "unbind": [(X,), (X, 1)],
    "expand": [(Y, [2, 3, 4]), (Y, [-1, 4])], "broadcast_to": [(Y, [2, 3, 4])], "expand_as": [(Y, X)],
    "detach": [(X.mT,)], "alias": [(X,)], "lift_fresh": [(X,)],
    "to": [(X, F64), (X, F32), (X, INTS), (X, F32, False, True), (X, torch.device("cpu"), F64)],
}  # fmt: skip


def real(name, args):
    """The op's own result; deterministic but for the numbers."""
    return getattr(torch.ops.aten, name)(*args)


def look(tensor):
    return tuple(tensor.shape), tensor.dtype


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


def test_every_function_has_a_case():
    assert set(SHAPES) == set(CASES)
    assert set(VIEWS) == set(VIEW_CASES)


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_torchs(name):
    for args in CASES[name]:
        result = tensors(real(name, args))
        specs = SHAPES[name](*args)
        specs = [specs] if isinstance(specs, tuple) else specs
        found = [(tuple(shape), dtype) for shape, dtype in specs]
        wanted = [look(r) for r in result]
        if name == "embedding_bag":  # its indices' shapes differ from kernel to kernel
            found, wanted = found[:1], wanted[:1]
        assert found == wanted, args


@pytest.mark.parametrize("name", VIEW_CASES)
def test_views_are_torchs(name):
    for args in VIEW_CASES[name]:
        x = args[0]
        result = tensors(real(name, args))
        seen = VIEWS[name](*args)
        for wanted, found in zip(result, seen if isinstance(seen, list) else [seen], strict=True):
            shares = wanted.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            if found is None:
                assert wanted is x or (shares and look(wanted) == look(x))
            elif len(found) == 2:
                assert not shares
                assert (tuple(found[0]), found[1]) == look(wanted)
            else:
                assert shares
                shape, strides, offset = found
                assert (tuple(shape), offset) == (tuple(wanted.shape), wanted.storage_offset())
                assert all(
                    a == b for n, a, b in zip(shape, strides, wanted.stride(), strict=True) if n > 1
                )


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("linear", (X, t(5, 3))),
        ("linear", (X, t(5, 4, dtype=F64))),
        ("conv2d", (IMAGE, t(6, 3, 3, 3))),
        ("layer_norm", (X, [3])),
        ("batch_norm", (IMAGE, t(3), t(3), t(3), t(3), False, 0.1, 1e-5, False)),
        ("group_norm", (IMAGE, 3)),
        ("scaled_dot_product_attention", (t(2, 3, 4, 5), t(2, 3, 6, 4), t(2, 3, 6, 7))),
        ("cat", ([X, t(2, 4, 4)], 0)),
        ("addmm", (t(5), t(3, 4), t(3, 5))),
        ("matmul", (X, t(3, 5))),
    ],
)
def test_what_does_not_fit_is_left_to_torch(name, args):
    with pytest.raises(NotImplementedError):
        SHAPES[name](*args)
    with pytest.raises((RuntimeError, ValueError)):
        real(name, args)


def test_grouped_products():
    """Groups of rows by one matrix each, and the transposed forms, as torch's documentation has it."""
    offsets = torch.tensor([2, 5])
    grouped = SHAPES["_grouped_mm"]
    assert grouped(t(5, 4), t(2, 4, 3), offsets) == ((5, 3), F32)
    assert grouped(t(2, 5, 4), t(2, 4, 3)) == ((2, 5, 3), F32)
    assert grouped(t(4, 5), t(5, 3), offsets) == ((2, 4, 3), F32)
    assert grouped(t(2, 4, 5), t(5, 3), offsets) == ((4, 3), F32)


def test_broadcast_and_promotion():
    assert broadcast((2, 1, 4), (3, 1)) == (2, 3, 4)
    with pytest.raises(RuntimeError, match="cannot be broadcast"):
        broadcast((2, 3), (4,))
    assert promoted(X, torch.tensor(1.0, dtype=F64)) is F32
    assert promoted(X, t(1, dtype=F64)) is F64
    assert promoted(INTS, 1.5) is F32
    assert contiguous((2, 0, 4)) == torch.empty(2, 0, 4).stride()


def test_names():
    aten = torch.ops.aten
    assert ATEN(aten.relu_.default).name == "relu"
    assert ATEN(aten.__iand__.Tensor).name == "bitwise_and"
    assert ATEN(aten.max.other).name == "maximum"
    bound = ATEN(aten.add.Tensor).bind((1,), {"other": 2})
    assert bound == {"x": 1, "other": 2, "alpha": 1}
    assert ATEN(aten.add.out).outs == {"out"}
