"""The runs that ship with the package: what is stated of them, their size, and mistakes."""

import json
import shutil
import tomllib

import numpy as np
import pytest
from conftest import ROOT

from crate_jax import InputError, convert, evaluate
from crate_jax.runs import builtin
from crate_jax.runs import workdir as workdirs
from crate_jax.training.opening import open_run

# Builtin run → the accuracy or the bits per pixel that docs/weights.md states.
STATED = {"crate-digits": ("eval/accuracy", 0.978), "igpt-digits": ("eval/bits_per_pixel", 1.997)}


@pytest.mark.parametrize("name", builtin.names())
def test_what_is_stated_of_a_builtin_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate.main(["evaluate", f"--workdir=builtin:{name}"])
    found = json.loads((tmp_path / name / "report" / "evaluate.json").read_text())
    metric, value = STATED[name]
    np.testing.assert_allclose(found[metric], value, atol=5e-4)
    # Its own folder is used again, another one is not.
    assert builtin.unpack(f"builtin:{name}", None).samefile(tmp_path / name)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="which holds something else; say where with --output"):
        evaluate.main(["evaluate", f"--workdir=builtin:{name}", "--output=other"])


def test_builtin_runs_are_small_and_in_the_package():
    files_of = [path for path in builtin.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files_of if path.suffix == ".safetensors") < 2_000_000
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path for pattern in package_data["crate_jax.weights"] for path in builtin.FOLDER.parent.glob(pattern)
    }
    assert set(files_of) <= packed


def test_damaged_parameters_are_refused(tmp_path):
    folder = shutil.copytree(builtin.FOLDER / "crate-digits", tmp_path / "run")
    content = bytearray((folder / "params.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "params.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"params\.safetensors is damaged \(other checksum\)"):
        open_run(folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=builtin:x"], "builtin run: found 'x'; accepted: crate-digits, igpt-digits"),
        (
            ["--workdir=runs/a", "--output=b"],
            "--output: found b for runs/a; accepted: none, but for builtin runs",
        ),
    ],
)
def test_mistakes_with_builtin_runs(flags, message):
    with pytest.raises(InputError, match=message):
        evaluate.main(["evaluate", *flags])


def test_a_run_is_made_small(tmp_path):
    source = builtin.FOLDER / "crate-digits"
    command = "python -m crate_jax.train --config=configs/base.py"
    convert.main(
        ["convert", "--input=builtin:crate-digits", f"--output={tmp_path / 'a'}", f"--command={command}"]
    )
    for name in ("params.safetensors", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (source / name).read_bytes(), name
    for folder in (tmp_path / "a", source):
        assert (folder / "checksums.txt").is_file() and workdirs.damage(folder) == []
    assert workdirs.read_config(tmp_path / "a") == workdirs.read_config(source)
    assert workdirs.read_dataset(tmp_path / "a") == workdirs.read_dataset(source)
    (tmp_path / "a" / "config.json").write_text(
        (source / "config.json").read_text().replace('"depth": 6', '"depth": 5')
    )
    with pytest.raises(InputError, match=r"does not hold the parameters of the model in config.json"):
        open_run(tmp_path / "a")
