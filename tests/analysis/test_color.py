"""Colours placed by co-occurrence: a world with known geometry, files of words, the command and its errors."""

import json
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, command, run

from crate_jax import InputError
from crate_jax.analysis import color
from crate_jax.analysis.cooccurrence import colour_counts, pixel_pairs


def palette(n=30):
    return np.random.default_rng(0).random((n, 3))


def test_lab_of_known_colours():
    """White, black and sRGB's primary red under D65 (CIE 1976)."""
    found = color.to_lab(np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0]]))
    np.testing.assert_allclose(found, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.1)


def test_a_kernel_that_falls_with_perceived_distance_is_placed_exactly():
    rgb = palette()
    lab = color.to_lab(rgb)
    kernel = -np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    found = color.measure(color.Colors("known", ("x",) * 30, rgb, kernel), fits=8, permutations=49, seed=0)
    assert found.correlation.value == pytest.approx(1)
    assert found.correlation.p == found.chirality.p == 0.02
    assert max(each.r2 for each in found.placed) > 0.999
    assert found.rgb_correlation < 0.99
    assert color.picture([found]).startswith(b"\x89PNG")


def test_a_kernel_of_noise_is_not_found():
    noise = np.random.default_rng(1).standard_normal((30, 30))
    colors = color.Colors("noise", ("x",) * 30, palette(), noise + noise.T)
    found = color.measure(colors, fits=2, permutations=99, seed=0)
    assert abs(found.correlation.value) < 0.2
    assert found.correlation.p > 0.05


def gradient(size=48):
    """An image whose colour changes smoothly: neighbours are alike."""
    rows, columns = np.indices((size, size)) * 255 // (size - 1)
    return np.stack([rows, columns, (rows + columns) // 2], -1).astype(np.uint8)


def test_a_smooth_image_puts_like_colours_together():
    pairs = pixel_pairs([gradient()], radius=6, count=50_000, seed=0)
    colors = color.from_counts("gradient", colour_counts(pairs, grid=4, least=20), prior=1.0)
    found = color.measure(colors, fits=4, permutations=99, seed=0)
    assert found.correlation.value > 0.5
    assert found.correlation.p == 0.01


def test_without_a_prior_unseen_pairs_are_named():
    counts = colour_counts(pixel_pairs([gradient()], radius=2, count=5000, seed=0), grid=4, least=20)
    with pytest.raises(InputError, match=r"--prior: found 0.*never occur.*accepted: above 0"):
        color.from_counts("gradient", counts, prior=0.0)


@pytest.mark.parametrize("form", ["npz", "txt"])
def test_embedding_files(form, tmp_path):
    words, rng = [*color.WORDS[:8], "table"], np.random.default_rng(0)
    vectors, path = rng.standard_normal((9, 5)), tmp_path / f"vectors.{form}"
    if form == "npz":
        np.savez(path, words=np.array(words), vectors=vectors)
    else:
        lines = [" ".join([word, *map(str, vector)]) for word, vector in zip(words, vectors, strict=True)]
        path.write_text("\n".join(["9 5", *lines]) + "\n")
    found = color.read_embedding(path)
    assert found.names == color.WORDS[:8]
    unit = vectors[:8] / np.linalg.norm(vectors[:8], axis=1, keepdims=True)
    np.testing.assert_allclose(found.kernel, unit @ unit.T, atol=1e-12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--embedding: no file"),
        ("red 1 2\ngreen 3 4\n", "holds 2 of the colour words; accepted: five or more"),
        ("red 1 2\ngreen x y\n", "cannot be read"),
        ("red 1 2\ngreen 1\n", "cannot be read"),
        ("\n".join(f"{word} 0 0" for word in color.WORDS), "zero or not finite"),
    ],
)
def test_embeddings_that_are_refused(content, message, tmp_path):
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        color.read_embedding(path)


def test_images_of_a_folder(tmp_path):
    with pytest.raises(InputError, match="--input: no folder"):
        color.read_images(tmp_path / "none", limit=9, seed=0)
    with pytest.raises(InputError, match="holds no images"):
        color.read_images(tmp_path, limit=9, seed=0)
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((3 + i, 4, 3), i, np.uint8))
    images = color.read_images(tmp_path, limit=3, seed=0)
    assert [image.shape[1:] for image in images] == [(4, 3)] * 3
    cv2.imwrite(str(tmp_path / "point.png"), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(InputError, match=r"point\.png has one pixel"):
        color.read_images(tmp_path, limit=9, seed=0)


def test_the_command(tmp_path, monkeypatch, capsys):
    """On a folder and a text; what is written says what was asked."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from crate_jax import color as command_module

    images, text = tmp_path / "images", tmp_path / "text.txt"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), gradient())
    text.write_text(" ".join(color.WORDS * 3))
    monkeypatch.setattr(command_module, "GRIDS", (3, 4))
    monkeypatch.setattr(command_module, "PRIORS", (1.0,))
    argv = ["color", f"--input={images}", f"--text={text}", "--pairs=20000", "--fits=2", "--permutations=9"]
    command_module.main([*argv, f"--workdir={tmp_path / 'out'}"])
    numbers = json.loads((tmp_path / "out" / "color.json").read_text())
    assert numbers["settings"]["pairs"] == 20_000
    assert [each["representation"] for each in numbers["representations"]] == [
        "1 images, grid 4, prior 1",
        "text text.txt",
    ]
    assert len(numbers["sensitivity"]) == 2
    assert numbers["representations"][1]["colors"] == list(color.WORDS)
    assert (tmp_path / "out" / "color.png").read_bytes().startswith(b"\x89PNG")
    assert "ρ with ΔE" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=/does/not/exist"], "--input: no folder /does/not/exist"),
        (["--text=/does/not/exist"], "--text: no file"),
        (["--grid=1"], "--grid: found 1; accepted: a whole number from 2 to 16"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path):
    done = run([*command("color", f"--workdir={tmp_path}"), *flags])
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


@pytest.mark.slow
def test_the_default_sees_perception_in_two_photographs(tmp_path):
    done = run(command("color", f"--workdir={tmp_path}"), timeout=900)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "color.json").read_text())
    assert numbers["representations"][0]["correlation"]["p"] == 0.001
    assert numbers["representations"][0]["correlation"]["value"] > 0.6
    assert len(numbers["sensitivity"]) == 7
