"""Norms as people write them: patterns for `tape.check`."""

from __future__ import annotations


def rms_norm(f, x, eps=1e-6):
    """As Llama has it."""
    variance = f("mean", x=f("pow", x=x, exponent=2), dim=[-1], keepdim=True)
    return f("mul", x=x, other=f("rsqrt", x=f("add", x=variance, other=eps)))


def rms_norm_divided(f, x):
    """x / sqrt(mean(x * x) + eps)."""
    level = f("mean", x=f("mul", x=x, other=x), dim=[-1], keepdim=True)
    return f("div", x=x, other=f("sqrt", x=f("add", x=level, other=1e-6)))


def rms_norm_powered(f, x):
    """x (mean(x^2) + eps)^-0.5 with the mean as a sum over n."""
    level = f("div", x=f("sum", x=f("square", x=x), dim=[-1], keepdim=True), other=12)
    return f("mul", x=x, other=f("pow", x=f("add", x=level, other=1e-6), exponent=-0.5))


def rms_norm_clamped(f, x):
    """x (1 / sqrt(max(mean(x^2), eps)))."""
    level = f("mean", x=f("square", x=x), dim=[-1], keepdim=True)
    root = f("sqrt", x=f("clamp", x=level, min=1e-6, max=None))
    return f("mul", x=x, other=f("reciprocal", x=root))


def layer_norm(f, x):
    """As T5's ancestors and many a custom LayerNorm: (x - mean) / sqrt(mean((x - mean)^2) + eps)."""
    c = f("sub", x=x, other=f("mean", x=x, dim=[-1], keepdim=True))
    variance = f("mean", x=f("pow", x=c, exponent=2), dim=[-1], keepdim=True)
    return f("div", x=c, other=f("sqrt", x=f("add", x=variance, other=1e-5)))


def layer_norm_std(f, x):
    """(x - mean) / (std + eps), as in The Annotated Transformer."""
    c = f("sub", x=x, other=f("mean", x=x, dim=[-1], keepdim=True))
    return f(
        "div",
        x=c,
        other=f("add", x=f("std", x=x, dim=[-1], correction=1, keepdim=True), other=1e-6),
    )


def layer_norm_var(f, x):
    """(x - mean) * rsqrt(var(x, biased) + eps)."""
    c = f("sub", x=x, other=f("mean", x=x, dim=[-1], keepdim=True))
    variance = f("var", x=x, dim=[-1], correction=0, keepdim=True)
    return f("mul", x=c, other=f("rsqrt", x=f("add", x=variance, other=1e-5)))


def layer_norm_moments(f, x):
    """var as E[x^2] - E[x]^2."""
    mean = f("mean", x=x, dim=[-1], keepdim=True)
    square = f("mean", x=f("square", x=x), dim=[-1], keepdim=True)
    variance = f("sub", x=square, other=f("square", x=mean))
    return f(
        "mul", x=f("sub", x=x, other=mean), other=f("rsqrt", x=f("add", x=variance, other=1e-5))
    )


def layer_norm_var_mean(f, x):
    """As batch norms written with torch.var_mean."""
    variance, mean = f("var_mean", x=x, dim=[-1], correction=0, keepdim=True)
    return f(
        "mul", x=f("sub", x=x, other=mean), other=f("rsqrt", x=f("add", x=variance, other=1e-5))
    )


def normalize(f, x):
    """torch.nn.functional.normalize, over sqrt(12) of a row."""
    norm = f("linalg_vector_norm", x=x, ord=2, dim=[-1], keepdim=True)
    wide = f("expand", x=f("clamp_min", x=norm, min=1e-12), size=[5, 12], implicit=False)
    return f("div", x=x, other=wide)


def scale_norm(f, x):
    """g x / max(|x|, eps), the norm's axis put back later (Nguyen & Salazar 2019)."""
    norm = f("linalg_vector_norm", x=x, ord=2, dim=[-1], keepdim=False)
    return f(
        "div",
        x=f("mul", x=x, other=3.0),
        other=f("unsqueeze", x=f("clamp", x=norm, min=1e-5, max=None), dim=-1),
    )


def cast(f, x):
    """Llama's norm with its casts."""
    return rms_norm(f, f("to", x=x, dtype=None))


def weight_standardised(f, x):
    """(w - mean) / (std of the flattened rows + eps), mean axis by axis (Qiao et al. 2019)."""
    mean = f("mean", x=f("mean", x=x, dim=[1], keepdim=True), dim=[2], keepdim=True)
    c = f("sub", x=x, other=mean)
    flat = f("view", x=c, size=[6, 15])
    std = f("view", x=f("std", x=flat, dim=[1], correction=1, keepdim=False), size=[6, 1, 1])
    return f("div", x=c, other=f("add", x=std, other=1e-5))


def batch_norm(f, x):
    """Over batch and positions."""
    c = f("sub", x=x, other=f("mean", x=x, dim=[0, 2], keepdim=True))
    variance = f("mean", x=f("square", x=c), dim=[0, 2], keepdim=True)
    return f("div", x=c, other=f("sqrt", x=f("add", x=variance, other=1e-5)))


def softmax(f, x):
    """exp(x) / sum exp(x)."""
    e = f("exp", x=x)
    return f("div", x=e, other=f("sum", x=e, dim=[-1], keepdim=True))


NORMS = {
    g.__name__: g
    for g in (
        rms_norm, rms_norm_divided, rms_norm_powered, rms_norm_clamped, layer_norm, layer_norm_std,
        layer_norm_var, layer_norm_moments, layer_norm_var_mean, normalize, scale_norm,
    )
}  # fmt: skip
