"""What a layer of each family must move, operation by operation: what docs/passes.py compares compiled steps with.

A pass is one reading or writing of an array as large as the residual stream, `[b, n, d]` in bfloat16. An operation reads its
operands and writes its result once; what is done entry by entry to the result of a matrix product is part of the product,
what is done to its operands is not. A hidden tensor 4d wide is four passes, and cotangents that are summed are read by the
one operation that sums them.
"""

from typing import NamedTuple

# Parts of a layer, in the order that a token passes them.
GROUPS = ("norms", "projection", "attention", "output", "second half")


class Operation(NamedTuple):
    """Passes that an operation reads and writes; `group` is a key of GROUPS."""

    group: str
    name: str
    read: int
    written: int
    backward: bool = False


def norm(residual: bool) -> Operation:
    """Backward of a norm: its input and the gradient in (and the residual stream's), the sum out."""
    return Operation("norms", "norm, and the residual's gradient" * residual or "norm", 2 + residual, 1, True)


def count(family: str) -> list[Operation]:
    """The operations of one layer."""
    B = True
    shared = family == "CRATE"
    biases = family != "iGPT"
    heads = 1 if shared else 3
    found = [
        Operation("norms", "two norms", 2, 2),
        Operation("projection", "W = Z U" if shared else "queries, keys, values", 1, heads),
        Operation("attention", "attention", heads, 1),
        Operation("output", "output matrix, residual added", 2, 1),
        Operation("attention", "Σ ∂O O", 2, 0, B),
        Operation("attention", "gradients of attention", heads + 1, heads, B),
        Operation("output", "∂ of the heads", 1, 1, B),
        Operation("output", "∂ of the matrix", 2, 0, B),
        Operation("projection", "∂ of the normed tokens", heads, 1, B),
        Operation("projection", "∂ of the matrix", 1 + heads, 0, B),
        norm(True),
    ]
    if biases:
        found.append(Operation("output", "∂ of the bias", 1, 0, B))
    if shared:
        return [
            *found,
            Operation("second half", "ISTA: product, relu", 1, 1),
            Operation("second half", "∂ through relu", 2, 1, B),
            Operation("second half", "∂ of the normed tokens", 1, 1, B),
            Operation("second half", "∂ of the matrix", 2, 0, B),
            norm(False),
        ]
    found += [
        Operation("second half", "W₁, activation, its argument kept", 1, 8),
        Operation("second half", "W₂, residual added", 5, 1),
        Operation("second half", "∂ of the activations", 1, 4, B),
        Operation("second half", "∂ of W₂", 5, 0, B),
        Operation("second half", "∂ through the activation", 8, 4, B),
        Operation("second half", "∂ of W₁", 5, 0, B),
        Operation("second half", "∂ of the normed tokens", 4, 1, B),
        norm(True),
    ]
    if biases:
        found += [
            Operation("projection", "∂ of the bias", 3, 0, B),
            Operation("second half", "∂ of the biases", 5, 0, B),
        ]
    return found


def passes(family: str, backward: bool | None = None, group: str | None = None) -> int:
    """Passes of a layer, or of a part of it."""
    return sum(
        one.read + one.written
        for one in count(family)
        if backward in (None, one.backward) and group in (None, one.group)
    )
