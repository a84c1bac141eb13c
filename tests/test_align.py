"""The align command: from files, from runs, from pairs of images and texts; what it refuses."""

import json
import tarfile

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from safetensors.numpy import save_file

from crate_jax import InputError, align
from crate_jax.analysis import paired, representations, stitching

QUICK = ("--permutations=19", "--resamples=2", "--k=4")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three models of 60 samples: two views of the same eight numbers, and noise."""
    folder, generator = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    x = generator.standard_normal((60, 8)).astype(np.float32)
    view = np.tanh(x @ generator.standard_normal((8, 12))).astype(np.float32)
    np.savez(folder / "a.npz", layer2=view, layer10=x, labels=(x[:, 0] > 0).astype(int))
    save_file(
        {"x": (x @ np.linalg.qr(generator.standard_normal((8, 8)))[0]).astype(np.float32)},
        folder / "b.safetensors",
    )
    np.save(folder / "noise.npy", generator.standard_normal((2, 60, 8)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs" / "crate.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def call(out, *flags):
    align.main(["align", f"--out={out}", *QUICK, *flags])
    return json.loads((out / "align.json").read_text())


@pytest.mark.slow
def test_files(files, tmp_path, capsys):
    names = [str(files / name) for name in ("a.npz", "b.safetensors", "noise.npy")]
    found = call(tmp_path, f"--models={','.join(names)}", "--stitch", "--rosetta")
    same, unlike, _ = found["comparisons"][::2]
    # Layers stand in the order of their numbers.
    assert same["layers"] == [["layer2", "layer10"], ["x"]]
    # A rotation keeps all neighbours.
    assert same["best_layers"] == ["layer10", "x"] and same["maximum"]["score"] == 1
    assert same["maximum"]["p"] == 1 / 20 and same["interval"][0] <= 1
    np.testing.assert_allclose(same["chance_of_best_pair"], 4 / 59, rtol=1e-6)
    assert unlike["maximum"]["p"] > 0.05 and unlike["maximum"]["calibrated"] < 0.1
    assert [point["samples"] for point in same["curve"]] == [60]
    assert {path.name for path in tmp_path.iterdir()} == {
        "align.json",
        "models.png",
        "a--b.png",
        "a--noise.png",
        "b--noise.png",
    }
    into = found["stitch"][0]["directions"][0]
    # A rotation can be undone: all of the accuracy is kept.
    np.testing.assert_allclose(into["accuracy"][1], into["own"], atol=0.04)
    assert "the null repeats the maximum" in capsys.readouterr().out


def test_stitching_and_units():
    generator = np.random.default_rng(1)
    x = generator.standard_normal((400, 6)).astype(np.float32)
    labels = (x[:, 0] + x[:, 1] > 0).astype(int)
    a = representations.Representation("a", [x], ["1"], labels)
    order = np.array([3, 0, 5, 1, 4, 2])
    noisy = 2 * x[:, order] + 0.1 * generator.standard_normal(x.shape)
    b = representations.Representation("b", [noisy.astype(np.float32)], ["1"], labels)
    found = stitching.stitch(a, b)
    assert found.own[0] > 0.95 and found.accuracy[0, 0] > 0.95 and found.shuffled[0, 0] < 0.7
    units = stitching.rosetta(a, b)
    # Unit u of b is unit order[u] of a.
    assert sorted((second, first) for _, first, _, second, _ in units.matches) == list(enumerate(order))
    assert units.above == 6 and units.threshold < 0.5


def test_a_run_and_texts(run, tmp_path, capsys):
    flags = ("--samples=40", "--measures=mutual_knn", "--many", "--resamples=0")
    found = call(tmp_path, f"--models={run}@untrained,letters", "--paired=digits", *flags)
    assert found["comparisons"][0]["models"] == ["run untrained", "letters"]
    assert found["comparisons"][0]["samples"] == 40
    capsys.readouterr()


@pytest.mark.slow
def test_runs_and_folders(run, tmp_path, capsys):
    flags = ("--measures=mutual_knn", "--resamples=0")
    found = call(tmp_path, f"--models={run},{run}@untrained", "--samples=48", *flags)
    assert found["comparisons"][0]["models"] == ["run", "run untrained"]
    assert found["comparisons"][0]["samples"] == 48
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    lines = []
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
        lines += [f"{i}.png\tnumber {i}", f"{i}.png\tthe {i}th"]
    (pictures / "captions.txt").write_text("\n".join(lines))
    for many, count in (((), 12), (("--many",), 24)):
        found = call(tmp_path, f"--models={run},letters", f"--paired={pictures}", *flags, *many)
        assert found["comparisons"][0]["samples"] == count
    (pictures / "captions.txt").write_text("0.png a picture")
    with pytest.raises(
        InputError, match=r"captions.txt, line 1: found '0.png a picture'; accepted: FILE, a tab"
    ):
        call(tmp_path, f"--models={run},letters", f"--paired={pictures}")
    capsys.readouterr()


def test_texts_mean_their_digit():
    for digit in range(10):
        texts = paired.texts_of(digit)
        assert len(set(texts)) == len(texts)
        assert all(eval(text) == digit for text in texts if set(text) <= set("0123456789+-"))


BAD = {
    "one model": (("a.npz",), (), "--models: found 1; accepted: two or more"),
    "no file": (("a.npz", "c.npz"), (), "c.npz"),
    "no run": (("a.npz", "run"), (), "no run or file"),
    "measure": (
        ("a.npz", "b.safetensors"),
        ("--measures=cosine",),
        "--measures: found 'cosine'; accepted: mutual_knn",
    ),
    "layer": (
        ("a.npz", "b.safetensors"),
        ("--layers=2",),
        "--layers: found 2; accepted: 1 to 1, the layers of b",
    ),
    "k": (("a.npz", "b.safetensors"), ("--k=60",), "k: 60 was given for 60 rows"),
    "rows": (("a.npz", "short.npy"), (), "a has 60 samples and short 30"),
    "labels": (("a.npz", "other.npz"), (), "the labels of a and other differ"),
    "NaN": (("a.npz", "nan.npy"), (), "NaN or infinite"),
    "constant": (("a.npz", "constant.npy"), (), "constant features"),
    "one row": (("one.npy", "one.npy"), (), "1 rows were given"),
    "integers": (("a.npz", "integers.npy"), (), "features is int64 (60, 3); accepted: floating"),
    "no labels": (("b.safetensors", "noise.npy"), ("--stitch",), "--stitch: the samples of b have no labels"),
    "many alone": (("a.npz", "b.safetensors"), ("--many",), "--many has no effect without --paired"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, files, tmp_path, capsys):
    (names, flags, message) = BAD[case]
    for name, array in {
        "short": np.random.default_rng(0).standard_normal((30, 3)),
        "nan": np.full((60, 3), np.nan),
        "constant": np.ones((60, 3)),
        "one": np.ones((1, 3)),
        "integers": np.arange(180).reshape(60, 3),
    }.items():
        np.save(files / f"{name}.npy", array)
    np.savez(
        files / "other.npz", x=np.random.default_rng(0).standard_normal((60, 3)), labels=np.zeros(60, int)
    )
    with pytest.raises(InputError) as caught:
        call(tmp_path, f"--models={','.join(str(files / name) for name in names)}", *flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)
