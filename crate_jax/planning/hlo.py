"""A compiled program as XLA prints it, taken apart: its computations, how often each runs, and its collectives."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "s64": 64, "u64": 64, "c64": 64}
CALLEES = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line: `name = shape opcode(arguments), attributes`; `operands` are the names among the arguments."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool


class Module(NamedTuple):
    """A program: the name of its entry, and every computation's instructions by the computation's name."""

    entry: str
    computations: dict[str, list[Instruction]]


class Collective(NamedTuple):
    """Of one kind: how often it runs in a step, and the bytes of its results on one device in a step."""

    count: int
    bytes: int


def parse(text: str) -> Module:
    """The optimised HLO module that `compiled.as_text()` prints."""
    entry, current = "", []
    computations: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            instruction = _instruction(line)
            if instruction:
                current.append(instruction)
    return Module(entry, computations)


def functions(text: str) -> dict[int, tuple[str, ...]]:
    """The Python functions that an instruction comes from, outermost first, by the `stack_frame_id` in its attributes."""
    tables: dict[str, dict[int, str]] = {}
    rows: dict[int, str] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables[line] = {}
        elif row := re.match(r"(\d+) (.*)$", line):
            rows[int(row[1])] = row[2]
        elif line.startswith(("%", "ENTRY")):
            break

    def field(row: str, name: str) -> int:
        found = re.search(rf"\b{name}=(\d+)", row)
        return int(found[1]) if found else 0

    found: dict[int, tuple[str, ...]] = {0: ()}
    for number, frame in tables.get("StackFrames", {}).items():
        location = tables["FileLocations"][field(frame, "file_location_id")]
        name = tables["FunctionNames"][field(location, "function_name_id")].strip('"')
        # Parents are counted from 1, which is none.
        found[number] = (*found[max(field(frame, "parent_frame_id") - 1, 0)], name)
    return found


def callees(instruction: Instruction) -> list[str]:
    """The computations that an instruction names."""
    found = CALLEES.findall(instruction.attributes)
    for branches in BRANCHES.findall(instruction.attributes):
        found += [name.strip(" %") for name in branches.split(",")]
    return found


def rounds(loop: Instruction, module: Module) -> int:
    """How often a while loop runs: as stated, or the constant that its condition compares the counter with; else 1."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if stated:
        return int(stated[1])
    name = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)
    condition = {found.name: found for found in module.computations.get(name[1], [])} if name else {}
    for found in condition.values():
        if found.root and found.opcode == "compare" and "direction=LT" in found.attributes:
            limit = condition.get(found.operands[1])
            if limit is not None and limit.opcode == "constant":
                return int(limit.arguments)
    return 1


def shapes(shape: str) -> Iterator[tuple[str, int]]:
    """(its text with the layout, its bytes) of each array in `f32[8,4]{1,0}` or in a tuple of such."""
    for found in re.finditer(r"\b([a-z]\w*?)\[([\d,]*)\](\{[^}]*\})?", shape):
        dtype, dims = found[1], found[2]
        if dtype == "token":
            continue
        bits = BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        yield found[0], math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def shape_bytes(shape: str) -> int:
    """Bytes of an array or of all arrays of a tuple."""
    return sum(size for _, size in shapes(shape))


def collectives(text: str) -> dict[str, Collective]:
    """The collectives of an optimised HLO module, those in loops as often as the loops run.

    The TPU compiler cuts an asynchronous collective into fusions that all name it by its channel: it counts once. A loop
    whose number of rounds cannot be read off counts as one round.
    """
    module = parse(text)
    runs: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        if name not in module.computations:
            return
        runs[name] += times
        for instruction in module.computations[name]:
            inner = times * (rounds(instruction, module) if instruction.opcode == "while" else 1)
            for callee in callees(instruction):
                visit(callee, inner)

    visit(module.entry, 1)
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    for name, instructions in module.computations.items():
        for number, instruction in enumerate(instructions):
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS and runs[name]:
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                key = kind, channel[1] if channel else f"{name} {number}"
                seen[key] = max(seen.get(key, (0, 0)), (runs[name], _result_bytes(instruction)))
    found: dict[str, Collective] = {}
    for (kind, _), (times, size) in seen.items():
        before = found.get(kind, Collective(0, 0))
        found[kind] = Collective(before.count + times, before.bytes + times * size)
    return found


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    # A tuple's shape has spaces; that of an array has none.
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    call = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not call:
        return None
    begin = end + call.end()
    close = _closing(rest, begin - 1)
    arguments = rest[begin:close]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(head[2], rest[:end], call[1], operands, arguments, rest[close + 1 :], bool(head[1]))


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)


def _result_bytes(instruction: Instruction) -> int:
    """Bytes of a collective's results.

    What is started has as its result, in HLO, (operands, results) of a gather or scatter, (operand, result, contexts) of a
    permutation and the results alone of a reduction.
    """
    sizes = [size for _, size in shapes(instruction.shape)]
    if instruction.opcode == "collective-permute-start":
        return sizes[1]
    if instruction.opcode in ("all-gather-start", "reduce-scatter-start"):
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
