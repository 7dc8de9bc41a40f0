"""ONNX files of blocks: onnxruntime gives what the module and the float64 formulas give, at any batch and length."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle_nn as oracle
from fanin import nn as fnn
from fanin._errors import FaninError, InvalidValueError, MissingExtraError, ModelError
from fanin.nn import _exporting
from nn_cases import HEADS, LLAMA, D, normal, numbers, perturbed

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOLERANCE = 2e-6
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
A, Rope = oracle.Attention, oracle.Rope
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Args:
        make: the module.
        formula: (weights, inputs) -> output in float64.
        inputs: (batch, length, context length, seed) -> inputs.
        census: operators at opset 23 -> how many.
    """

    make: Callable[[], nn.Module]
    formula: Callable[..., Any]
    inputs: Callable[[int, int, int, int], Inputs]
    census: Mapping[str, int]


def x_only(b: int, t: int, s: int, seed: int) -> Inputs:
    return {"x": normal(b, t, D, seed=seed)}


def with_padding(b: int, t: int, s: int, seed: int) -> Inputs:
    """Ragged, at least one real token in each row."""
    lengths = torch.randint(1, t + 1, (b,), generator=torch.Generator().manual_seed(seed))
    return x_only(b, t, s, seed) | {"key_padding_mask": torch.arange(t) >= lengths[:, None]}


def with_an_empty_row(b: int, t: int, s: int, seed: int) -> Inputs:
    """The last row is padding throughout: none of its queries may attend to anything."""
    inputs = with_padding(b, t, s, seed)
    inputs["key_padding_mask"][-1] = True
    return inputs


def with_padding_first(b: int, t: int, s: int, seed: int) -> Inputs:
    """On the left, so that causal queries there see nothing."""
    inputs = with_padding(b, t, s, seed)
    return inputs | {"key_padding_mask": inputs["key_padding_mask"].flip(-1)}


def with_context(b: int, t: int, s: int, seed: int) -> Inputs:
    return x_only(b, t, s, seed) | {"context": normal(b, s, D, seed=seed + 1)}


def with_padded_context(b: int, t: int, s: int, seed: int) -> Inputs:
    padding = with_an_empty_row(b, s, s, seed)["key_padding_mask"]
    return with_context(b, t, s, seed) | {"key_padding_mask": padding}


def with_mask(b: int, t: int, s: int, seed: int) -> Inputs:
    mask = torch.rand(t, t, generator=torch.Generator().manual_seed(seed)) < 0.5
    return x_only(b, t, s, seed) | {"mask": mask}


def with_float_mask(b: int, t: int, s: int, seed: int) -> Inputs:
    inputs = with_mask(b, t, s, seed)
    mask = normal(t, t, seed=seed).masked_fill(~inputs["mask"], -torch.inf)
    return inputs | {"mask": mask}


def with_ids(b: int, t: int, s: int, seed: int) -> Inputs:
    return {"ids": torch.randint(11, (b, t), generator=torch.Generator().manual_seed(seed))}


def with_positions(b: int, t: int, s: int, seed: int) -> Inputs:
    return x_only(b, t, s, seed) | {"positions": torch.arange(t).flip(0) + 2}


def attention(spec: oracle.Attention, inputs: Any, **options: Any) -> Exported:
    def make() -> nn.Module:
        rope = spec.rope and fnn.RotaryEmbedding(D // HEADS, spec.rope.theta, 64, spec.rope.layout)
        return fnn.MultiHeadAttention(
            D, HEADS, kv_heads=spec.kv_heads, rope=rope, qk_norm="rms" if spec.qk_norm else None, causal=spec.causal, **options
        )  # fmt: skip

    def formula(w: Any, x: Any, context: Any = None, **how: Any) -> Any:
        return spec(w, x, context, **how)[0]

    census = {"Attention": 1, "RMSNormalization": 2 * spec.qk_norm, "RotaryEmbedding": 2 * bool(spec.rope)}  # fmt: skip
    return Exported(make, formula, inputs, census)


def encoder(block: oracle.Block, inputs: Any, layers: int = 2, **options: Any) -> Exported:
    rms = (2 * layers + 1) * (block.norm_layer == "rms")
    rotary = 2 * layers * bool(block.attention.rope)
    return Exported(
        lambda: fnn.TransformerEncoder(D, HEADS, num_layers=layers, norm=block.norm, norm_layer=block.norm_layer, **options),
        oracle.Encoder(block, layers, final=block.norm == "pre"),
        inputs,
        {"Attention": layers, "RMSNormalization": rms, "RotaryEmbedding": rotary},
    )  # fmt: skip


EXPORTED = {
    "no mask": attention(A(HEADS), x_only),
    "padding": encoder(oracle.Block(A(HEADS)), with_padding),
    "padding, a fully masked row": attention(A(HEADS), with_an_empty_row),
    "causal": attention(A(HEADS, causal=True), x_only),
    "causal, padding": encoder(oracle.Block(A(HEADS, causal=True), "post", ffn="relu"), with_padding, activation="relu", causal=True),
    "causal, padding on the left": attention(A(HEADS, causal=True), with_padding_first),
    "cross": attention(A(HEADS), with_context),
    "cross, padding": attention(A(HEADS), with_padded_context),
    "causal cross": attention(A(HEADS, causal=True), with_context),
    "grouped queries": attention(A(HEADS, 2), x_only),
    "grouped queries, padding": attention(A(HEADS, 2), with_an_empty_row),
    "rope interleaved": attention(A(HEADS, rope=Rope()), x_only),
    "rope half": attention(A(HEADS, rope=Rope(500.0, "half")), x_only),
    "rope, positions": attention(A(HEADS, rope=Rope()), with_positions),
    "qk-norm": attention(A(HEADS, qk_norm=True), x_only),
    "bool mask": attention(A(HEADS), with_mask),
    "float mask": attention(A(HEADS, causal=True), with_float_mask),
    "everything": encoder(oracle.Block(A(HEADS, rope=Rope(), causal=True), "pre", "rms", "swiglu"), with_an_empty_row, positions="rope", activation="swiglu", causal=True, max_len=64),
    "language model": Exported(
        lambda: fnn.TransformerLM(11, 64, D, 1, HEADS), oracle.LanguageModel(LLAMA, 1), with_ids,
        {"Attention": 1, "RMSNormalization": 3, "RotaryEmbedding": 2},
    ),
    "gpt2": Exported(
        lambda: fnn.TransformerLM.gpt2(11, 64, D, 1, HEADS),
        oracle.LanguageModel(oracle.Block(A(HEADS, causal=True), ffn="gelu_tanh"), 1, learned=True), with_ids,
        {"Attention": 1},
    ),
}  # fmt: skip
EXAMPLE = (2, 4, 3)
# B=1, T=1, longer than the example, queries more and fewer than keys.
SHAPES = [(2, 4, 3), (1, 1, 1), (3, 1, 6), (1, 7, 7), (4, 17, 2)]
_NAMES = {"key_padding_mask": "padding"}


def check(name: str, opset: int, path) -> None:
    case = EXPORTED[name]
    module = perturbed(case.make()).eval()
    file = path / "block.onnx"
    assert fnn.export_onnx(module, file, case.inputs(*EXAMPLE, 0), opset=opset, check=False) == {}
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file)
    assert {o.version for o in model.opset_import if o.domain == ""} == {opset}
    count = collections.Counter(node.op_type for node in model.graph.node)
    expected = case.census if opset >= _exporting.NATIVE else {}
    for op in ("Attention", "RMSNormalization", "RotaryEmbedding"):
        assert count[op] == expected.get(op, 0), op
    symbols = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim}
    assert symbols - {""} <= {"batch", "sequence", "context"}
    assert "sequence" in symbols
    weights = oracle.exact(module.state_dict())
    for level in LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.log_severity_level = 3
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for seed, shape in enumerate(SHAPES):
            inputs = case.inputs(*shape, seed)
            (found,) = session.run(None, {n: t.numpy() for n, t in inputs.items()})
            with torch.no_grad():
                eager = module(**inputs).numpy()
            exact = {_NAMES.get(n, n): numbers(t) for n, t in inputs.items()}
            args = [exact.pop(next(iter(exact)))]
            wanted = case.formula(weights, *args, **exact)
            size = max(1e-30, np.abs(wanted).max())
            for reference in (eager, wanted):
                gap = np.abs(found - reference).max() / size
                assert gap <= TOLERANCE, (shape, level, gap)


FAST = [("padding, a fully masked row", 18), ("language model", 23)]


@pytest.mark.parametrize(("name", "opset"), FAST)
def test_some(name, opset, tmp_path):
    check(name, opset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "opset"), [c for c in product(EXPORTED, (18, 20, 23)) if c not in FAST])  # fmt: skip
def test_all(name, opset, tmp_path):
    check(name, opset, tmp_path)


def test_its_own_check(tmp_path):
    """The table of errors names every case; the module and the folder are as they were, but for the file."""
    model = fnn.MultiHeadAttention(D, HEADS, dropout=0.1, causal=True).train()
    model.q_proj.eval()
    before = {n: m.training for n, m in model.named_modules()}
    state = {n: t.clone() for n, t in model.state_dict().items()}
    errors = fnn.export_onnx(model, tmp_path / "file.onnx")
    assert {c.split(", ")[0] for c in errors} == {"as given", "ones", "larger"}
    assert {c.split(", ")[1] for c in errors} == set(LEVELS)
    assert max(errors.values()) <= TOLERANCE
    assert {n: m.training for n, m in model.named_modules()} == before
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert {p.name for p in tmp_path.iterdir()} <= {"file.onnx", "file.onnx.data"}
    assert not _exporting.active()
    session = ort.InferenceSession(str(tmp_path / "file.onnx"), providers=["CPUExecutionProvider"])
    x = normal(1, 6, D)
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, model.eval()(x).detach(), atol=1e-5)


class Doubled(nn.Module):
    """Computes something else while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fnn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return 2 * y if _exporting.active() else y


def test_a_wrong_file_is_not_written(tmp_path):
    with pytest.raises(ModelError, match="differs from the module by more than"):
        fnn.export_onnx(Doubled(), tmp_path / "wrong.onnx", normal(2, 3, D))
    assert not list(tmp_path.iterdir())
    assert not _exporting.active()


def test_refused(tmp_path):
    file, layer = tmp_path / "file.onnx", fnn.MultiHeadAttention(D, HEADS)
    for opset in (17, 24, "20"):
        with pytest.raises(InvalidValueError, match="opset must be from 18 to 23"):
            fnn.export_onnx(layer, file, opset=opset)
    with pytest.raises(InvalidValueError, match="cannot guess what SwiGLU is called with"):
        fnn.export_onnx(fnn.SwiGLU(D), file)
    with pytest.raises(InvalidValueError, match="takes tensors as inputs; need_weights is none"):
        fnn.export_onnx(layer, file, {"x": normal(2, 3, D), "need_weights": True})
    with pytest.raises(InvalidValueError, match="batch and length 1"):
        fnn.export_onnx(layer, file, normal(1, 1, D))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"fanin\[onnx\]") as raised:
        fnn.export_onnx(fnn.Linear(D, D), tmp_path / "file.onnx", normal(2, 3, D))
    assert isinstance(raised.value, FaninError)
    assert missing in str(raised.value)
