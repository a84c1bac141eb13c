"""Configurations: durations, overrides, what follows from the data."""

import dataclasses
import json

import pytest

from crate_jax import InputError, models
from crate_jax.data.sources import DatasetInfo
from crate_jax.runs.config import (
    Config,
    Duration,
    fit_to_data,
    from_config_dict,
    to_config_dict,
)
from crate_jax.runs.workdir import read_config


def info(image_size=8, channels=1, num_classes=10, max_value=255):
    names = tuple(str(i) for i in range(num_classes))
    return DatasetInfo(
        "some", image_size, channels, num_classes, names, max_value, {"train": 100, "test": 20}
    )


def base(**changes):
    return Config(model=models.CRATEConfig(image_size=8, patch_size=2, channels=1, num_classes=10), **changes)


def test_round_trip_through_the_config_dict():
    config = base(total=Duration(3, "examples"), eval=None, batch_size=48)
    assert from_config_dict(to_config_dict(config)) == config


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ((2, "epochs"), 20),
        ((0.25, "epochs"), 2),
        ((7, "steps"), 7),
        ((95, "examples"), 10),
        ((50, "percent"), 100),
    ],
)
def test_durations_in_steps(duration, steps):
    assert Duration(*duration).in_steps(num_examples=100, batch_size=10, total_steps=200) == steps


def test_a_duration_is_never_rounded_to_nothing():
    assert Duration(0.001, "percent").in_steps(num_examples=100, batch_size=10, total_steps=200) == 1
    assert Duration(0, "epochs").in_steps(num_examples=100, batch_size=10) == 0


def test_the_total_cannot_be_a_percentage_of_itself():
    with pytest.raises(InputError, match="total_percent"):
        Duration(10, "percent").in_steps(num_examples=100, batch_size=10)


def test_two_suffixes_of_one_duration_are_refused():
    values = to_config_dict(base())
    values.total_steps = 10
    with pytest.raises(InputError, match=r"total_epochs=100.* and total_steps=10 both given"):
        from_config_dict(values)


def test_a_suffix_on_the_command_line_replaces_the_one_in_the_file():
    values = to_config_dict(base())
    values.total_steps = 10
    assert from_config_dict(values, {"total_steps"}).total == Duration(10, "steps")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, "unknown key batchsize; did you mean batch_size?"),
        ({"data": {"nmae": "digits"}}, "unknown key data.nmae; did you mean data.name?"),
        ({"model": {"family": "crates"}}, "model.family: found 'crates'; accepted: crate"),
        ({"total_epochs": -1}, "total_epochs: found -1; accepted: a number of at least 0"),
    ],
)
def test_mistakes_in_a_configuration(values, message):
    with pytest.raises(InputError, match=message):
        from_config_dict(values)


@pytest.mark.parametrize(
    ("found", "size", "patch"),
    [(8, 8, 2), (28, 28, 7), (32, 32, 8), (29, 28, 7), (224, 224, 56), (1000, 1000, 250)],
)
def test_the_patch_size_follows_the_data(found, size, patch):
    config = fit_to_data(base(), info(found, channels=3, num_classes=4))
    assert (config.model.image_size, config.model.patch_size) == (size, patch)
    assert (config.data.image_size, config.data.channels) == (size, 3)
    assert (config.model.channels, config.model.num_classes, config.model.num_tokens) == (3, 4, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "config: config.json: found [1, 2]; accepted: a group of settings by name"),
        (None, "config: config.json: found None; accepted: a group of settings by name"),
        ({"model": "crate"}, "config: model: found 'crate'; accepted: a group of settings by name"),
        ({"data": {"name": 5}}, "config: data.name: found 5; accepted: text"),
    ],
)
def test_a_config_json_that_is_none(values, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError) as error:
        read_config(tmp_path)
    assert str(error.value) == message


def test_a_setting_that_no_longer_exists_is_dropped_from_older_runs(tmp_path):
    values = to_config_dict(base()).to_dict()
    (tmp_path / "config.json").write_text(
        json.dumps({**values, "data": {**values["data"], "benchmark": False}})
    )
    assert read_config(tmp_path) == base()
    with pytest.raises(InputError, match=r"unknown key data\.benchmark"):
        from_config_dict({"data": {"benchmark": False}})


def test_a_patch_size_given_by_hand_is_kept():
    config = fit_to_data(
        dataclasses.replace(base(), model=dataclasses.replace(base().model, patch_size=4)),
        info(28),
        {"model.patch_size"},
    )
    assert (config.model.patch_size, config.model.num_tokens) == (4, 49)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image_size": 16},
            r"model.image_size: found 16; accepted: 28, .* \(data.image_size changes both\)",
        ),
        ({"image_width": 48}, r"model.image_width: found 48; accepted: 28"),
    ],
)
def test_a_size_of_the_model_alone_is_refused(fields, message):
    config = dataclasses.replace(base(), model=dataclasses.replace(base().model, **fields))
    with pytest.raises(InputError, match=message):
        fit_to_data(config, info(28), {f"model.{name}" for name in fields})
    same = dataclasses.replace(base().model, image_size=28, patch_size=7)
    fitted = fit_to_data(dataclasses.replace(base(), model=same), info(28), {"model.image_size"})
    assert fitted.model.image_size == 28


def test_an_image_size_given_by_hand_is_kept():
    config = base(data=dataclasses.replace(base().data, image_size=30, channels=1))
    fitted = fit_to_data(config, info(28, channels=3))
    assert (fitted.model.image_size, fitted.model.channels) == (30, 1)
    assert 30 % fitted.model.patch_size == 0
