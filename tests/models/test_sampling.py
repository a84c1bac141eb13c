"""Drawing tokens: what restricts the distribution, and that prompts and seeds are respected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.models import decoding
from crate_jax.models.sampling import SamplingParams, make_program, make_sampler, start
from crate_jax.parallel.sharding import MeshConfig, make_mesh

# Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 in another order.
PROBABILITIES = np.array([0.125, 0.5, 0.0625, 0.25, 0.0625])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES)) + 3.0


def kept(**options):
    return np.flatnonzero(np.isfinite(SamplingParams(**options).restrict(LOGITS))).tolist()


def test_top_k_keeps_the_likeliest():
    assert kept(top_k=1) == [1]
    assert kept(top_k=3) == [0, 1, 3]
    assert kept(top_k=5) == kept() == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_nucleus():
    assert kept(top_p=0.01) == kept(top_p=0.49) == [1]
    assert kept(top_p=0.51) == kept(top_p=0.74) == [1, 3]
    assert kept(top_p=0.76) == [0, 1, 3]
    assert kept(top_p=0.9) == [0, 1, 2, 3, 4]  # The two least likely tokens are equal: both or neither.
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(top_k=2, top_p=0.6) == [1]  # 0.5 / 0.75 of what top_k leaves.


def test_what_is_kept_keeps_its_proportions():
    probabilities = jax.nn.softmax(SamplingParams(top_k=2).restrict(LOGITS))
    np.testing.assert_allclose(probabilities, [0, 2 / 3, 0, 1 / 3, 0], atol=1e-6)
    sharpened = jax.nn.softmax(SamplingParams(temperature=0.5).restrict(LOGITS))
    np.testing.assert_allclose(sharpened, PROBABILITIES**2 / np.sum(PROBABILITIES**2), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-45])
def test_a_temperature_near_zero_draws_the_likeliest(temperature):
    logits = jnp.stack([LOGITS, LOGITS * 30, -LOGITS])
    for options in ({}, {"top_k": 2}, {"top_p": 0.9}):
        restricted = SamplingParams(temperature=temperature, **options).restrict(logits)
        drawn = jax.random.categorical(jax.random.key(0), restricted, shape=(50, 3))
        np.testing.assert_array_equal(drawn[:, :2], 1)
        assert set(np.unique(drawn[:, 2])) <= {2, 4}  # The two that are equally likely.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: found 0.0; accepted: a number above 0"),
        ({"top_k": 6}, "top_k: found 6; accepted: 1 to 5"),
        ({"top_p": 1.5}, "top_p: found 1.5; accepted: a number above 0, at most 1"),
    ],
)
def test_meaningless_numbers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        SamplingParams(**options).check(5)


@pytest.fixture(scope="module")
def model():
    model = models.create(models.IGPTConfig(vocab_size=5, num_positions=12, dim=16, depth=2, heads=2))
    params = model.init(jax.random.key(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 5))
    return model, params


def draw_all(model, params, *, batch=4, given=0, seed=0, rows=3, sampling_params=None):
    prompt = jnp.tile(jnp.arange(12) % 5, (batch, 1))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(batch))
    sampler, state, out = (
        make_sampler(model, 12 // rows, sampling_params or SamplingParams()),
        start(model, batch),
        [],
    )
    for _ in range(rows):
        state, tokens = sampler(params, state, prompt, given, keys)
        out.append(np.asarray(tokens))
    return np.concatenate(out, axis=1)


def test_the_seed_decides(model):
    first = draw_all(*model)
    np.testing.assert_array_equal(first, draw_all(*model))
    assert (first != draw_all(*model, seed=1)).any()
    assert len({tuple(row) for row in first}) > 1  # Images differ from one another.
    # Neither the number of images nor that of calls matters.
    np.testing.assert_array_equal(first[:2], draw_all(*model, batch=2))
    np.testing.assert_array_equal(first, draw_all(*model, rows=1))


def test_one_program_draws_what_one_for_each_length_of_the_cache_draws(model, monkeypatch):
    """Bit for bit, and compiled once: the cache is cut at 3, 6, 9 and 12 positions inside of it."""
    expected = draw_all(*model)
    monkeypatch.setattr(decoding, "STAGES", 4)
    monkeypatch.setattr(decoding, "SHORTEST_STAGE", 1)
    assert decoding.rooms(model[0], 2) == (3, 6, 9, 12) and decoding.rooms(model[0], 7) == (9, 12)
    one = make_program(model[0], 2, SamplingParams(), decoding.rooms(model[0], 2))
    several = {room: make_program(model[0], 2, SamplingParams(), (room,)) for room in (3, 6, 9, 12)}
    prompt, keys = jnp.zeros((4, 12), int), jax.random.split(jax.random.key(0), 4)

    def draw(program_at):
        (position, previous, cache), out = start(model[0], 4), []
        for position in range(0, 12, 2):
            program = program_at(position + 2)
            previous, cache, tokens = program(model[1], previous, cache, position, prompt, 0, keys)
            out.append(tokens)
        return np.concatenate(out, axis=1), cache

    found, cache = draw(lambda end: one)
    assert one._cache_size() == 1
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        one = make_program(model[0], 2, SamplingParams(), decoding.rooms(model[0], 2))
        np.testing.assert_array_equal(draw(lambda end: one)[0], found)
        assert one._cache_size() == 1
    wanted, wanted_cache = draw(lambda end: several[-(-end // 3) * 3])
    np.testing.assert_array_equal(found, wanted)
    jax.tree.map(np.testing.assert_array_equal, cache, wanted_cache)
    np.testing.assert_array_equal(draw_all(*model), expected)


def test_the_prompt_is_kept(model):
    tokens = draw_all(*model, given=7)
    np.testing.assert_array_equal(tokens[:, :7], np.tile(np.arange(7) % 5, (4, 1)))
    assert (tokens[:, 7:] != np.arange(7, 12) % 5).any()


def test_greedy_draws_follow_the_uncached_logits(model):
    tokens = draw_all(*model, given=3, sampling_params=SamplingParams(top_k=1))
    logits, _ = model[0].apply(model[1], jnp.asarray(tokens))
    np.testing.assert_array_equal(tokens[:, 3:], np.asarray(logits.argmax(-1))[:, 3:])
