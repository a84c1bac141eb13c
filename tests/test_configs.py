"""Every configuration builds; the default one learns; small ones of each kind take real steps."""

import dataclasses
import json
import math
import re
import runpy

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, TINY, load_config, slow_but

from crate_jax import InputError, models
from crate_jax.parallel import processes
from crate_jax.runs.config import from_config_dict, steps, to_config_dict
from crate_jax.train import train

SHRUNK = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8}


def variants(file: str) -> list[str]:
    """What a config file accepts, studies left out (tests/test_study.py has those)."""
    get_config = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"]
    with pytest.raises(InputError) as error:
        get_config("?")
    names = str(error.value).partition("accepted: ")[2].split(", ")
    return [name for name in names if "/" not in name]


FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
ALL = [(file, variant) for file in FILES for variant in variants(file)]


@pytest.mark.parametrize("file", FILES)
def test_the_docstring_says_how_to_run_it(file):
    docstring = (ROOT / "configs" / f"{file}.py").read_text().split('"""')[1]
    assert f"configs/{file}.py" in docstring
    for variant in variants(file)[1:]:
        # Families of variants may be given as PREFIX_ and a list.
        prefix, _, suffix = variant.rpartition("_")
        said = re.search(rf"\b{variant}\b", docstring)
        said = said or (prefix and f"{prefix}_" in docstring and re.search(rf"\b{suffix}\b", docstring))
        assert said, variant


@pytest.mark.parametrize(("file", "variant"), ALL)
def test_builds_at_full_width(file, variant):
    config = load_config({}, f"configs/{file}.py", variant)
    assert from_config_dict(to_config_dict(config)) == config
    model = models.create(config.model)
    if isinstance(config.model, models.TokenConfig):
        inputs = jax.ShapeDtypeStruct((2, config.model.num_positions), jnp.int32)
    else:
        inputs = jax.ShapeDtypeStruct((2, *config.model.image_shape), jnp.float32)
    output, _ = jax.eval_shape(model.apply, model.abstract_params, inputs)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(output))


def digits_of(family: str):
    """The first configuration of a family that learns from digits, shrunk to two steps of a tiny network."""
    for file, variant in ALL:
        config = load_config({}, f"configs/{file}.py", variant)
        if config.model.family == family and config.data.name == "digits":
            fields = {field.name for field in dataclasses.fields(config.model)}
            model = dataclasses.replace(config.model, **{k: v for k, v in SHRUNK.items() if k in fields})
            lengths = {"total": steps(2), "warmup": steps(0), "log": steps(1)}
            lengths |= dict.fromkeys(("eval", "checkpoint", "trace"))
            return dataclasses.replace(config, model=model, batch_size=8, **lengths)
    raise AssertionError(f"no configuration of {family} learns from digits")


@pytest.mark.parametrize("family", slow_but(models.FAMILIES, "crate"))
def test_every_family_takes_a_step_and_resumes(family, tmp_path, compile_once, monkeypatch):
    config = digits_of(family)
    with monkeypatch.context() as patch:
        patch.setattr(processes.StopSignals, "stop_after", lambda signals, step: True)
        assert train(config, tmp_path / "run") is None
    values = train(config, tmp_path / "run", sections="loss")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    assert lines[-1]["final"] is True
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(tmp_path):
    values = train(
        load_config({**TINY, "ema_decay": 0.9, "accumulate": 2, "optimizer.name": "adamw"}), tmp_path
    )
    assert values["eval/count"] == 360
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["final"] is True
    assert lines[-1]["eval/accuracy"] == values["eval/accuracy"]
    logged = {key for line in lines for key in line}
    assert {"step", "seconds", "train/loss", "train/examples_per_second", "eval/loss"} <= logged
    assert {
        f"layer/{layer:02d}/{name}" for layer in range(2) for name in ("coding_rate", "nonzero_fraction")
    } <= logged
    traced = [line["step"] for line in lines if "layer/00/coding_rate" in line]
    assert traced == [15, 30]
    pictures = sorted(path.name for path in (tmp_path / "report").iterdir() if path.suffix == ".svg")
    assert {"loss.svg", "layerwise-paper.svg", "layerwise-released.svg", "layerwise-scale_free.svg"} <= set(
        pictures
    )
    assert (tmp_path / "report" / "index.html").read_text().count("data:image/svg+xml") == len(pictures)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())[-1] == 30
    # The latest and the best are kept, nothing else.
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 2
    assert json.loads((tmp_path / "config.json").read_text())["ema_decay"] == 0.9


@pytest.mark.slow
def test_the_default_configuration_reaches_its_accuracy(tmp_path, optimized):
    values = train(load_config({}), tmp_path)
    assert values["eval/accuracy"] >= 0.97
    layers = json.loads((tmp_path / "report" / "layerwise.json").read_text())
    # Training compresses by the released metric: the tokens that leave the last MSSA take fewer nats than before training.
    name = "released/subspace_rate/after_attention"
    last = {when: layers[when][name]["mean"][-1] for when in ("initial", "trained")}
    assert last["trained"] < last["initial"]
    # What the README says of its first picture: MSSA raises R^c of the tokens and lowers the released metric.
    change = {
        form: layers["trained"][f"{form}/subspace_rate/change/attention"]["mean"]
        for form in ("paper", "released")
    }
    assert min(change["paper"]) > 0 and max(change["released"]) < 0
    jax.clear_caches()
