"""Released checkpoints to our parameters and back, as readable tables.

`inspect(source)` says what a file or a mapping of arrays is, from names and shapes; `load(source)` returns
`(model_config, params)`; `export(params, family)` returns the mapping under the released names. `python -m
crate_jax.convert` makes a run's folder of a file, and a file of a run.
"""

from crate_jax.weights.convert import Released, export, inspect, load
from crate_jax.weights.families import FAMILIES

__all__ = ["FAMILIES", "Released", "export", "inspect", "load"]
