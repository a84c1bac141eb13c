"""The layer-wise measurement: against its definitions in float64, with padding, in constant memory, and cheap to run."""

import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import models
from crate_jax.analysis import forms, layerwise
from crate_jax.models.trace import POINTS, READINGS, readings, stream
from crate_jax.parallel import sharding
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.tasks.base import Task

CONFIG = models.CRATEConfig(
    image_size=8, patch_size=4, channels=1, num_classes=3, dim=16, depth=2, heads=2, head_dim=8, penalty=0.2
)
IMAGES = Task(lambda batch: batch["image"], None, None)
MESH = sharding.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model():
    return models.create(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    """Moved away from the initial values, with tokens of different lengths."""
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), model.init(jax.random.key(0))
    )


@pytest.fixture(scope="module")
def images():
    return np.asarray(jax.random.normal(jax.random.key(2), (8, 8, 8, 1)))


@pytest.fixture(scope="module")
def random(params):
    return forms.random_bases(jax.random.key(7), params["blocks"]["blocks"]["mssa"]["bases"])


@pytest.fixture(scope="module")
def observe(model, random):
    return layerwise.Observer(model, IMAGES, MESH, random)


def rate(y: np.ndarray, eps_sq: float) -> np.ndarray:
    """½ logdet(I + d/(n ε²) YᵀY) of `[..., n, d]`, in float64."""
    n, d = y.shape[-2:]
    gram = np.swapaxes(y, -1, -2) @ y
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * eps_sq) * gram)[1]


def unit(y: np.ndarray) -> np.ndarray:
    return y / np.linalg.norm(y, axis=-1, keepdims=True)


def by_definition(
    trace: dict, layer: int, point: str, bases: np.ndarray, factor: float
) -> dict[str, np.ndarray]:
    """R and R^c of every form, and the statistics, from the named arrays of a layer, in float64."""
    stream, normed = {
        "before": ("mssa_in", "normed"),
        "after_attention": ("mssa_out", "mssa_out_normed"),
        "after_layer": ("out", "out_normed"),
    }[point]
    z, normed = (np.asarray(trace[name][layer], np.float64) for name in (stream, normed))
    bases = np.asarray(bases, np.float64)
    free = z * np.sqrt(z.shape[1] / np.sum(z**2, axis=(1, 2), keepdims=True))
    parts = {
        "paper": (z, np.einsum("bnd,kdp->bknp", z, bases), 0.5),
        "released": (unit(normed), unit(np.einsum("bnd,kdp->bknp", normed, bases)), 0.01),
        "scale_free": (free, np.einsum("bnd,kdp->bknp", free, bases), 0.5),
    }
    found = {}
    for form, (tokens, projected, eps_sq) in parts.items():
        found[f"{form}/rate"] = rate(tokens, factor * eps_sq)
        found[f"{form}/subspace_rate"] = rate(projected, factor * eps_sq).sum(axis=1)
    energies = np.linalg.svd(z, compute_uv=False) ** 2
    share = energies / energies.sum(axis=1, keepdims=True)
    found["effective_rank"] = np.exp(-np.sum(share * np.log(share), axis=1))
    found["participation_ratio"] = 1 / np.sum(share**2, axis=1)
    found["frobenius_norm"] = np.linalg.norm(z, axis=(1, 2))
    found["nonzero_fraction"] = np.mean(z != 0, axis=(1, 2))
    ratio = np.abs(z).sum(axis=2) / np.linalg.norm(z, axis=2)
    found["hoyer"] = np.mean((4 - ratio) / 3, axis=1)  # √16 = 4
    return found


def test_every_form_is_what_its_definition_says(model, params, images, random, observe):
    """In float64, with the layer's own U and with the null's, at every point and for another ε²."""
    trace = jax.jit(lambda x: model.apply(params, x, trace=True)[1])(images)
    with jax.set_mesh(MESH):
        measured = observe(params, [{"image": images, "mask": np.ones(8, np.float32)}], (1.0, 10.0))
    for layer in range(CONFIG.depth):
        for point in POINTS:
            expected = by_definition(trace, layer, point, trace["bases"][layer], 1)
            for name, values in expected.items():
                got = measured[f"{name}/{point}"]
                np.testing.assert_allclose(got["mean"][layer], values.mean(), rtol=2e-5, err_msg=name)
                np.testing.assert_allclose(
                    got["std"][layer], values.std(), rtol=1e-3, atol=1e-5, err_msg=name
                )
            coarse = by_definition(trace, layer, point, trace["bases"][layer], 10)
            null = by_definition(trace, layer, point, random[layer], 1)
            for form, eps_sq in (("paper", 5), ("released", 0.1), ("scale_free", 5)):
                got = measured[f"{form}@{eps_sq:g}/subspace_rate/{point}"]["mean"][layer]
                np.testing.assert_allclose(got, coarse[f"{form}/subspace_rate"].mean(), rtol=2e-5)
                got = measured[f"{form}/random_subspace_rate/{point}"]["mean"][layer]
                np.testing.assert_allclose(got, null[f"{form}/subspace_rate"].mean(), rtol=2e-5)
                sparse = expected[f"{form}/rate"] - expected[f"{form}/subspace_rate"]
                sparse = sparse - 0.2 * expected["nonzero_fraction"] * 5 * 16
                got = measured[f"{form}/sparse_rate_reduction/{point}"]["mean"][layer]
                np.testing.assert_allclose(got, sparse.mean(), rtol=1e-4)
        for form in forms.FORMS:
            before, after = (
                by_definition(trace, layer, point, trace["bases"][layer], 1)[f"{form}/subspace_rate"]
                for point in ("before", "after_attention")
            )
            share = measured[f"{form}/subspace_rate/lowered/attention"]["mean"][layer]
            assert share == pytest.approx(np.mean(after < before))
            change = measured[f"{form}/subspace_rate/change/attention"]
            assert change["mean"][layer] == pytest.approx(np.mean(after / before - 1), abs=1e-5)


def test_the_released_form_is_the_released_code():
    """Its normalisation and its ε², on the projections that the released code was given."""
    golden = np.load(Path(__file__).parents[1] / "fixtures" / "coding_rate_official.npz")
    x = golden["x_bhnd"]
    heads, p = x.shape[1], x.shape[3]
    # Tokens that hold the projections of all heads side by side, and bases that pick a head's.
    normed = np.swapaxes(x, 1, 2).reshape(len(x), x.shape[2], heads * p)
    bases = np.eye(heads * p, dtype=np.float32).reshape(heads * p, heads, p).swapaxes(0, 1)
    _, parts = forms.tokens_and_parts(normed, normed, bases)
    place = list(forms.FORMS).index("released")
    rates = rate(np.asarray(parts[place], np.float64), float(golden["eps_squared"])).sum(axis=-1)
    np.testing.assert_allclose(rates.mean(), golden["mean"], rtol=1e-5)
    np.testing.assert_allclose(np.std(rates, ddof=1), golden["std"], rtol=1e-4)
    assert forms.FORMS["released"].eps_sq == pytest.approx(float(golden["eps_squared"]))


@pytest.mark.parametrize("shape", [(2, 3, 16, 4), (1, 5, 8, 4), (1, 2, 4, 6)])
def test_the_null_has_orthonormal_bases_of_the_same_norms(shape):
    """Orthogonal to each other where there is room (3 × 4 in 16 dimensions); of rank d where p is larger."""
    bases = 3 * jax.random.normal(jax.random.key(0), shape)
    drawn = np.asarray(forms.random_bases(jax.random.key(1), bases), np.float64)
    norms = (np.linalg.norm(x, axis=(-2, -1)) for x in (drawn, np.asarray(bases)))
    np.testing.assert_allclose(*norms, rtol=1e-5)
    _, heads, dim, p = shape
    one = drawn[0, 0] / np.linalg.norm(drawn[0, 0]) * np.sqrt(min(dim, p))
    small = one.T @ one if p <= dim else one @ one.T
    np.testing.assert_allclose(small, np.eye(min(dim, p)), atol=1e-5)
    between = np.abs(drawn[0, 0].T @ drawn[0, 1]).max()
    assert (between < 1e-4) == (heads * p <= dim)


def test_scaling_the_stream_changes_the_paper_form_alone(images):
    z = images.reshape(8, 4, 16).astype(np.float32)
    tokens, _ = forms.tokens_and_parts(z, z, np.ones((1, 16, 2), np.float32))
    larger, _ = forms.tokens_and_parts(1e6 * z, 1e6 * z, np.ones((1, 16, 2), np.float32))
    np.testing.assert_allclose(larger[1:], tokens[1:], rtol=1e-5)
    np.testing.assert_allclose(larger[0], 1e6 * tokens[0], rtol=1e-6)
    zero, parts = forms.tokens_and_parts(0 * z, 0 * z, np.ones((1, 16, 2), np.float32))
    assert not np.any(zero) and not np.any(parts)


def test_readings_in_training_are_those_of_the_report(model, params, images, observe):
    read = jax.jit(lambda x: model.apply(params, x, trace=model.readings)[1])(images)
    assert set(read) == set(READINGS)
    with jax.set_mesh(MESH):
        measured = observe(params, [{"image": images, "mask": np.ones(8, np.float32)}])
    for name, same in (
        ("coding_rate_before", "released/subspace_rate/before"),
        ("coding_rate", "released/subspace_rate/after_attention"),
        ("paper_coding_rate_before", "paper/subspace_rate/before"),
        ("paper_coding_rate", "paper/subspace_rate/after_attention"),
        ("nonzero_fraction", "code_nonzero_fraction"),
    ):
        np.testing.assert_allclose(np.mean(read[name], axis=1), measured[same]["mean"], rtol=1e-5)
    means = layerwise.as_metrics({name: {"mean": [1.0, 2.0]} for name in READINGS})
    assert set(means) == {f"layer/{layer:02d}/{name}" for layer in range(2) for name in READINGS}


def test_one_factorisation_at_a_time(model, params):
    """Two that could run at once deadlock XLA's CPU pool on two cores (see `readings`)."""
    images = jnp.zeros((2, 8, 8, 1))
    _, trace = model.apply(params, images, trace=True)
    report = jax.tree.map(lambda leaf: leaf[0], trace)
    lines = jax.jit(readings).lower(report).as_text().splitlines()
    indents = [len(line) - len(line.lstrip()) for line in lines if "@lapack_spotrf_ffi" in line]
    # One outside of conditionals; the other waits in a branch for the first one's verdict.
    assert sorted(indent > 4 for indent in indents) == [False, True]


def test_padding_does_not_count(params, images, observe):
    full = [{"image": images, "mask": np.ones(8, np.float32)}]
    split = [
        {"image": np.roll(images, -start, 0), "mask": np.float32([1] * count + [0] * (8 - count))}
        for start, count in ((0, 6), (6, 2), (0, 0))
    ]
    with jax.set_mesh(MESH):
        one, other = (observe(params, batches) for batches in (full, split))
    for name in one:
        for statistic in ("mean", "std"):
            np.testing.assert_allclose(
                one[name][statistic], other[name][statistic], rtol=1e-4, atol=1e-6, err_msg=name
            )


def test_memory_does_not_grow_with_the_examples():
    """Ten times the examples, the same peak to 10 %: nothing is kept of a batch but sums."""

    def read(params, batch):
        return {f"rate {i}": np.ones((12, len(batch["mask"]))) for i in range(100)}, batch["mask"]

    def peak(count: int) -> int:
        batches = ({"mask": np.ones(100, np.float32)} for _ in range(count // 100))
        tracemalloc.start()
        layerwise.measure(read, None, batches, MESH)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1000)  # What is imported on the way.
    assert peak(20_000) <= 1.1 * peak(2_000)


def test_moments_are_those_of_all_values_together():
    values = 1e4 + np.random.default_rng(0).normal(size=(3, 1000))
    moments = layerwise.Moments()
    for part in np.split(values, [1, 10, 400], axis=1):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, values.mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(moments.std, values.std(axis=1), rtol=1e-9)


def black_box(family):
    """A model of the family, its parameters, and a batch of its inputs."""
    if family == "igpt":
        config = models.IGPTConfig(vocab_size=4, num_positions=9, dim=8, depth=2, heads=2)
        inputs = np.arange(18, dtype=np.int32).reshape(2, 9) % 4
    else:
        kind = models.FAMILIES[family].config
        config = kind(image_size=8, patch_size=4, channels=1, num_classes=3, dim=8, depth=2, heads=2)
        inputs = np.asarray(jax.random.normal(jax.random.key(2), (2, 8, 8, 1)))
    model = models.create(config)
    return model, model.init(jax.random.key(0)), inputs


def test_a_black_box_shows_its_tokens():
    """R, norms, ranks and sparsity before attention, after it and after the MLP; nothing that would need U."""
    model, params, inputs = black_box("igpt")
    with jax.set_mesh(MESH):
        observe = layerwise.Observer(model, IMAGES, MESH)
        measured = observe(params, [{"image": inputs, "mask": np.ones(2, np.float32)}])
    trace = model.apply(params, inputs, trace=True)[1]
    for point, name in (
        ("before", "attention_in"),
        ("after_attention", "attention_out"),
        ("after_layer", "out"),
    ):
        z = np.asarray(trace[name], np.float64)
        expected = [rate(layer, 0.5).mean() for layer in z]
        np.testing.assert_allclose(measured[f"paper/rate/{point}"]["mean"], expected, rtol=1e-4)
        norms = np.linalg.norm(z, axis=(2, 3)).mean(axis=1)
        np.testing.assert_allclose(measured[f"frobenius_norm/{point}"]["mean"], norms, rtol=1e-5)
    assert not any("subspace" in name or name.startswith("released") for name in measured)


@pytest.mark.parametrize("family", ["vit", "tost", "igpt"])
def test_what_leaves_a_layer_enters_the_next(family):
    model, params, inputs = black_box(family)
    found = model.apply(params, inputs, trace=stream)[1]
    assert set(found) == set(POINTS)
    np.testing.assert_array_equal(found["after_layer"][0], found["before"][1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([0.03, 0.51], "raises it in all 2 layers, by 3 to 51 %"),
        (
            [-0.2, 0.004, -0.02],
            "raises it in 1 of 3 layers, by 0.4 % and lowers it in 2 of 3 layers, by 2 to 20 %",
        ),
        ([0.0, 0.0], "leaves it as it is in every layer"),
    ],
)
def test_signs_in_words(change, words):
    measured = {"paper/subspace_rate/change/attention": {"mean": change}}
    assert layerwise.signs(measured, "paper") == words


def test_the_readme_says_what_was_measured():
    """Its sentences about the first picture are the signs of the numbers kept with it."""
    root = Path(__file__).parents[2]
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    measured = json.loads((root / "docs" / "results" / "layers-digits.json").read_text())["values"]["trained"]
    assert f"the step derived to lower R^c, {layerwise.signs(measured, 'paper')}. Right:" in readme
    assert f"ε² = 0.01), it {layerwise.signs(measured, 'released')}. With random subspaces" in readme
