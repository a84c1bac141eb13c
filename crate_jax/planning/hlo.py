"""Collectives of a compiled program, read off its text."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "s64": 64, "u64": 64, "c64": 64}


class Collective(NamedTuple):
    """Of one kind: how often it runs in a step, and the bytes of its results on one device in a step."""

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Collective]:
    """The collectives of an optimised HLO module, those in loops as often as the loops run.

    A loop whose number of rounds the compiler does not state counts as one round.
    """
    computations = _computations(text)
    runs = dict.fromkeys(computations, 0)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)

    def visit(name: str, times: int) -> None:
        if name not in computations:
            return
        runs[name] += times
        for line in computations[name][1]:
            rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for callee in re.findall(
                r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", line
            ):
                visit(callee, times * (int(rounds[1]) if rounds and " while(" in line else 1))
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for callee in branches.split(","):
                    visit(callee.strip(" %"), times)

    visit(entry, 1)
    found: dict[str, Collective] = {}
    for name, (_, lines) in computations.items():
        for line in lines:
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            if match and runs[name]:
                kind, size = match[2], _result_bytes(match[2], match[1], started=bool(match[3]))
                before = found.get(kind, Collective(0, 0))
                found[kind] = Collective(before.count + runs[name], before.bytes + runs[name] * size)
    return found


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

    What is started has as its result, in HLO, (operands, results) of a gather, (operand, result, contexts) of a permutation
    and the results alone of a reduction.
    """
    sizes = []
    for dtype, dims in re.findall(r"\b([a-z]\w*?)\[([\d,]*)\]", shapes):
        bits = BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    if started and kind == "collective-permute":
        return sizes[1]
    if started and kind == "all-gather":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
