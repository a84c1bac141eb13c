"""Settings: what a user may choose, each with its description and the values it accepts.

A field of a configuration, or of a command's flags, is declared with `setting`. Help pages print what stands there, and
`check` holds values to it before any work is done. Names that nobody knows are answered in one way, by `unknown` and
`one_of`. Standard library only.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from crate_jax import InputError

T = TypeVar("T")
# The default of a setting that must be given.
REQUIRED: Any = dataclasses.MISSING
# Seeds become 32-bit keys; a larger one would silently lose its upper bits.
LARGEST_SEED = 2**32 - 1


class Setting(NamedTuple):
    """What a field's metadata hold: a sentence for people, and what is accepted beside the field's type.

    A number must be finite and lie within `above` or `least` and `below` or `most`; text must be one of `choices`, if there
    are any; a tuple must have one of `lengths`, if there are any, and its entries lie within the bounds.
    """

    description: str
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether a value of the right type is accepted."""
        if isinstance(value, tuple):
            right = not self.lengths or len(value) in self.lengths
            return right and all(self.holds(entry) for entry in value)
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    @property
    def bounds(self) -> str:
        """What is accepted of a number, in words that follow a noun: "above 0", "from 0 to 1"; perhaps nothing."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:.15g}"
        words = {"above": self.above, "of at least": self.least, "below": self.below, "at most": self.most}
        return " and ".join(f"{word} {value:.15g}" for word, value in words.items() if value is not None)


def setting(
    default: T,
    description: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    choices: Collection[str] = (),
    lengths: tuple[int, ...] = (),
) -> T:
    """A field of a dataclass that is a setting. The arguments after `default` are those of `Setting`."""
    made = Setting(description, above, least, below, most, tuple(choices), lengths)
    return dataclasses.field(default=default, metadata={"setting": made})


def settings_of(kind: type) -> dict[str, Setting]:
    """Field → its setting, for the fields of a dataclass that are settings.

    A subclass that gives a field another default keeps the description and the range of the class it inherits from.
    """
    found = {}
    for field in dataclasses.fields(kind):
        for owner in kind.__mro__:
            declared = owner.__dict__.get("__dataclass_fields__", {}).get(field.name)
            if declared is not None and "setting" in declared.metadata:
                found[field.name] = declared.metadata["setting"]
                break
    return found


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, type, Setting]]:
    """(dotted name, value, type, setting) of every setting of a configuration and of the configurations within it."""
    kind = type(config)
    hints, known = typing.get_type_hints(kind), settings_of(kind)
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name)
        if field.name in known:
            yield prefix + field.name, value, hints[field.name], known[field.name]
        elif dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{field.name}.")


def check(config: Any, prefix: str = "") -> None:
    """Hold every setting of a configuration to its type and its range.

    Args:
      config: an instance of a dataclass whose fields are settings, or dataclasses of such fields.
      prefix: comes before a field's name in messages, such as "--" for flags.
    Raises:
      InputError: names the first setting that does not hold, what was found and what is accepted.
    """
    for name, value, hint, one in walk(config):
        check_value(prefix + name, value, hint, one)


def check_value(name: str, value: Any, hint: Any, one: Setting) -> None:
    """Hold one value to its type and its setting; see `check`."""
    if isinstance(value, str) and one.choices:
        one_of(name, value, one.choices)
    if not _is_of(value, hint) or not one.holds(value):
        raise InputError(f"{name}: found {value!r}; accepted: {accepted(hint, one)}")


def convert(name: str, text: str, hint: Any, one: Setting) -> Any:
    """What a word of a command line says, as the type that the setting has; commas separate the entries of a tuple.

    Raises:
      InputError: a word of another type.
    """
    kind = plain_type(hint)
    try:
        if kind is tuple:
            entry = typing.get_args(_without_none(hint))[0]
            return tuple(entry(word) for word in text.split(",") if word)
        return kind(text)
    except ValueError:
        raise InputError(f"{name}: found {text!r}; accepted: {accepted(hint, one)}") from None


def accepted(hint: Any, one: Setting) -> str:
    """The values that a setting accepts, in words."""
    kind = plain_type(hint)
    if one.choices:
        return ", ".join(one.choices)
    if kind is tuple:
        noun = "whole numbers" if typing.get_args(_without_none(hint))[0] is int else "numbers"
        counts = " or ".join(str(count) for count in one.lengths if count)
        words = " ".join(part for part in (counts, noun, one.bounds) if part)
        return f"{words}, or none" if 0 in one.lengths else words
    if kind in (int, float):
        noun = "a whole number" if kind is int else "a number"
        return f"{noun} {one.bounds}" if one.bounds else noun
    return {bool: "true or false", Path: "a path"}.get(kind, "text")


def plain_type(hint: Any) -> type:
    """`int | None` → int, `tuple[float, ...]` → tuple."""
    hint = _without_none(hint)
    return typing.get_origin(hint) or hint


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    return hint


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value has the type that an annotation names; a whole number is a number too."""
    if isinstance(hint, types.UnionType):
        return any(_is_of(value, part) for part in typing.get_args(hint))
    if hint is Any:
        return True
    kind = plain_type(hint)
    if kind is tuple:
        entry = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_is_of(part, entry) for part in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def one_of(name: str, found: Any, known: Collection[str]) -> None:
    """Accept a word that must be one of a few.

    Raises:
      InputError: lists them, and names the nearest.
    """
    if not isinstance(found, str) or found not in known:
        near = nearest(found, known) if isinstance(found, str) else None
        hint = f"; did you mean {near}?" if near else ""
        raise InputError(f"{name}: found {found!r}; accepted: {', '.join(known) or 'nothing'}{hint}")


def unknown(what: str, found: str, known: Collection[str]) -> InputError:
    """The error for a name that is not one of many, with the nearest known one, or those beside it if none is near.

    Names may be dotted, as the keys of a configuration are.
    """
    near = nearest(found, known)
    beside = [name for name in known if _split(name)[0] == _split(found)[0]]
    listed = beside or list(dict.fromkeys(name.partition(".")[0] for name in known))
    hint = f"did you mean {near}?" if near else f"accepted: {', '.join(listed) or 'nothing'}"
    return InputError(f"{what} {found}; {hint}")


def nearest(found: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant: one that looks like it, in the same group or the only one elsewhere."""
    group, word = _split(found)
    beside = {_split(name)[1]: name for name in known if _split(name)[0] == group}
    for near in difflib.get_close_matches(word, beside, n=1):
        return beside[near]
    same = [name for name in known if _split(name)[1] == word]
    if len(same) == 1:
        return same[0]
    return None if beside and group else next(iter(difflib.get_close_matches(found, known, n=1)), None)


def _split(name: str) -> tuple[str, str]:
    """(group, last word) of a dotted name."""
    group, _, word = name.rpartition(".")
    return group, word
