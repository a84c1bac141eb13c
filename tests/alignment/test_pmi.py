"""The PMI kernel against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.alignment import pmi_kernel


def test_independent_things_have_none():
    counts = np.outer([1.0, 2.0, 5.0], [1.0, 2.0, 5.0])
    np.testing.assert_allclose(pmi_kernel(counts), 0, atol=1e-6)
    np.testing.assert_allclose(pmi_kernel(counts, 3.0), 0, atol=1e-6)


def test_two_things_that_never_meet():
    kernel = np.asarray(pmi_kernel(np.eye(2)))
    np.testing.assert_allclose(np.diag(kernel), np.log(2), rtol=1e-6)
    assert kernel[0, 1] == kernel[1, 0] == -np.inf
    # (0 + 1)/(1/2 + 1) and (1 + 1)/(1/2 + 1)
    expected = np.log([[4 / 3, 2 / 3], [2 / 3, 4 / 3]])
    np.testing.assert_allclose(pmi_kernel(np.eye(2), 1.0), expected, rtol=1e-6)


def test_against_its_definition_in_float64():
    joint = np.random.default_rng(0).random((6, 6))
    joint = joint + joint.T
    p = joint / joint.sum()
    expected = np.log(p / np.outer(p.sum(1), p.sum(0)))
    np.testing.assert_allclose(pmi_kernel(joint), expected, rtol=1e-4, atol=1e-6)
    # Frequencies and counts say the same, and a large prior takes everything to 0.
    np.testing.assert_allclose(pmi_kernel(p), pmi_kernel(1000 * joint), rtol=1e-4, atol=1e-6)
    assert np.abs(pmi_kernel(joint, 1e6)).max() < 1e-5


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16])
def test_is_float32_whatever_comes_in(dtype):
    assert pmi_kernel(jnp.ones((3, 3), dtype)).dtype == jnp.float32
