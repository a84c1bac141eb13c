"""What predicts the next symbol of a code: integer frequencies from a model, in either of two numerics.

`Float` runs a model as it is. The last bits of its probabilities depend on the machine, the versions and the shape of the
batch, so its code decodes only where all of these are the same. `portable.Portable` has integers only.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from crate_jax import models
from crate_jax.compression.integers import complete
from crate_jax.compression.rans import TOTAL


class Predictor(Protocol):
    """What the codec asks of a model.

    Attributes:
      numerics: "float" or "portable".
      environment: what must be the same where the code is decoded; "" for nothing.
      vocab_size: number of different symbols. num_positions: length of its window.
      context: how many of the window's symbols are those before, by default.
      params: arrays, passed to `decoder`.
      digest: SHA-256 of the model.
    """

    numerics: str
    environment: str
    vocab_size: int
    num_positions: int
    context: int
    params: Any
    digest: bytes

    def init_cache(self, batch_size: int) -> Any:
        """An empty cache for the whole window."""
        ...

    def decoder(self, params: Any) -> Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]:
        """`decode(previous int [b], cache, position) -> (sizes int32 [b, v], cache)`: the frequencies of the symbol at
        `position`, each at least 1, their sum exactly `rans.TOTAL`.
        """
        ...


class Float:
    """A model in the floating-point numbers it was trained in.

    Args:
      model: a causal token model.
      params: its parameters.
      context: see `Predictor`.
    """

    numerics = "float"

    def __init__(self, model: models.Model, params: models.Params, context: int):
        self._model, self.params, self.context = model, params, context
        self.vocab_size, self.num_positions = model.config.vocab_size, model.config.num_positions
        self.digest = _digest(model, params)
        self.environment = environment()

    def init_cache(self, batch_size: int) -> Any:
        """See `Predictor`."""
        return self._model.init_cache(batch_size)

    def decoder(self, params: models.Params) -> Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]:
        """See `Predictor`."""
        decode_logits = self._model.decoder(params)

        def decode(previous, cache, position):
            logits, cache = decode_logits(previous, cache, position)
            probabilities = jax.nn.softmax(logits, axis=-1)
            return complete(1 + (probabilities * TOTAL).astype(jnp.int32)), cache

        return decode


def environment() -> str:
    """What decides the last bits of a floating-point result here: versions, device, and of a CPU its threads, of another
    device its libraries.
    """
    device = jax.devices()[0]
    found = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "device": device.device_kind}
    if device.platform == "cpu":
        threads = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or str(os.cpu_count())
        found |= {"processor": _processor(), "threads": threads}
    else:
        found["runtime"] = " ".join(device.client.platform_version.split())
    return json.dumps(found, sort_keys=True)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _digest(model: models.Model, params: models.Params) -> bytes:
    """SHA-256 of the configuration and every parameter, by name."""
    found = hashlib.sha256(repr(model.resolved).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.digest()
