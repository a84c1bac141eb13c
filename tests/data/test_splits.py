"""Splits in the syntax of TensorFlow datasets."""

import re
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds

from crate_jax import InputError
from crate_jax.data import inspect, load
from crate_jax.data.dataset import select

SPECS = [
    *(
        "train",
        "test",
        "train[:90%]",
        "train[90%:]",
        "train[10:]",
        "train[:-7]",
        "train[-33%:]",
        "train[5:6]",
    ),
    *("train[33%:67%]", "test[1:1000]", "train+test", "train[:10%]+train[-10%:]", "train[:]"),
]


@pytest.mark.parametrize("count", [7, 99, 1437])
@pytest.mark.parametrize("spec", SPECS)
def test_a_split_means_what_tfds_says(spec, count):
    sizes = {"train": count, "test": 12}
    try:
        theirs = tfds.core.ReadInstruction.from_spec(spec).to_absolute(
            {name: types.SimpleNamespace(num_examples=size) for name, size in sizes.items()}
        )
        expected = [(p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in theirs]
    except (AssertionError, ValueError):
        # A bound beyond the split, always a number of examples, which TFDS refuses and Python's slices cut off.
        name, start, stop = re.fullmatch(r"(\w+)\[(-?\d*):(-?\d*)\]", spec).groups()
        part = range(sizes[name])[slice(*(int(bound) if bound else None for bound in (start, stop)))]
        expected = [(name, part.start, part.stop)]
    if any(start >= stop for _, start, stop in expected):
        with pytest.raises(InputError, match="holds no examples"):
            select(spec, sizes)
        return
    assert [(name, r.start, r.stop) for name, r in select(spec, sizes)] == expected


def test_names_of_the_split_to_test_on_stand_for_each_other():
    assert select("test", {"train": 5, "val": 3}) == [("val", range(3))]
    assert select("validation[:2]", {"train": 5, "test": 3, "val": 4}) == [("test", range(2))]
    assert select("val", {"train": 5, "test": 3, "val": 4}) == [("val", range(4))]


@pytest.mark.parametrize("spec", ["trains", "train[", "train[:x]", "", "train[:5]+", "train[::2]"])
def test_what_is_no_split_is_refused(spec):
    with pytest.raises(InputError, match="accepted: train, test, a part of one such as"):
        select(spec, {"train": 9, "test": 9})


def test_parts_of_a_source():
    whole = load("digits", "train", image_size=8, channels=1)
    part = load("digits", "train[:10%]+train[-5:]", image_size=8, channels=1)
    assert len(part) == 144 + 5
    for i, j in ((0, 0), (143, 143), (144, 1432), (148, 1436)):
        np.testing.assert_array_equal(part[i]["image"], whole[j]["image"])
    assert inspect("digits", train="train[:90%]", test="train[90%:]").num_examples == {
        "train": 1293,
        "test": 144,
    }
