"""The ideal world: exact probabilities, losses whose minimum is known, two modalities that come to the same kernel."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import command, run

from crate_jax import InputError
from crate_jax import world as command_module
from crate_jax.alignment import pmi_kernel
from crate_jax.analysis import contrastive, ideal, world
from crate_jax.analysis.contrastive import Recipe, agreement

WORLD = world.make_world(7, seed=0)


def test_the_chain_is_stationary_and_reversible():
    flow = WORLD.stationary[:, None] * WORLD.transitions
    np.testing.assert_allclose(WORLD.transitions.sum(1), 1)
    np.testing.assert_allclose(WORLD.stationary @ WORLD.transitions, WORLD.stationary)
    np.testing.assert_allclose(flow, flow.T, atol=1e-15)
    assert flow.min() > 0


def test_cooccurrence_by_enumeration():
    """Every path of three steps, weighted by its probability."""
    n, window = 7, 2
    expected = np.zeros((n, n))
    for path in itertools.product(range(n), repeat=3):
        p = (
            WORLD.stationary[path[0]]
            * WORLD.transitions[path[0], path[1]]
            * WORLD.transitions[path[1], path[2]]
        )
        # The pairs that start at the first moment: lags 1 and 2.
        expected[path[0], path[1]] += p / window
        expected[path[0], path[2]] += p / window
    np.testing.assert_allclose(world.cooccurrence(WORLD, window), expected, atol=1e-14)
    np.testing.assert_allclose(expected.sum(), 1)


def test_counts_of_a_sequence_by_hand():
    counts = world.pair_counts(np.array([0, 1, 0, 2]), 3, 2)
    # Lag 1: 01, 10, 02; lag 2: 00, 12; each in both orders.
    np.testing.assert_array_equal(counts, [[2, 2, 1], [2, 0, 1], [1, 1, 0]])
    np.testing.assert_array_equal(
        world.pair_counts(np.array([0, 1]), 3, 5), [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    )


def test_a_long_sequence_has_the_probabilities():
    events = world.history(WORLD, length=100_000, seed=0)
    counts = world.pair_counts(events, 7, 3)
    np.testing.assert_allclose(counts / counts.sum(), world.cooccurrence(WORLD, 3), atol=3e-3)
    np.testing.assert_array_equal(world.history(WORLD, length=100, seed=0), events[:100])


@pytest.mark.parametrize("make", [world.pictures, world.words])
def test_observations_are_one_to_one(make):
    seen = make(500, seed=0).reshape(500, -1)
    assert len(np.unique(seen, axis=0)) == 500
    np.testing.assert_array_equal(seen, make(500, seed=0).reshape(500, -1))


def test_more_events_than_words_are_refused():
    with pytest.raises(InputError, match="events: found 456977; accepted: at most 456976"):
        world.words(26**4 + 1, seed=0)


def test_what_features_can_represent():
    """A Gram matrix is representable whatever constant is added; one of squared distances with the wrong sign is not."""
    x = np.random.default_rng(0).standard_normal((6, 8))
    assert world.representable(x @ x.T - 5) > 1e-3
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    assert world.representable(-distances) > 1e-3
    assert world.representable(distances) < -1


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_the_loss_is_least_at_the_pmi(loss):
    """Its gradient is 0 there, every step away costs, and so it is at PMI plus a constant for infonce."""
    joint = jnp.asarray(world.cooccurrence(WORLD, 2))
    pmi = pmi_kernel(joint)

    @jax.jit
    def value(logits):
        return contrastive.contrastive_loss(logits, joint, loss=loss)

    assert jnp.abs(jax.grad(value)(pmi)).max() < 1e-7
    for seed in range(5):
        step = jax.random.normal(jax.random.key(seed), pmi.shape)
        assert value(pmi + 0.3 * (step + step.T)) > value(pmi) + 1e-3
    shifted = value(pmi + 1.0) - value(pmi)
    assert shifted > 1e-2 if loss == "nce" else abs(shifted) < 1e-6


def test_agreement_of_kernels_that_differ_by_a_constant():
    kernel = np.random.default_rng(0).standard_normal((5, 5))
    other = kernel + 3 + np.diag(np.arange(5.0))  # The diagonal does not count.
    np.testing.assert_allclose(agreement(kernel, other), [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(agreement(2 * kernel, other)[:2], [1, 2])
    where = np.ones((5, 5), bool)
    where[0] = False
    other[0] = 100
    np.testing.assert_allclose(agreement(kernel, other, where), [1, 1, 0], atol=1e-12)


SMALL = ideal.Settings(
    events=12,
    window=4,
    length=60_000,
    width=16,
    depth=1,
    recipe=Recipe("nce", 600, 0),
    curve_steps=0,
    permutations=99,
    seed=0,
)


@pytest.fixture(scope="module")
def small():
    return ideal.experiment(SMALL)


def test_both_modalities_come_to_the_pmi_and_to_each_other(small):
    for name in ideal.MODALITIES:
        assert small.learned[name].correlation > 0.97
        assert abs(small.learned[name].slope - 1) < 0.1
        assert abs(small.untrained[name].correlation) < 0.6
        assert small.counted[name].correlation > 0.99
    assert small.modalities.correlation > 0.97


def test_a_shuffled_pairing_does_not(small):
    assert small.p == 0.01
    assert abs(np.mean(small.shuffled)) < 0.15
    assert max(small.shuffled) < 0.7


def test_what_is_written(small):
    numbers = json.loads(json.dumps(small.numbers()))
    assert numbers["learned"]["words"]["correlation"] == small.learned["words"].correlation
    assert [len(row) for row in small.rows()] == [len(ideal.HEADERS)] * 8
    assert ideal.picture(small).startswith(b"\x89PNG")
    assert ideal.trainings(SMALL) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--events=4"], "--events: found 4; accepted: a whole number from 5 to 4096"),
        (["--width=30"], "--width: found 30; accepted: a multiple of 4"),
        (["--length=100", "--window=100"], "--window: found 100; accepted: below --length 100"),
        (["--loss=triplet"], "--loss: found 'triplet'; accepted: nce, infonce"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises(InputError, match=message):
        command_module.main(["world", *flags])


@pytest.mark.slow
def test_the_default_reaches_the_pmi(tmp_path, optimized):
    """The promise of the command, without its curves: 0.98 off the diagonal in both modalities."""
    done = run(command("world", f"--workdir={tmp_path}", "--curve_steps=0"), timeout=900)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "world.json").read_text())
    for name in ideal.MODALITIES:
        assert numbers["learned"][name]["correlation"] >= 0.98
    assert numbers["modalities"]["correlation"] >= 0.98
    assert numbers["shuffled"]["max"] < 0.3


@pytest.mark.slow
def test_more_data_and_more_features_come_nearer():
    result = ideal.experiment(dataclasses.replace(SMALL, curve_steps=300))
    for curve in (result.data, result.capacity):
        for name in ideal.MODALITIES:
            first, *_, last = (value for _, value in curve[name])
            assert first < last - 0.05
            assert last > 0.97
