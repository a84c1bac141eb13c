"""Features on disk: what they are, that padding never counts, that a stale or torn cache is never used."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import TINY, load_config

from crate_jax.analysis import features
from crate_jax.training.starting import start_run


@pytest.fixture
def run(tmp_path):
    return start_run(load_config(TINY), tmp_path)


@pytest.fixture
def params(run):
    return run.model.init(jax.random.key(0))


def counting(extractor):
    """The extractor and a list that grows by each batch it reads."""
    batches = []

    def read(batch):
        if not isinstance(batch["image"], jax.core.Tracer):
            batches.append(batch)
        return extractor.read(batch)

    return extractor._replace(read=read), batches


def test_features_are_the_means_over_positions(run, params):
    """360 examples in batches of 32: the last is padded, and no padding is kept."""
    found = features.extract(features.network(run, params, "net"), "test")
    source = run.data.source("test")
    examples = [source[i] for i in range(len(source))]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    _, trace = run.model.apply(params, run.task.inputs(batch), trace=True)
    np.testing.assert_allclose(found.read(), trace["normed"].mean(axis=2), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.labels, batch["label"])
    np.testing.assert_array_equal(found.read(slice(1, 2)), found.read()[1:])


def test_pixels_are_those_of_the_images(run):
    found = features.extract(features.pixels(run), "test")
    np.testing.assert_allclose(found.read()[0, 5].reshape(8, 8, 1) * 16, run.data.source("test")[5]["image"])


def test_an_interrupted_pass_goes_on(run, params, monkeypatch):
    monkeypatch.setattr(features, "CHUNK_BYTES", 64 * 4 * 2 * 16)  # 64 examples, two batches
    extractor, batches = counting(features.network(run, params, "net"))
    whole = features.extract(extractor, "test")
    expected = whole.read()
    assert len(whole.chunks) == 6 and len(batches) == 12
    directory = whole.chunks[0].parent
    assert features.extract(extractor, "test").chunks == whole.chunks and len(batches) == 12
    # As a kill would leave it: no manifest, a chunk half written under its temporary name.
    (directory / "manifest.json").unlink()
    whole.chunks[3].rename(directory / f".{whole.chunks[3].name}.tmp")
    np.testing.assert_array_equal(features.extract(extractor, "test").read(), expected)
    assert len(batches) == 14


def test_other_parameters_data_or_model_are_another_cache(run, params):
    def folder(run, params, split="test"):
        return features.extract(features.network(run, params, "net"), split).chunks[0].parent

    def changed(**data):
        config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, **data))
        return start_run(config, run.workdir)

    others = [
        folder(run, params, "train"),
        folder(run, jax.tree.map(lambda leaf: leaf + 1e-6, params)),
        folder(changed(std=(0.4,)), params),
    ]
    assert len({folder(run, params), *others}) == 4
    assert folder(changed(threads=1), params) == folder(run, params)
