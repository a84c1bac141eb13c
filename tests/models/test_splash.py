"""Splash attention with its kernel interpreted: values and gradients by the float64 reference, and how a mesh splits it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from crate_jax import InputError
from crate_jax.models import attention, splash
from tests.models.test_attention import close, reference

DEFAULTS = {"causal": False, "mask": None, "lengths": None, "real": None, "scale": 0.3}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    kernels = splash.splash_attention
    monkeypatch.setattr(kernels, "make_splash_mha", partial(kernels.make_splash_mha, interpret=True))


# 10 is padded, 128 is not, 130 takes two blocks.
@pytest.mark.parametrize(
    ("n", "options"),
    [
        (10, {}),
        (10, {"lengths": np.array([0, 10])}),
        (128, {"causal": True}),
        (128, {"real": 9}),
        (130, {"causal": True, "lengths": np.array([3, 129])}),
    ],
)
def test_values_and_gradients_are_the_references(n, options):
    query, key, value, grad = jax.random.normal(jax.random.key(0), (4, 2, n, 3, 8))
    lengths = options.get("lengths")
    call = {**DEFAULTS, **options, "lengths": None if lengths is None else jnp.asarray(lengths)}
    known = {name: x for name, x in {**DEFAULTS, **options}.items() if name != "mask"}
    out, pullback = jax.vjp(partial(splash.attend, **call), query, key, value)
    expected, gradients = reference(query, key, value, **known)
    close(out, expected)
    for found, wanted in zip(pullback(grad), gradients(np.asarray(grad, np.float64)), strict=True):
        close(found, wanted)
    out, pullback = jax.vjp(partial(splash.attend_shared, **call), query)
    expected, gradients = reference(query, query, query, **known)
    close(out, expected)
    close(pullback(grad)[0], sum(gradients(np.asarray(grad, np.float64))))


@pytest.mark.parametrize("p", [48, 64])
def test_bfloat16_is_as_near_the_truth_as_the_xla_form(p):
    """Outputs and gradients of MSSA's form: no further from float64 than 1.5 times what XLA's form in bfloat16 is."""
    tokens, grad = jax.random.normal(jax.random.key(1), (2, 2, 65, 2, p)).astype(jnp.bfloat16)
    wide = np.asarray(tokens, np.float64)
    expected, gradients = reference(wide, wide, wide)
    truth = (expected, sum(gradients(np.asarray(grad, np.float64))))
    errors = {}
    for kernel in ("xla", "splash"):
        out, pullback = jax.vjp(partial(attention.attend_shared, kernel=kernel), tokens)
        found = [np.asarray(x, np.float64) for x in (out, pullback(grad)[0])]
        assert all(x.dtype == jnp.bfloat16 for x in (out, pullback(grad)[0]))
        errors[kernel] = [np.linalg.norm(x - wanted) for x, wanted in zip(found, truth, strict=True)]
    assert np.all(np.array(errors["splash"]) <= 1.5 * np.array(errors["xla"]))


def test_more_keys_than_queries():
    query, key, value = jax.random.normal(jax.random.key(2), (3, 1, 140, 2, 8))
    out = splash.attend(query[:, :5], key, value, **DEFAULTS)
    close(out, reference(query[:, :5], key, value, scale=0.3)[0])


def test_a_mask_is_refused():
    tokens = jnp.zeros((1, 8, 1, 8))
    with pytest.raises(InputError, match="mask of attention: found one for kernel splash; accepted: lengths"):
        splash.attend_shared(tokens, **{**DEFAULTS, "mask": jnp.ones((8, 8), bool)})


@pytest.mark.parametrize(("batch", "heads"), [(4, 2), (3, 3)])
def test_a_mesh_splits_batch_and_heads_where_they_divide(monkeypatch, batch, heads):
    seen = []
    inner = splash._attend
    monkeypatch.setattr(splash, "_attend", lambda *x, **y: (seen.append(x[0].shape), inner(*x, **y))[1])
    tokens = jax.ShapeDtypeStruct((batch, 10, heads, 8), jnp.bfloat16)
    mesh = AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        out = jax.eval_shape(partial(splash.attend_shared, **DEFAULTS), tokens)
    assert out.shape == tokens.shape
    part = (batch // 2 if batch % 2 == 0 else batch, 128, heads // 2 if heads % 2 == 0 else heads, 8)
    assert set(seen) == {part}
