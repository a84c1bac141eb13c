"""Collectives of a compiled program, read off its text."""

import math
import re
from typing import NamedTuple

CALLEE = r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "s64": 64, "u64": 64, "c64": 64}


class Collective(NamedTuple):
    """Of one kind: how often it runs in a step, and the bytes of its results on one device in a step."""

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Collective]:
    """The collectives of an optimised HLO module, those in loops as often as the loops run.

    The TPU compiler cuts an asynchronous collective into fusions that all name it by its channel: it counts once. A loop
    whose number of rounds cannot be read off counts as one round.
    """
    computations = _computations(text)
    runs = dict.fromkeys(computations, 0)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)

    def visit(name: str, times: int) -> None:
        if name not in computations:
            return
        runs[name] += times
        for line in computations[name][1]:
            inner = times * (_rounds(line, computations) if " while(" in line else 1)
            for callee in re.findall(CALLEE, line):
                visit(callee, inner)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for callee in branches.split(","):
                    visit(callee.strip(" %"), times)

    visit(entry, 1)
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    for name, (_, lines) in computations.items():
        for number, line in enumerate(lines):
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            if match and runs[name]:
                channel = re.search(r"channel_id=(\d+)", line)
                key = match[2], channel[1] if channel else f"{name} {number}"
                size = _result_bytes(match[2], match[1], started=bool(match[3]))
                seen[key] = max(seen.get(key, (0, 0)), (runs[name], size))
    found: dict[str, Collective] = {}
    for (kind, _), (times, size) in seen.items():
        before = found.get(kind, Collective(0, 0))
        found[kind] = Collective(before.count + times, before.bytes + times * size)
    return found


def _rounds(line: str, computations: dict[str, tuple[bool, list[str]]]) -> int:
    """How often a loop runs: as stated, or the constant that its condition compares the counter with."""
    stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if stated:
        return int(stated[1])
    _, condition = computations.get(re.search(r"condition=%?([\w.\-]+)", line)[1], (False, []))
    text = "\n".join(condition)
    compared = re.search(r"ROOT .* compare\([^,]*?, [^,)]*?%?([\w.\-]+)\), direction=LT", text)
    limit = re.search(rf"%?{re.escape(compared[1])} = \S+ constant\((\d+)\)", text) if compared else None
    return int(limit[1]) if limit else 1


def _computations(text: str) -> dict[str, tuple[bool, list[str]]]:
    """Name → (whether it is the entry, its lines)."""
    out: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            lines = []
            out[header[2]] = (header[1] is not None, lines)
        elif line.startswith(" "):
            lines.append(line)
    return out


def _result_bytes(kind: str, shapes: str, *, started: bool) -> int:
    """Bytes of `f32[8,4]{1,0}` or of a tuple of such.

    What is started has as its result, in HLO, (operands, results) of a gather or scatter, (operand, result, contexts) of a
    permutation and the results alone of a reduction.
    """
    sizes = []
    for dtype, dims in re.findall(r"\b([a-z]\w*?)\[([\d,]*)\]", shapes):
        bits = BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    if started and kind == "collective-permute":
        return sizes[1]
    if started and kind in ("all-gather", "reduce-scatter"):
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
