"""White-box transformers (CRATE) and next-pixel compressors (iGPT) in JAX/Flax.

A file directly in this package is a command (``python -m crate_jax`` lists them); a folder is a library.
``crate_jax.objectives`` needs jax and nothing else.
"""

__version__ = "0.1.0"


class InputError(ValueError):
    """Bad input from a user: a path, a name, a shape, a file. Commands print it as one line and exit with 2."""
