"""The test loss by position beside the entropy of data that were made, and when each position was learned."""

import numpy as np

from crate_jax.analysis import figures
from crate_jax.reports.base import Figure, SectionResult, Table, TrainedRun

# A position counts as learned when its loss stays within so many nats of its entropy.
LEARNED = 0.1
PREFIX = "eval/position/"


def make(trained: TrainedRun) -> SectionResult | None:
    """The loss split into the entropy of the data (aleatoric) and what the model lacks (epistemic), by position; nothing for
    data whose entropy nobody knows.
    """
    tokens, evaluated = trained.run.info.tokens, trained.last_evaluation
    if tokens is None or tokens.floor is None or f"{PREFIX}00" not in evaluated:
        return None
    tests = {
        line["step"]: line for line in trained.lines if f"{PREFIX}00" in line and line["step"] <= trained.step
    }
    lines = list(tests.values())  # The last step may be there twice.
    positions = range(len(tokens.floor))
    steps = np.array([line["step"] for line in lines])
    losses = np.array([[line[f"{PREFIX}{position:02d}"] for position in positions] for line in lines])
    excess = losses - np.array(tokens.floor)
    learned = [learned_at(steps, excess[:, position]) for position in positions]
    final, floor = losses[-1], float(np.mean(tokens.floor))
    rows = [
        [
            position + 1,
            "given" if tokens.answer is None or position < tokens.answer else "answer",
            f"{entropy:.4f}",
            f"{loss:.4f}",
            f"{loss - entropy:+.4f}",
            "not yet" if step is None else f"{step:,}",
        ]
        for position, entropy, loss, step in zip(positions, tokens.floor, final, learned, strict=True)
    ]
    columns = [
        "position",
        "part",
        "entropy (nats)",
        "test loss (nats)",
        "epistemic (nats)",
        "learned by step",
    ]
    title = (
        f"test loss by position at step {evaluated['step']:,}, {floor:.4f} nats per {tokens.unit} of entropy"
    )
    values = {
        "step": evaluated["step"],
        "floor": floor,
        "loss": float(final.mean()),
        "excess": float(final.mean() - floor),
        "exact_match": evaluated.get("eval/exact_match"),
        "answer_loss": evaluated.get("eval/answer_loss"),
        "steps": steps.tolist(),
        "positions": [
            {"floor": entropy, "loss": losses[:, position].tolist(), "learned_at": learned[position]}
            for position, entropy in enumerate(tokens.floor)
        ],
    }
    text = (
        "The data are made, so the entropy of each symbol given those before it is known: it is the aleatoric part of the "
        "loss, which no model can be without. What is above it is the epistemic part, what the model does not know yet. A "
        f"position is learned by the first test from which on the latter stays below {LEARNED} nats; a step is known as "
        "exactly as the tests are close together."
    )
    alt = (
        f"Left, the test loss of each position as a bar, its entropy below and the epistemic part above: together "
        f"{final.mean():.4f} nats per {tokens.unit}, of which {floor:.4f} are entropy. Middle, the mean of all positions "
        "in the same two parts by training step. Right, the epistemic part of each position of the answer: "
        f"{_in_words(learned, tokens.answer)}."
    )
    picture = figures.known_entropy(
        steps, excess, np.array(tokens.floor), tokens.answer or 0, LEARNED, title=trained.title
    )
    return SectionResult(
        "Entropy and what is learned",
        text,
        values,
        [Table(title, columns, rows)],
        [Figure("known_entropy.png", picture, alt)],
    )


def learned_at(steps: np.ndarray, excess: np.ndarray) -> int | None:
    """The first step from which on the excess stays below LEARNED; None if it does not at the last one."""
    above = np.flatnonzero(excess >= LEARNED)
    first = above[-1] + 1 if len(above) else 0
    return int(steps[first]) if first < len(steps) else None


def _in_words(learned: list[int | None], answer: int | None) -> str:
    said = [
        f"position {position + 1} "
        + ("is not learned yet" if step is None else f"is learned by step {step:,}")
        for position, step in enumerate(learned)
        if position >= (answer or 0)
    ]
    return ", ".join(said)
