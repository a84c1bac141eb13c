"""Flags of commands: a dataclass of settings in, the user's values out.

Written --name=VALUE or --name VALUE; of a switch --name, --noname or --name=false. The last one given counts. Keys of a
configuration are written likewise, --config.KEY=VALUE.
"""

import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from crate_jax import InputError
from crate_jax.runs.config import with_optimizer
from crate_jax.runs.help import examples
from crate_jax.settings import REQUIRED, check, convert, plain_type, settings_of, unknown

F = TypeVar("F")
HELP = ("--help", "-h", "-help")


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks what the command does."""
    return any(argument in HELP for argument in argv[1:])


def take(argv: Sequence[str], kind: type[F], *, required: bool = True) -> tuple[F, list[str]]:
    """The flags of a command line that a dataclass of settings declares, and the arguments that it does not.

    Args:
      argv: the command line, the program's name first.
      kind: the dataclass.
      required: whether a setting without a default must be given; else it is None.
    Raises:
      InputError: a value of another type or outside its range, or a flag that is missing.
    """
    hints, known = typing.get_type_hints(kind), settings_of(kind)
    values = _flag_values()
    for name in known:
        define = flags.DEFINE_bool if plain_type(hints[name]) is bool else flags.DEFINE_string
        define(name, None, "", flag_values=values)
    try:
        rest = values(list(argv), known_only=True)[1:]
    except (flags.Error, ValueError) as error:
        raise _as_input_error(error, values) from None
    given: dict[str, Any] = {}
    for name, one in known.items():
        text = values[name].value
        if isinstance(text, str):
            given[name] = convert(f"--{name}", text, hints[name], one)
        elif text is not None:
            given[name] = text  # A switch: absl has read it.
        elif kind.__dataclass_fields__[name].default is REQUIRED:
            if required:
                raise InputError(f"--{name} is required: {one.description} {_to_start(kind)}")
            given[name] = None
    found = kind(**given)
    if required:
        check(found, "--")
    return found, rest


def once_each(argv: Sequence[str], name: str) -> list[list[str]]:
    """The command line once for each value of a flag that may be given several times, with that value alone.

    >>> once_each(["report", "--workdir=a", "--step=3", "--workdir", "b"], "workdir")
    [['report', '--workdir=a', '--step=3'], ['report', '--step=3', '--workdir=b']]
    """
    words, places = [], []
    waiting = False
    for word in argv:
        if waiting:
            words[-1] += f"={word}"
            waiting = False
            continue
        if re.fullmatch(f"--?{name}(=.*)?", word, re.DOTALL):
            places.append(len(words))
            waiting = "=" not in word
        words.append(word)
    if len(places) < 2:
        return [list(argv)]
    return [
        [word for place, word in enumerate(words) if place == chosen or place not in places]
        for chosen in places
    ]


def refuse(rest: Sequence[str], kind: type) -> None:
    """Raise for what is left of a command line, if anything is.

    Raises:
      InputError: a flag that the command does not have, or a word that belongs to no flag.
    """
    for argument in rest:
        if not argument.startswith("-"):
            raise InputError(f"unexpected argument {argument!r}; flags are written --name=value")
        known = [f"--{name}" for name in settings_of(kind)]
        raise unknown("unknown flag", "--" + argument.lstrip("-").partition("=")[0], known)


def override(config: ConfigDict, rest: Sequence[str], kind: type) -> tuple[ConfigDict, set[str]]:
    """The configuration with the --config.KEY=VALUE of a command line, and the keys that these set.

    Args:
      config: what the file says, or the run.
      rest: the arguments that `take` left.
      kind: the dataclass of the command's own flags, for the error about what is neither.
    Raises:
      InputError: a key that does not exist, a value of another type, or an argument that is no key.
    """
    with_optimizer(config, rest)
    known = list(dotted(config))
    for argument in rest:
        key = argument.lstrip("-").partition("=")[0]
        name = key.removeprefix("no").removeprefix("config.")
        if argument.startswith("-") and key.startswith(("config.", "noconfig.")) and name not in known:
            raise unknown("config: unknown key", name, known)
    values = _flag_values()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(rest))
    try:
        refuse(values(["", *rest], known_only=True)[1:], kind)
    except (flags.Error, ValueError) as error:
        raise _as_input_error(error, values) from None
    return values["config"].value, set(config_flags.get_override_values(values["config"]))


def dotted(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted key → value, for every key of a configuration."""
    found = {}
    for key in config:
        value = config[key]
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return found


def _as_input_error(error: Exception, values: flags.FlagValues) -> InputError:
    """absl's complaint in our words."""
    parts = re.match(r"flag --(?P<name>[^=]+)=(?P<text>.*?): ", str(error), re.DOTALL)
    if parts is None or parts["name"] not in values:
        return InputError(str(error))
    words = {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "tuple": "a tuple, (A, B)",
    }
    kind = values[parts["name"]].flag_type()
    return InputError(f"--{parts['name']}: found {parts['text']!r}; accepted: {words.get(kind, kind)}")


def _to_start(kind: type) -> str:
    found = examples(kind)
    return f"To start: {found[0]}" if found else ""


def _flag_values() -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()  # A word between flags does not end them.
    return values
