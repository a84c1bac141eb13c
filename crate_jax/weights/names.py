"""From what a file holds to the weights in it: which part of a nest, without the prefixes that wrappers add."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from crate_jax import InputError
from crate_jax.settings import nearest
from crate_jax.weights.stored import Stored

# Keys under which trainers store weights, the first one that is there counts. An average is taken where there is no other.
CONTAINERS = (
    "state_dict", "model_state_dict", "model", "model_state", "params", "teacher", "student", "weights", "network", "net",
    "module", "model_ema", "state_dict_ema", "ema_state_dict", "ema",
)  # fmt: skip
# What is in front of names, there by wrapping a model: by parallel training, compilation, a trainer.
PREFIXES = ("module.", "_orig_mod.", "model.", "params/")
# In a file of flat names what stands in front of the parameters; the first one that is there counts.
FLAT = ("params/", "opt/target/")
# The rest of such files.
TRAINER_STATE = re.compile(
    r"^(opt|chrono|optimizer|opt_state)/|/(Adam|Adam_1|Momentum|ExponentialMovingAverage)$"
    r"|^(global_step|beta[12]_power|step|epoch)$"
)


class Weights(NamedTuple):
    """The arrays of a model under the names of its code, and what is to be said of how they were found."""

    arrays: dict[str, Stored]
    notes: list[str]


def find(content: Mapping[str, Any], part: str | None = None) -> Weights:
    """The weights in what a file holds.

    Args:
      content: as `files.open_file` gives it.
      part: the key of the weights that are meant, where there are several, such as model_ema.
    Raises:
      InputError: no weights, no such part, or two arrays of one name.
    """
    notes: list[str] = []
    arrays = _without_state(_pick(content, part, notes), notes)
    found: dict[str, Stored] = {}
    removed = set()
    for name, array in arrays.items():
        short = _without_prefixes(name)
        removed.add(name.removesuffix(short))
        if short in found:
            raise InputError(
                f"checkpoint: two arrays are called {short} once the prefixes of wrappers are left out"
            )
        found[short] = array
    if not found:
        raise InputError("checkpoint: holds no arrays")
    if prefixes := sorted(removed - {""}):
        notes.append(f"names without the prefix {', '.join(prefixes)}")
    return Weights(found, notes)


def _pick(content: Mapping[str, Any], part: str | None, notes: list[str]) -> Mapping[str, Any]:
    """The innermost mapping with the weights: where arrays lie beside other things, these are left out."""
    if part is not None:
        return _asked_for(content, part, notes)
    if any(isinstance(value, Stored) for value in content.values()):
        return content
    nests = {str(key): value for key, value in content.items() if _has_arrays(value)}
    known = [name for name in CONTAINERS if name in nests]
    if not known and len(nests) != 1:
        raise InputError(
            f"checkpoint: no weights under a known key; found {_some(content)}; say which with --part"
            if nests
            else f"checkpoint: holds no arrays; found {_some(content)}"
        )
    name = known[0] if known else next(iter(nests))
    others = [other for other in known if other != name and other != "student"]
    notes.append(f"taken from {name}" + (f"; --part={others[0]} takes the other weights" if others else ""))
    if left := [str(key) for key in content if key != name and key not in known]:
        notes.append(f"left out: {_some(left)}")
    return _pick(nests[name], None, notes)


def _asked_for(content: Mapping[str, Any], part: str, notes: list[str]) -> Mapping[str, Any]:
    nests = {str(key): value for key, value in content.items() if _has_arrays(value)}
    flat = {
        name.removeprefix(part)[1:]: value
        for name, value in content.items()
        if name.startswith((f"{part}/", f"{part}."))
    }
    if part not in nests and not flat:
        near = nearest(part, nests)
        raise InputError(
            f"--part: found {part}; accepted: {', '.join(nests) or 'none, there is one part only'}"
            + (f"; did you mean {near}?" if near and len(nests) > 1 else "")
        )
    notes.append(f"taken from {part}")
    return nests[part] if part in nests else flat


def _has_arrays(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(one, Stored) or _has_arrays(one) for one in value.values()
    )


def _without_state(arrays: Mapping[str, Any], notes: list[str]) -> dict[str, Stored]:
    """The arrays that are weights; what trainers keep beside them in the same place is left out."""
    kept = {str(name): array for name, array in arrays.items() if isinstance(array, Stored)}
    left = [str(name) for name in arrays if not isinstance(arrays[name], Stored)]
    for prefix in FLAT:
        if inside := {name: array for name, array in kept.items() if name.startswith(prefix)}:
            left += [name for name in kept if name not in inside]
            kept = {name.removeprefix(prefix): array for name, array in inside.items()}
            break
    state = [name for name in kept if TRAINER_STATE.search(name)]
    if left + state:
        roots = {name.split("/")[0] for name in kept if name not in state}
        short = {name if (root := name.split("/")[0]) in roots else root for name in left + state}
        notes.append(f"left out: {_some(sorted(short))}")
    return {name: array for name, array in kept.items() if name not in state}


def _without_prefixes(name: str) -> str:
    while prefix := next((one for one in PREFIXES if name.startswith(one)), None):
        name = name.removeprefix(prefix)
    return name


def _some(names: Any) -> str:
    names = [str(name)[:60] for name in names]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
