"""The Pallas kernel of benchmarks/shared_attention.py, interpreted on a CPU, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import shared_attention
from benchmarks.checks import attention_truth, distance
from benchmarks.shared_attention import Blocks
from crate_jax import InputError
from crate_jax.models import attention

# More rows than one block, a part of a block, a width that is no power of two, and padding that is not zero.
TOKENS, REAL, HEADS, WIDTH = 24, 21, 2, 12


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 5e-3)])
def test_values_and_gradients_are_the_references(dtype, tolerance):
    draw = np.random.default_rng(0).normal
    w, grad = (jnp.asarray(draw(size=(1, TOKENS, HEADS, WIDTH)), dtype) for _ in range(2))
    grad = grad.at[:, REAL:].set(0)
    blocks = Blocks(16, 16)
    out, pull = jax.vjp(lambda w: shared_attention.attend(w, REAL, blocks, blocks, True), w)
    (found,) = pull(grad)

    real = w[:, :REAL]
    truth = attention_truth(real, real, real, grad[:, :REAL], causal=False)
    expected, wanted = truth["out"], truth["shared"]
    assert out.dtype == found.dtype == w.dtype
    assert distance(out[:, :REAL], expected) < tolerance
    assert distance(found[:, :REAL], wanted) < tolerance
    assert not np.any(found[:, REAL:])

    # No further from the truth than XLA's form in the same type.
    plain, pull = jax.vjp(lambda w: attention.attend_shared(w, real=REAL), w)
    assert distance(out[:, :REAL], expected) < 1.5 * distance(plain[:, :REAL], expected)
    assert distance(found[:, :REAL], wanted) < 1.5 * distance(pull(grad)[0][:, :REAL], wanted)


def test_what_it_does_not_compute_is_refused():
    w = jnp.ones((1, 8, 1, 8), jnp.bfloat16)
    with pytest.raises(InputError, match="causal"):
        shared_attention.attend_shared(w, causal=True, mask=None, lengths=None, real=None, scale=8**-0.5)
