"""Training and test loss by step."""

from crate_jax.analysis import figures
from crate_jax.reports.base import Figure, SectionResult, TrainedRun


def make(trained: TrainedRun) -> SectionResult | None:
    """The curves of `metrics.jsonl`."""
    logged = [line for line in trained.lines if "train/loss" in line]
    if not logged:
        return None
    first, last = logged[0], logged[-1]
    alt = (
        f"Loss by training step: the training loss goes from {first['train/loss']:.4g} at step {first['step']:,} to "
        f"{last['train/loss']:.4g} at step {last['step']:,}"
    )
    tested = trained.last_evaluation
    alt += f"; the test loss at step {tested['step']:,} is {tested['eval/loss']:.4g}." if tested else "."
    return SectionResult(
        title="Training",
        text="The training loss, averaged over the steps between two logs and with whatever regularisation and augmentation "
        "the run uses, and the loss on the whole test split, by training step.",
        figures=[Figure("loss.svg", figures.losses(trained.lines, title=trained.title), alt)],
    )
