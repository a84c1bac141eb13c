"""Token runs from start to end: train, sample, complete, fine-tune; palettes; every mistake is one clear line."""

import json

import cv2
import numpy as np
import pytest
from conftest import TINY, load_config

from crate_jax import InputError, sample
from crate_jax.runs import workdir as workdirs
from crate_jax.train import train

SMALL = {name: value for name, value in TINY.items() if name != "model.head_dim"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A few steps of next-pixel prediction on digits."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    train(load_config(SMALL, "configs/igpt.py"), path, sections="code_length")
    return path


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """The same on colour images, with a palette of 16."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(60) % 3)
    changes = {**SMALL, "data.name": f"npz:{folder / 'images.npz'}", "model.vocab_size": 16}
    path = folder / "run"
    config = load_config(changes, "configs/igpt.py")
    train(config, path, sections="code_length")
    return path, changes


def call(path, *options):
    sample.main(["sample", f"--workdir={path}", *options])


def test_a_run_reports_its_code_length(digits):
    report = json.loads((digits / "report" / "code_length.json").read_text())
    assert report["tokens"] == 360 * 64
    final = json.loads((digits / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["eval/loss"] == pytest.approx(report["code_length"]["model"]["nats_per_token"])
    assert final["eval/bits_per_pixel"] == pytest.approx(report["code_length"]["model"]["bits_per_pixel"])


def test_samples(digits, tmp_path):
    call(digits, "--num=3", f"--output={tmp_path / 'a.png'}")
    call(digits, "--num=3", f"--output={tmp_path / 'b.png'}", "--seed=1")
    call(digits, "--num=3", f"--output={tmp_path / 'c.png'}")
    tokens = {name: np.load(tmp_path / f"{name}.npz")["tokens"] for name in "abc"}
    assert tokens["a"].shape == (3, 64) and 0 <= tokens["a"].min() and tokens["a"].max() <= 16
    np.testing.assert_array_equal(tokens["a"], tokens["c"])
    assert (tokens["a"] != tokens["b"]).any()
    assert cv2.imread(str(tmp_path / "a.png")) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{n}.{e}" for n in "abc" for e in ("npz", "png")
    ]


def test_completions_keep_the_given_rows(digits, tmp_path):
    call(digits, "--mode=complete", "--num=4", "--rows=5", "--top_k=3")
    arrays = np.load(digits / "report" / "completions.npz")
    np.testing.assert_array_equal(arrays["tokens"][:, :40], arrays["originals"][:, :40])
    assert arrays["given_rows"] == 5
    # Own images: 0 to 255 becomes the 17 levels of the digits.
    cv2.imwrite(str(tmp_path / "white.png"), np.full((20, 20), 255, np.uint8))
    call(digits, "--mode=complete", f"--input={tmp_path}", f"--output={tmp_path / 'out' / 'a.png'}")
    assert (np.load(tmp_path / "out" / "a.npz")["originals"] == 16).all()


def test_colours_are_drawn_from_the_palette_of_the_run(colours, tmp_path):
    path, _ = colours
    assert np.load(path / "palette.npy").shape == (16, 3)
    call(path, "--num=2", f"--output={tmp_path / 'a.png'}")
    assert cv2.imread(str(tmp_path / "a.png")).ndim == 3
    assert json.loads((path / "report" / "code_length.json").read_text())["palette"]["psnr_db"] > 0


def test_fine_tuning_starts_from_another_run(colours, tmp_path):
    path, changes = colours
    changes = {
        **changes,
        "task": "joint",
        "model.num_classes": 3,
        "init_from": str(path),
        "data.labels_per_class": 4,
        "total_steps": 2,
        "warmup_steps": 1,
        "batch_size": 8,
        "optimizer.lr": 1e-9,
    }
    before = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["eval/loss"]
    values = train(load_config(changes, "configs/igpt.py"), tmp_path, sections="loss")
    # Nothing has been learned at this rate: the restored model predicts as it did.
    assert values["eval/generative_loss"] == pytest.approx(before, rel=1e-5)
    assert values["eval/class_loss"] == pytest.approx(np.log(3), rel=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "palette.npy"), np.load(path / "palette.npy"))
    assert workdirs.read_dataset(tmp_path).num_examples["train"] == 12
    with pytest.raises(InputError, match=r"does not fit the model: .*position_embedding"):
        train(load_config({**changes, "data.image_size": 3}, "configs/igpt.py"), tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode=complete", "--rows=8"], "--rows: found 8; accepted: 1 to 7"),
        (["--rows=4"], "--rows belongs to --mode=complete"),
        (["--num=0"], "--num: found 0; accepted: a whole number of at least 1"),
        (["--top_k=18"], "top_k: found 18; accepted: 1 to 17"),
        (["--mode=complete", "--input=nowhere"], "no file or folder nowhere"),
        (["--config.data.image_siz=8"], "unknown key data.image_siz"),
    ],
)
def test_mistakes_on_the_command_line(digits, options, message):
    with pytest.raises(InputError, match=message):
        call(digits, *options)


def test_an_empty_folder_is_refused(digits, tmp_path):
    with pytest.raises(InputError, match=r"holds no images; accepted: \.jpg"):
        call(digits, "--mode=complete", f"--input={tmp_path}")


def test_a_run_of_another_task_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="was trained for task 'classify'; accepted: autoregressive, joint"):
        call("builtin:crate-digits")


def test_a_palette_of_another_size_is_refused(colours, tmp_path):
    _, changes = colours
    np.save(tmp_path / "eight.npy", np.zeros((8, 3), np.float32))
    config = load_config({**changes, "data.palette": str(tmp_path / "eight.npy")}, "configs/igpt.py")
    with pytest.raises(InputError, match="palette: found 8 colours in the palette; accepted: 16, which is"):
        train(config, tmp_path / "run")
    config = load_config({**SMALL, "data.palette": str(tmp_path / "eight.npy")}, "configs/igpt.py")
    with pytest.raises(InputError, match=r"data\.palette: .*accepted: none, but for colour images"):
        train(config, tmp_path / "run")


def test_positions_and_image_size_must_agree(digits, tmp_path):
    changes = {**SMALL, "model.num_positions": 49, "data.image_size": 8}
    with pytest.raises(InputError, match=r"model\.num_positions: found 49; accepted: 64, the pixels of 8×8"):
        train(load_config(changes, "configs/igpt.py"), tmp_path, {"model.num_positions"})


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("variant", ["crate", "bert", "crate_bert"])
def test_variants_learn(tmp_path, variant, optimized):
    values = train(load_config({"total_epochs": 3.0}, "configs/igpt.py", variant), tmp_path)
    assert values["eval/loss"] < 2.0  # The order-0 entropy is 2.063.


@pytest.mark.slow
def test_a_quarter_of_the_default_run_beats_every_coder(tmp_path, optimized):
    train(load_config({"total_epochs": 5.0}, "configs/igpt.py"), tmp_path)
    lengths = json.loads((tmp_path / "report" / "code_length.json").read_text())["code_length"]
    model = lengths.pop("model")["nats_per_token"]
    assert all(model < 0.85 * other["nats_per_token"] for other in lengths.values())
