"""Released checkpoints to our parameters and back, as readable tables.

`load(source, family, heads=…)` takes a mapping of arrays or a file (.npz, .safetensors, .pth) and returns
`(model_config, params)`; `export(params, family)` returns the mapping under the released names.
"""

from crate_jax.weights.convert import FAMILIES, export, load

__all__ = ["FAMILIES", "export", "load"]
