"""Bad input on the command line: one clear line on stderr, an exit code that is not zero."""

import re
import shutil
import sys

import cv2
import numpy as np
import pytest
from conftest import TINY, command, load_config, run

from crate_jax import InputError
from crate_jax.train import train


def error_line(done) -> str:
    assert done.returncode not in (0, None)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config=configs/base.py", "--config.model.dmi=3"],
            "unknown key model.dmi; did you mean model.dim",
        ),
        (["--config=configs/bass.py"], "no file configs/bass.py"),
        (
            ["--config=configs/base.py", "--config.total_epochs=many"],
            "total_epochs: found 'many'; accepted: a number",
        ),
        (["--config=configs/base.py", "--config.data.name=digitz"], "digitz.*accepted: digits, tfds:NAME"),
        (["--config=configs/base.py", "--worddir=x"], "worddir"),
        (["--config=configs/base.py", "--config.data.name=folder:/does/not/exist"], "/does/not/exist"),
        ([], "--config is required"),
    ],
)
@pytest.mark.slow
def test_command_line_mistakes(flags, message, tmp_path):
    assert re.search(message, error_line(run([*command("train", f"--workdir={tmp_path / 'run'}"), *flags])))


@pytest.mark.slow
def test_no_arguments_show_what_to_type():
    done = run(command("train"))
    assert done.returncode == 2
    assert "python -m crate_jax.train --config=configs/base.py --workdir=runs/base" in done.stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_step_and_layer(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--config.optimizer.lr=1e38", "--config.optimizer.name=sgd"]
    line = error_line(run([*command("train", f"--workdir={tmp_path}"), *flags]))
    assert re.search(r"step \d+: non-finite value, first in (layer \d\d \(\w+\)|the )", line)
    assert "no checkpoint was saved yet" in line


def test_a_run_of_one_step_has_no_warm_up(tmp_path):
    assert train(load_config({**TINY, "total_steps": 1}), tmp_path, sections="loss")["eval/count"] == 360


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7, "accumulate": 2}, "batch_size: 7 does not divide"),
        (
            {"accumulate": 5},
            r"batch_size: 32 does not divide .* accumulate = 5; nearest sizes that work: 30, 35",
        ),
        ({"mesh.fsdp": 3}, r"mesh: found data=-1×fsdp=3×tensor=1 for 1 devices"),
        ({"task": "dream"}, "task: found 'dream'; accepted: classify"),
        (
            {"optimizer.name": "adagrad"},
            "optimizer.name: found 'adagrad'; accepted: lion, adamw, adafactor, sgd",
        ),
        ({"warmup_steps": 30}, "warmup: 30 steps; accepted: fewer than the 30"),
        ({"model.patch_size": 3}, "model.patch_size: 3 does not divide"),
        (
            {"data.image_size": 31, "model.image_size": 16},
            "31 px has no patch size near a 4×4 grid; sizes that work",
        ),
    ],
)
def test_impossible_configurations_stop_before_any_work(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(load_config({**TINY, **changes}), tmp_path / "run", set(changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_workdir_of_another_run_is_left_as_it_was(tmp_path):
    train(load_config({**TINY, "total_steps": 2}), tmp_path, sections="loss")
    files = [tmp_path / "config.json", tmp_path / "metrics.jsonl"]
    before = [file.read_bytes() for file in files]
    for change, message in (
        ({"model.dim": 24}, r"holds another run .*model.dim is 16 there, 24 here"),
        ({"optimizer.name": "sgd"}, "holds another state"),
    ):
        with pytest.raises(InputError, match=message):
            train(load_config({**TINY, "total_steps": 3, **change}), tmp_path, sections="loss")
        assert [file.read_bytes() for file in files] == before


def test_an_unreadable_image_is_named(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(20):
            cv2.imwrite(str(tmp_path / label / f"{i}.png"), np.full((8, 8), 10 * i, np.uint8))
    bad = tmp_path / "a" / "7.png"
    bad.write_bytes(bad.read_bytes()[:30])
    config = load_config({**TINY, "data.name": f"folder:{tmp_path}", "batch_size": 8})
    with pytest.raises(InputError, match=re.escape(str(bad))):
        train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("jax.numpy.zeros(2**50).block_until_ready()", 1, "lower batch_size"),
        ("raise OSError(28, 'No space left on device', 'runs/x')", 1, "No space left on device: runs/x"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
    ],
)
def test_faults_of_the_machine_are_one_line(fault, code, message):
    program = (
        f"import jax\nfrom crate_jax.runs import cli\ndef main(argv):\n    {fault}\ncli.run(main, object)"
    )
    done = run([sys.executable, "-c", program])
    assert done.returncode == code
    assert message in error_line(done)
