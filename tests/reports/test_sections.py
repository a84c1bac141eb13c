"""The sections of a report against what their numbers mean, on small sources and stand-ins for models."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.data import pipeline
from crate_jax.data.dataset import DatasetInfo, Tokens
from crate_jax.models.crate_mae import random_mask
from crate_jax.parallel.sharding import MeshConfig, make_mesh
from crate_jax.reports import code_length, earlier, loss, masked_prediction, reconstruction
from crate_jax.reports.base import TrainedRun, lower_by
from crate_jax.reports.reconstruction import mean_patch, nearest_patch
from crate_jax.runs.config import Config, DataConfig
from crate_jax.tasks import make_task
from crate_jax.tasks.reconstruct import fixed_noise, normalise_patches
from crate_jax.tasks.tokenizer import ValueMeaning, make_tokenizer

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
TOKENS = Config(
    model=models.IGPTConfig(vocab_size=64, num_positions=4, dim=8, depth=1, heads=2), task="autoregressive"
)
LINES = [
    {"step": 1, "train/loss": 2.0},
    {"step": 2, "eval/loss": math.log(2), "final": True},
    {"step": 3, "eval/loss": 9.0},
]


def trained_on(
    config, images, *, apply=None, max_value=255, colours=None, text=False, lines=None, workdir=None
):
    """A run whose test set is `images` (or windows of text) and whose model is `apply`."""
    name = "tokens" if text else "image"
    tokens = Tokens(256, "byte", "text") if text else None
    info = DatasetInfo("made", max_value=max_value, tokens=tokens)
    meaning = ValueMeaning.of(info, colours)
    lines = [{**line, "eval/count": float(len(images))} for line in LINES] if lines is None else lines
    source = [{name: image} for image in images]
    run = SimpleNamespace(
        config=config,
        workdir=workdir,
        info=info,
        palette=colours,
        meaning=meaning,
        mesh=MESH,
        task=make_task(config, meaning),
        model=SimpleNamespace(apply=lambda params, *args, **options: apply(*args, **options), readings=None),
        data=SimpleNamespace(
            source=lambda use: source, eval_batches=partial(pipeline.evaluation, batch_size=2)
        ),
    )
    return TrainedRun(run, {}, 2, lines)


@pytest.fixture(scope="module")
def colours():
    return np.random.default_rng(1).uniform(-1, 1, (64, 3)).astype(np.float32)


def test_code_length_names_every_coder(colours):
    images = np.random.default_rng(4).integers(0, 256, (5, 2, 2, 3)).astype(np.uint8)
    result = code_length.make(trained_on(TOKENS, images, colours=colours))
    assert result.values["code_length"]["model"] == pytest.approx(
        {"nats_per_token": math.log(2), "bits_per_pixel": 1.0, "bytes": 5 * 4 / 8}
    )
    assert {"order-0 entropy", "zlib -9", "lzma -9e"} < result.values["code_length"].keys()
    tokenizer = make_tokenizer(ValueMeaning(255, colours), 64)
    error = images.astype(float) - tokenizer.decode(np.asarray(tokenizer.encode(jnp.asarray(images))))
    assert result.values["palette"]["mse"] == pytest.approx(np.mean(error**2))
    assert "64 colours" in result.note


def test_of_a_long_split_a_part_is_compressed(colours, monkeypatch):
    """Three of the seven examples, spread evenly, and as much of the model's code."""
    monkeypatch.setattr(code_length, "MAX_TOKENS", 15)
    images = np.random.default_rng(4).integers(0, 256, (7, 2, 2, 3)).astype(np.uint8)
    result = code_length.make(trained_on(TOKENS, images, colours=colours))
    assert (result.values["examples"], result.values["tokens"]) == (3, 12)
    assert result.values["code_length"]["model"]["bytes"] == pytest.approx(12 / 8)
    tokenizer = make_tokenizer(ValueMeaning(255, colours), 64)
    part = images[[0, 2, 4]]
    error = part.astype(float) - tokenizer.decode(np.asarray(tokenizer.encode(jnp.asarray(part))))
    assert result.values["palette"]["mse"] == pytest.approx(np.mean(error**2))
    assert "3 test images of 4 tokens, spread over 7" in result.tables[0].title


def test_text_that_repeats_itself_has_no_entropy_to_compare_with():
    config = dataclasses.replace(TOKENS, model=dataclasses.replace(TOKENS.model, vocab_size=256))
    windows = np.tile(np.frombuffer(b"abab", np.uint8), (6, 1))
    result = code_length.make(trained_on(config, windows, text=True))
    assert result.values["code_length"]["order-1 entropy"]["bytes"] == 0
    assert [row[-1] for row in result.tables[0].rows if row[0] == "order-1 entropy"] == ["–"]
    assert (lower_by(1.0, 4.0), lower_by(1.0, 0.0)) == ("75.0%", "–")


def test_masked_prediction_is_no_code(colours):
    images = np.random.default_rng(4).integers(0, 256, (5, 2, 2, 3)).astype(np.uint8)
    bert = dataclasses.replace(TOKENS, task="bert", model=dataclasses.replace(TOKENS.model, causal=False))
    trained = trained_on(bert, images, colours=colours)
    assert code_length.make(trained) is None
    result = masked_prediction.make(trained)
    model = result.values["masked_prediction"]["model"]
    assert model == pytest.approx({"nats_per_token": math.log(2), "bits_per_pixel": 1.0})
    assert "bytes" not in result.tables[0].columns
    assert {len(row) for row in result.tables[0].rows} == {len(result.tables[0].columns)}
    assert masked_prediction.make(trained_on(TOKENS, images, colours=colours)) is None


def test_a_run_that_was_not_evaluated_has_no_code_length(colours):
    images = np.zeros((3, 2, 2, 3), np.uint8)
    trained = trained_on(TOKENS, images, colours=colours, lines=[{"step": 1, "train/loss": 2.0}])
    assert code_length.make(trained) is None
    assert loss.make(trained).figures[0].image.startswith(b"<?xml")
    assert loss.make(dataclasses.replace(trained, lines=[])) is None
    assert reconstruction.make(trained) is None


def test_other_data_than_were_evaluated_have_no_code_length(colours):
    trained = trained_on(TOKENS, np.zeros((3, 2, 2, 3), np.uint8), colours=colours)
    lines = [{**line, "eval/count": 4.0} for line in trained.lines]
    with pytest.raises(
        InputError, match="has 3 test examples; accepted: the 4 that the run was evaluated on at step 2"
    ):
        code_length.make(dataclasses.replace(trained, lines=lines))


def test_the_loss_says_in_words_what_it_draws(colours):
    result = loss.make(trained_on(TOKENS, np.zeros((3, 2, 2, 3), np.uint8), colours=colours))
    assert result.figures[0].alt == (
        "Loss by training step: the training loss goes from 2 at step 1 to 2 at step 1; the test loss at step 2 is 0.6931."
    )


MAE = Config(
    model=models.CRATEMAEConfig(
        image_size=4, patch_size=2, channels=1, dim=8, depth=1, heads=2, head_dim=4, mask_ratio=0.5
    ),
    data=DataConfig(mean=(0.25,), std=(0.5,)),
)
IMAGES = np.random.default_rng(0).integers(0, 17, (3, 4, 4, 1)).astype(np.uint8)


@pytest.mark.parametrize("task", ["masked_autoencoder", "autoencoder"])
def test_reconstruction_compares_and_draws(task):
    def perfect(images, noise=None):
        patches = images.reshape(-1, 2, 2, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)
        return (patches if task == "autoencoder" else normalise_patches(patches)), None

    config = dataclasses.replace(MAE, task=task)
    # Batches of two: the last one is padded.
    result = reconstruction.make(trained_on(config, IMAGES, apply=perfect, max_value=16))
    assert result.values["images"] == 3
    errors = result.values["mean_squared_error"]
    assert errors["model"] == pytest.approx(0, abs=1e-6)
    assert errors["mean patch"] > 0.1
    assert ("nearest visible patch" in errors) == (task == "masked_autoencoder")
    # A perfect model's pictures are the originals: enlarged 16 times, a thin line between the columns.
    sheet = cv2.imdecode(np.frombuffer(result.figures[0].image, np.uint8), cv2.IMREAD_GRAYSCALE)
    first = 8 + (66 if task == "masked_autoencoder" else 0)
    drawn, original = (sheet[8:72:16, start : start + 64 : 16] for start in (first, first + 66))
    np.testing.assert_array_equal(original, np.rint(IMAGES[0, :, :, 0] / 16 * 255))
    assert np.abs(drawn.astype(int) - original).max() <= 1
    if task == "masked_autoencoder":
        hidden = np.asarray(random_mask(fixed_noise(jnp.arange(3), 4), 0.5))[0].reshape(2, 2)
        masked = sheet[8:72:16, 8:72:16]
        assert (masked[np.kron(hidden, np.ones((2, 2))) > 0] == 128).all()


def test_of_a_large_split_the_masks_are_those_of_the_whole(monkeypatch):
    """Two of three images are looked at; each keeps the mask of its place in the split."""
    monkeypatch.setattr(reconstruction, "MAX_EXAMPLES", 2)
    seen = []

    def apply(images, noise):
        jax.debug.callback(lambda noise: seen.append(np.asarray(noise)), noise)
        return jnp.zeros((len(images), 4, 4)), None

    config = dataclasses.replace(MAE, task="masked_autoencoder")
    reconstruction.make(trained_on(config, IMAGES, apply=apply, max_value=16))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[0], fixed_noise(jnp.array([0, 2]), 4))


def test_guesses_without_a_model():
    targets = np.arange(9.0)[None, :, None]
    #  0 1 2        . 1 .    hidden ones are shown as dots
    #  3 4 5        3 . .
    #  6 7 8        . . 8
    mask = np.array([[1, 0, 1, 0, 1, 1, 1, 1, 0]])
    guesses = nearest_patch(targets, mask)[0, :, 0]
    np.testing.assert_allclose(guesses, [2, 1, 1, 3, 2, 8, 3, 8, 8])
    two = np.stack([targets[0], targets[0] + 2])
    both = mean_patch(two, np.ones((2, 9)))
    np.testing.assert_array_equal(both[1], targets[0] + 1)
    # At each place only the images count in which it is hidden.
    one = mean_patch(two, np.array([[1] + [0] * 8, [1, 1] + [0] * 7]))
    np.testing.assert_array_equal(one[0, :3, 0], [1, 3, 0])


def test_what_other_commands_left_is_taken_over(tmp_path, colours):
    trained = trained_on(TOKENS, np.zeros((3, 2, 2, 3), np.uint8), colours=colours, workdir=tmp_path)
    assert earlier.probe(trained) is None and earlier.samples(trained) is None
    (tmp_path / "report").mkdir()
    probes = {"step-2": [0.5, 0.75], "untrained": [0.25, 0.5], "pixels": [0.6]}
    text = (
        '{"probes": {'
        + ", ".join(f'"{k}": {{"accuracy": {v}, "validation": {v}}}' for k, v in probes.items())
        + "}}"
    )
    (tmp_path / "report" / "probe.json").write_text(text)
    (tmp_path / "report" / "samples.txt").write_text("one\n\n[two]\n")
    assert earlier.probe(trained).tables[0].rows == [[1, "50.00", "25.00"], [2, "75.00", "50.00"]]
    assert earlier.samples(trained).tables[0].rows == [[1, "one"], [2, "[two]\n"]]
