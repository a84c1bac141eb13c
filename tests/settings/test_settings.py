"""What a setting accepts, what is said where it is refused, and names that nobody knows."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from crate_jax import InputError
from crate_jax.settings import (
    REQUIRED,
    accepted,
    check,
    convert,
    nearest,
    one_of,
    setting,
    settings_of,
    unknown,
    walk,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = setting(0.1, "A rate.", above=0)
    share: float = setting(0.5, "A share.", least=0, most=1)
    decay: float | None = setting(None, "A decay.", least=0, below=1)


@dataclasses.dataclass(frozen=True)
class Outer:
    number: int = setting(1, "A number.", least=1)
    kind: str = setting("a", "A kind.", choices=("alpha", "a"))
    sizes: tuple[float, ...] = setting((), "Sizes.", above=0, lengths=(0, 2))
    place: Path | None = setting(None, "A place.")
    switch: bool = setting(False, "A switch.")
    anything: Any = None
    inner: Inner = Inner()


@dataclasses.dataclass(frozen=True)
class Changed(Inner):
    rate: float = 0.2


HINTS = {name: hint for name, _, hint, _ in walk(Outer())}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": 0}, "number: found 0; accepted: a whole number of at least 1"),
        ({"number": 1.5}, "number: found 1.5; accepted: a whole number of at least 1"),
        ({"number": True}, "number: found True; accepted: a whole number of at least 1"),
        ({"number": None}, "number: found None; accepted: a whole number of at least 1"),
        ({"kind": "alpa"}, "kind: found 'alpa'; accepted: alpha, a; did you mean alpha?"),
        ({"kind": 3}, "kind: found 3; accepted: alpha, a"),
        ({"sizes": (1.0,)}, "sizes: found (1.0,); accepted: 2 numbers above 0, or none"),
        ({"sizes": (1.0, 0.0)}, "sizes: found (1.0, 0.0); accepted: 2 numbers above 0, or none"),
        ({"sizes": ("a", "b")}, "sizes: found ('a', 'b'); accepted: 2 numbers above 0, or none"),
        ({"switch": 1}, "switch: found 1; accepted: true or false"),
        ({"inner": Inner(rate=0.0)}, "inner.rate: found 0.0; accepted: a number above 0"),
        ({"inner": Inner(rate=math.inf)}, "inner.rate: found inf; accepted: a number above 0"),
        ({"inner": Inner(share=1.5)}, "inner.share: found 1.5; accepted: a number from 0 to 1"),
        ({"inner": Inner(share=math.nan)}, "inner.share: found nan; accepted: a number from 0 to 1"),
        ({"inner": Inner(decay=1.0)}, "inner.decay: found 1.0; accepted: a number of at least 0 and below 1"),
        ({"inner": Changed(rate=-1.0)}, "inner.rate: found -1.0; accepted: a number above 0"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(InputError) as error:
        check(dataclasses.replace(Outer(), **changes), "config: ")
    assert str(error.value) == f"config: {message}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sizes": (1, 0.5)},
        {"anything": "anything"},
        {"place": Path("here")},
        {"inner": Inner(rate=1e300, share=1, decay=0.0)},
    ],
)
def test_what_is_accepted(changes):
    check(dataclasses.replace(Outer(), **changes))


def test_another_default_keeps_the_description_and_the_range():
    assert settings_of(Changed)["rate"] == settings_of(Inner)["rate"]
    assert Changed().rate == 0.2


def test_a_setting_without_a_default_must_be_given():
    kind = dataclasses.make_dataclass("Needed", [("name", str, setting(REQUIRED, "A name."))])
    with pytest.raises(TypeError):
        kind()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("number", "12", 12), ("sizes", "1,2.5", (1.0, 2.5)), ("place", "a/b", Path("a/b")), ("kind", "x", "x")],
)
def test_words_of_a_command_line(name, text, value):
    assert convert(f"--{name}", text, HINTS[name], settings_of(Outer)[name]) == value


def test_a_word_of_another_type():
    with pytest.raises(InputError, match="--number: found '1e3'; accepted: a whole number of at least 1"):
        convert("--number", "1e3", int, settings_of(Outer)["number"])


def test_a_large_bound_is_written_out():
    one = settings_of(
        dataclasses.make_dataclass("S", [("seed", int, setting(0, "", least=0, most=2**32 - 1))])
    )
    assert accepted(int, one["seed"]) == "a whole number from 0 to 4294967295"


KEYS = ("seed", "model.dim", "model.depth", "optimizer.lr", "optimizer.b1", "data.name")


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("model.dmi", "model.dim"),
        ("lr", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("sed", "seed"),
        ("optimizer.learning_rate", None),
        ("zzz", None),
    ],
)
def test_the_nearest_name(found, meant):
    assert nearest(found, KEYS) == meant


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        ("data.nmae", "did you mean data.name?"),
        ("optimizer.zzz", "accepted: optimizer.lr, optimizer.b1"),
        ("zzz", "accepted: seed"),
        ("zz.zz", "accepted: seed, model, optimizer, data"),
    ],
)
def test_an_unknown_name_is_answered(found, hint):
    assert str(unknown("config: unknown key", found, KEYS)) == f"config: unknown key {found}; {hint}"


def test_one_of_a_few():
    one_of("size", "small", ("tiny", "small"))
    with pytest.raises(InputError, match=r"size: found 'smal'; accepted: tiny, small; did you mean small\?"):
        one_of("size", "smal", ("tiny", "small"))
    for found in (None, 3, {}):
        with pytest.raises(InputError, match=r"accepted: tiny, small$"):
            one_of("size", found, {"tiny": 1, "small": 2})
    with pytest.raises(InputError, match="size: found 'smal'; accepted: nothing"):
        one_of("size", "smal", ())
