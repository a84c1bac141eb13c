"""The probes against scikit-learn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from crate_jax.analysis import linear_probe
from crate_jax.analysis.features import Features
from crate_jax.analysis.linear_probe import Classifier, Examples, to_blocks
from crate_jax.data import sources
from crate_jax.parallel.sharding import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="module")
def digits():
    out = {}
    for split in ("train", "test"):
        examples = list(sources.load("digits", split, image_size=8, channels=1))
        x = np.stack([example["image"].reshape(-1) for example in examples]).astype(np.float32) / 16
        out[split] = x, np.array([example["label"] for example in examples])
    return out


def on_disk(x, labels, path):
    np.save(path, x)
    return Features((path,), labels.astype(np.int32), len(x), x.shape[-1])


def in_blocks(x, labels, mesh):
    ones = np.ones(len(labels), np.float32)
    return Examples(
        to_blocks(x[None], 1, mesh),
        to_blocks(labels.astype(np.int32), 0, mesh),
        to_blocks(ones, 0, mesh),
    )


@pytest.mark.parametrize("max_rows", slow_but([8192, 500], 500))
def test_probe_agrees_with_scikit_learn(digits, mesh, tmp_path, monkeypatch, max_rows):
    """Two layers, pixels and their squares, one a group; in 500-row blocks the last one is padded."""
    monkeypatch.setattr(linear_probe, "MAX_ROWS", max_rows)
    monkeypatch.setattr(linear_probe, "GROUP_BYTES", 1)
    (train_x, train_y), (test_x, test_y) = digits["train"], digits["test"]
    layers = [train_x, train_x**2], [test_x, test_x**2]
    train = on_disk(np.stack(layers[0]), train_y, tmp_path / "train.npy")
    test = on_disk(np.stack(layers[1]), test_y, tmp_path / "test.npy")
    probed = linear_probe.probe(train, test, 10, mesh)
    assert np.all(probed.gradient <= linear_probe.TOLERANCE)
    for layer, (a, b) in enumerate(zip(*layers, strict=True)):
        scaler = StandardScaler().fit(a)
        a, b, c = scaler.transform(a), scaler.transform(b), probed.strength[layer]
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=10000).fit(a, train_y)
        assert abs(probed.accuracy[layer] - reference.score(b, test_y)) < 0.003
        nats = -reference.predict_log_proba(a)[np.arange(len(a)), train_y].mean()
        loss = nats + np.sum(reference.coef_**2) / (2 * c * len(a))
        np.testing.assert_allclose(probed.loss[layer], loss, rtol=1e-4)


def test_counts_are_repetitions(mesh):
    """An example that counts 0 is as good as absent, whatever is in it."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(3, size=40)
    counts = np.repeat([1.0, 0.0], [30, 10]).astype(np.float32)
    fit = jax.jit(partial(linear_probe.fit, strength=1.0))
    start = Classifier(jnp.zeros((5, 3)), jnp.zeros(3))
    short = in_blocks(x[:30], labels[:30], mesh)
    expected = fit(short._replace(x=short.x[0]), start=start)
    x[30:] = 1e3
    masked = in_blocks(x, labels, mesh)
    masked = masked._replace(x=masked.x[0], counts=to_blocks(counts, 0, mesh))
    actual = fit(masked, start=start)
    np.testing.assert_allclose(actual.classifier.weights, expected.classifier.weights, atol=1e-4)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize("max_rows", [8192, 100])
def test_nearest_neighbours_agree_with_scikit_learn(digits, mesh, monkeypatch, max_rows):
    monkeypatch.setattr(linear_probe, "MAX_ROWS", max_rows)
    (train_x, train_y), (test_x, test_y) = digits["train"], digits["test"]
    reference = KNeighborsClassifier(
        linear_probe.NEIGHBOURS,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / linear_probe.TEMPERATURE),
    ).fit(train_x, train_y)
    actual = linear_probe.knn_accuracy(
        in_blocks(train_x, train_y, mesh), in_blocks(test_x, test_y, mesh), num_classes=10
    )
    assert actual.shape == (1,)
    np.testing.assert_allclose(actual[0], reference.score(test_x, test_y), atol=1e-6)


def test_a_constant_feature_becomes_zero(mesh):
    x = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    x[:, 1] = 7.3
    train, test = (in_blocks(x, np.zeros(20), mesh) for _ in range(2))
    train, _ = linear_probe.standardise(*linear_probe.centre(train, test))
    spread = np.sort(np.std(train.x[0, 0], axis=0))
    assert np.all(np.isfinite(spread)) and spread[0] < 1e-5
    np.testing.assert_allclose(np.sum(spread**2), 2, rtol=1e-4)
