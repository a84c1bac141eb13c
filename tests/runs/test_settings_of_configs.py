"""Every setting of every configuration: it has a description, numbers have a range, and every value of its type is either
accepted or refused in one line before anything is compiled.
"""

import dataclasses
import math
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_jax import InputError, models
from crate_jax.runs.config import (
    Config,
    describe,
    from_config_dict,
    to_config_dict,
)
from crate_jax.settings import check, plain_type, settings_of

# Numbers for which every finite value means something.
ANY_NUMBER = {"data.mean"}
FAMILIES = sorted(models.FAMILIES)


def small(family: str) -> Config:
    """A valid configuration of a family."""
    return Config(model=models.FAMILIES[family].config())


ROWS = {f"{family}:{row[0]}": (family, *row) for family in FAMILIES for row in describe(small(family))}
# One for each key: what families share is tested with the first of them.
KEYS = {name.partition(":")[2]: name for name in reversed(ROWS)}


def configurations(config: Any):
    """A configuration and those within it."""
    yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)) and "setting" not in field.metadata:
            yield from configurations(value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_is_a_setting_with_a_description(family):
    for config in configurations(small(family)):
        known = settings_of(type(config))
        for field in dataclasses.fields(config):
            if not dataclasses.is_dataclass(getattr(config, field.name)) or field.name in known:
                assert field.name in known, f"{type(config).__name__}.{field.name} is no setting"
                description = known[field.name].description
                assert description[-1] == "." and description[0].isupper(), description


@pytest.mark.parametrize("key", KEYS)
def test_every_number_has_a_range(key):
    _, _, _, hint, one = ROWS[KEYS[key]]
    if plain_type(hint) in (int, float, tuple) and key not in ANY_NUMBER:
        assert one.bounds, key


def edges(hint: Any) -> list:
    """Values of a type at which things go wrong, and values of other types."""
    kind = plain_type(hint)
    whole = [0, -1, 1, 2**31, 2**32, 2**63, 10**30]
    real = [0.0, -0.0, -1.0, 1.0, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf]
    of = {
        int: whole,
        float: real,
        bool: [True, False],
        str: ["", "x" * 1000, "\n", "ü"],
        tuple: [(), (0.0,), (1, 2), (-1.0, math.nan), (0.1, 0.2), (1.0,) * 9, (2**40, 3)],
    }
    return [*of.get(kind, []), "text", None, 3, True, ["a"], {}, b"x"]


def outcome(values: dict) -> str:
    """ "" where a configuration is accepted, else the one line that says why not; anything else raises."""
    try:
        check(from_config_dict(values), "config: ")
    except InputError as error:
        assert "\n" not in str(error)[:-1]
        return str(error)
    return ""


def changed(family: str, key: str, value: Any) -> dict:
    values = to_config_dict(small(family)).to_dict()
    *groups, name = key.split(".")
    node = values
    for group in groups:
        node = node[group]
    for unit in ("epochs", "steps", "examples", "percent"):
        if not groups and name.endswith(f"_{unit}"):  # Of a duration the other units go.
            stem = name.removesuffix(unit)
            node.update({f"{stem}{other}": None for other in ("epochs", "steps", "examples", "percent")})
    node[name] = value
    return values


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("validation compiles nothing")

    monkeypatch.setattr(jax, "jit", refuse)
    monkeypatch.setattr(models, "create", refuse)


@pytest.mark.parametrize("key", KEYS)
def test_edge_values_are_accepted_or_refused_by_validation(key):
    family, _, value, hint, _ = ROWS[KEYS[key]]
    assert outcome(changed(family, key, value)) == "", "the default is accepted"
    for found in edges(hint):
        message = outcome(changed(family, key, found))
        numbers = found if isinstance(found, tuple) else (found,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            assert message, f"{key}={found} is accepted"
        if message:
            assert key.rpartition(".")[2] in message or "given" in message, message
            assert "accepted" in message or "given" in message or "did you mean" in message, message
        elif found is not None and plain_type(hint) is not bool:
            assert not isinstance(found, bool | dict | bytes), f"{key}={found!r} is accepted"


REFUSED = {
    "optimizer.lr": [-1.0, math.nan, math.inf],
    "optimizer.b1": [1.5, 1.0, -0.1],
    "optimizer.weight_decay": [-5.0],
    "optimizer.clip_norm": [0.0, -1.0],
    "label_smoothing": [1.5, -1.0],
    "ema_decay": [2.0, math.nan, 1.5, -1.0],
    "accumulate": [0],
    "batch_size": [0, -1],
    "seed": [-1, 2**32, 2**63, 2**70],
    "data.mixup": [math.nan, -1.0],
    "data.erase": [2.0],
    "data.shift": [math.nan],
    "data.image_size": [0, -8],
    "total_epochs": [math.nan, math.inf, -1.0],
    "regularizer.eps_sq": [0.0],
    "mesh.fsdp": [-2],
    "model.dim": [0, -1],
    "model.depth": [0, -1],
    "model.heads": [0, -2],
    "model.head_dim": [0],
    "model.patch_size": [0, -4],
    "model.image_size": [0],
    "model.eps_sq": [0.0],
    "model.num_positions": [0],
    "model.vocab_size": [0],
    "model.mask_ratio": [1.0, -0.1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values]
)
def test_what_means_nothing_is_refused(key, value):
    family = ROWS[KEYS[key]][0]
    message = outcome(changed(family, key, value))
    assert message.startswith(f"config: {key}: found {value}; accepted: ")


def anything(hint: Any) -> st.SearchStrategy:
    kind = plain_type(hint)
    of = {
        int: st.integers(-(2**70), 2**70),
        float: st.floats(),
        bool: st.booleans(),
        str: st.text(max_size=20),
        tuple: st.lists(st.one_of(st.integers(-9, 99), st.floats()), max_size=4).map(tuple),
    }
    return st.one_of(of[kind], st.sampled_from(edges(hint)))


@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_any_value_passes_or_fails_in_one_line(data):
    key = data.draw(st.sampled_from(sorted(KEYS)))
    family, _, _, hint, _ = ROWS[KEYS[key]]
    outcome(changed(family, key, data.draw(anything(hint))))
