"""How many bytes a compiled step moves through the device's memory, read off its text.

On an accelerator most of a training step is memory traffic, and the compiled program states it: every fusion, copy and
custom call reads its operands from memory and writes its results there, and what happens inside a fusion stays on the chip.
The sum needs no device. It knows nothing of caches (an operand that is still in the second-level cache is counted as read
again) nor of the workspace that a library's kernel takes for itself, which the compiler learns on the device only.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from crate_jax.planning import hlo
from crate_jax.planning.hlo import Instruction, Module

# Neither reads nor writes: names for what is there, or the end of what was counted where it was started.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier domain "
    "async-update async-done copy-done send-done recv-done all-reduce-done all-gather-done collective-permute-done".split()
)
# Part of what these are given is read, as much as they return.
SLICES = ("dynamic-slice", "slice", "gather")
# A fusion may hand on an operand through these without touching it.
VIEWS = ("bitcast", "reshape", "get-tuple-element")


class Traffic(NamedTuple):
    """Bytes moved in a step: all of them, and by kind of instruction, (kind, times it runs, bytes), most first."""

    bytes: int
    kinds: list[tuple[str, int, int]]


def kind(instruction: Instruction) -> str:
    """What people can tell apart: the library's function, or the name that XLA gave, without its number."""
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
        return target[1] if target else instruction.opcode
    if instruction.opcode == "fusion":
        return re.sub(r"[.\d]+(\.clone)?$", "", instruction.name)
    return instruction.opcode


def moved(text: str, *, on_chip: bool = False, by: Callable[[Instruction], str] = kind) -> Traffic:
    """Bytes that the optimised HLO module reads from and writes to memory.

    Operands and results of every instruction outside of fusions; what runs in a loop as often as the loop does, of a
    conditional's branches the dearest. A slice counts by what it takes, a dynamic-update-slice by what it writes: the rest
    of the array stays where it is.

    Args:
      text: `compiled.as_text()`.
      on_chip: arrays that the program keeps in memory space 1, on the chip, cost nothing: the TPU compiler's are.
      by: what an instruction is counted under.
    """
    module = hlo.parse(text)
    runs, sizes = _computation(module.entry, module, on_chip, by)
    kinds = sorted(((name, runs[name], size) for name, size in sizes.items()), key=lambda row: -row[2])
    return Traffic(sum(sizes.values()), [row for row in kinds if row[2]])


def _computation(
    name: str, module: Module, on_chip: bool, by: Callable[[Instruction], str]
) -> tuple[Counter, Counter]:
    """How often instructions of each kind run in a computation, and their bytes."""
    runs, sizes = Counter(), Counter()
    shapes = {found.name: found.shape for found in module.computations.get(name, [])}
    for instruction in module.computations.get(name, []):
        inner = _inner(instruction, module)
        if inner:
            times = hlo.rounds(instruction, module) if instruction.opcode == "while" else 1
            counted = [_computation(callee, module, on_chip, by) for callee in inner]
            counts, bytes_ = max(counted, key=lambda pair: sum(pair[1].values()))
            for key in bytes_:
                runs[key] += times * counts[key]
                sizes[key] += times * bytes_[key]
        elif instruction.opcode not in FREE:
            key = by(instruction)
            runs[key] += 1
            sizes[key] += _bytes(instruction, shapes, module, on_chip)
    return runs, sizes


def _inner(instruction: Instruction, module: Module) -> list[str]:
    """The computations whose instructions use the memory themselves; a fusion's do not."""
    if instruction.opcode == "while":
        return re.findall(r"\bbody=%?([\w.\-]+)", instruction.attributes)
    if instruction.opcode in ("call", "conditional", "async-start"):
        return [name for name in hlo.callees(instruction) if name in module.computations]
    return []


def _bytes(instruction: Instruction, shapes: dict[str, str], module: Module, on_chip: bool) -> int:
    def size(shape: str) -> int:
        return sum(n for text, n in hlo.shapes(shape) if not (on_chip and "S(1)" in text))

    operands = [size(shapes.get(name, "")) for name in instruction.operands]
    result, opcode = size(instruction.shape), instruction.opcode
    if opcode == "fusion":
        called = hlo.callees(instruction)[0]
        return _fusion(module.computations.get(called, []), operands, result, size)
    if opcode in SLICES:
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * operands[1]
    if opcode == "copy-start":
        # Its result is (copy, original, context).
        return size(next(hlo.shapes(instruction.shape))[0]) + sum(operands)
    if opcode in ("iota", "rng-bit-generator"):
        return result
    return sum(operands) + result


def _fusion(body: list[Instruction], operands: list[int], result: int, size) -> int:
    """Bytes of a fusion whose operands and result have these sizes."""
    by_name = {found.name: found for found in body}
    users: dict[str, list[tuple[str, Instruction]]] = {}
    for found in body:
        for name in found.operands:
            users.setdefault(name, []).append((name, found))

    def uses(name: str) -> list[tuple[str, Instruction]]:
        """(the view of it that is used, the instruction that does) of an array, through views of it."""
        found = []
        for view, user in users.get(name, []):
            found += uses(user.name) if user.opcode in VIEWS else [(view, user)]
        return found

    def is_parameter(name: str) -> bool:
        while by_name[name].opcode in VIEWS:
            name = by_name[name].operands[0]
        return by_name[name].opcode == "parameter"

    read = 0
    for parameter in body:
        if parameter.opcode != "parameter":
            continue
        full, found = operands[int(parameter.arguments)], uses(parameter.name)
        if found and all(_takes_part(view, user) for view, user in found):
            taken = sum(size(user.shape) for _, user in found if user.opcode in SLICES)
            read += min(full, taken)
        else:
            read += full
    # What is updated in place is no result: the slice is.
    for update in body:
        if update.opcode == "dynamic-update-slice" and is_parameter(update.operands[0]):
            result += size(by_name[update.operands[1]].shape) - size(update.shape)
    return read + max(result, 0)


def _takes_part(view: str, user: Instruction) -> bool:
    """Whether an instruction leaves most of the array that it is given alone."""
    return user.opcode in (*SLICES, "dynamic-update-slice") and user.operands[0] == view
