"""The test loss of a masked token beside the entropies of a token."""

import math

from crate_jax import models
from crate_jax.compression import baselines
from crate_jax.reports.base import SectionResult, TrainedRun
from crate_jax.reports.code_length import compare, describe, reported_tokens


def make(trained: TrainedRun) -> SectionResult | None:
    """How well masked tokens are predicted; nothing for a model that predicts none."""
    run, evaluated = trained.run, trained.last_evaluation
    model = run.config.model
    if not (isinstance(model, models.TokenConfig) and not model.causal and evaluated):
        return None
    source = trained.test_source()
    _, tokens = reported_tokens(run.task, source)
    bits = {
        "model": evaluated["eval/loss"] * tokens.size / math.log(2),
        "order-0 entropy": baselines.order0_bits(tokens),
        "order-1 entropy": baselines.order1_bits(tokens),
    }
    unit = run.meaning.unit
    lengths, table = compare(
        f"a masked {unit} of {describe(tokens, source, 'examples')}", bits, tokens.size, unit
    )
    for length in lengths.values():
        del length["bytes"]  # Tokens that are predicted from each other are no code.
    columns = [i for i, name in enumerate(table.columns) if name != "bytes"]
    table = table._replace(
        columns=[table.columns[i] for i in columns], rows=[[row[i] for i in columns] for row in table.rows]
    )
    return SectionResult(
        title="Masked prediction",
        text=f"The model's loss on masked tokens at step {evaluated['step']:,}, and the entropies of the test tokens under "
        "their own frequencies, without context and given the token before. Masked prediction is not a code.",
        values={"examples": len(tokens), "tokens": tokens.size, "masked_prediction": lengths},
        tables=[table],
    )
