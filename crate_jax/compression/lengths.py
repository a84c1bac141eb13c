"""Code lengths: what a model's predictions cost as a code, what learning them cost, and what storing the model costs.

All lengths are in nats unless a name says bits or bytes; 1 bit is ln 2 nats. No bits are written here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class CodeLength:
    """The length of a code for some data, in every unit that is in use.

    Attributes:
      nats: the length, Σ −ln p.
      tokens: the predictions that it took: pixels, channels, bytes or symbols, which are the data's dimensions.
      raw_bytes: what the data take as they are stored.
    """

    nats: float
    tokens: int
    raw_bytes: float

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def bytes(self) -> float:
        return self.bits / 8

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_dim(self) -> float:
        """Bits per token; of a palette's tokens no length of the images themselves."""
        return self.bits / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.raw_bytes

    @property
    def ratio(self) -> float:
        """Compressed size over raw size: below 1 is shorter."""
        return self.bytes / self.raw_bytes

    def as_dict(self) -> dict[str, float]:
        """All units by name."""
        units = ("nats", "bits", "bytes", "nats_per_token", "bits_per_dim", "bits_per_byte", "ratio")
        return {"tokens": self.tokens, **{unit: getattr(self, unit) for unit in units}}


@dataclasses.dataclass(frozen=True)
class Prequential:
    """The prequential length of data: each part is coded by a model that has learned from the parts before it.

    L = Σ_i n_i ℓ_i, with ℓ_i the loss on part i before the model is updated on it. A receiver that trains the same model
    on what it has decoded can follow, so no parameter is sent: the length counts what the model learned, too. It is split
    in two,

        L = n ℓ_end + Σ_i n_i (ℓ_i − ℓ_end),

    the entropy that is left under the trained model, and the area between the learning curve and that level: what was
    learned. This is how arXiv 2601.03220 estimates what it calls epiplexity, the information that an observer of bounded
    means extracts; it is our reading of a shortened text of that paper.

    Attributes:
      tokens: n_i, in the order of coding.
      nats_per_token: ℓ_i.
      end: ℓ_end, nats per token of the trained model on data that it was not trained on.
    """

    tokens: Sequence[int]
    nats_per_token: Sequence[float]
    end: float

    @property
    def nats(self) -> float:
        """L."""
        return float(np.dot(np.asarray(self.tokens, np.float64), np.asarray(self.nats_per_token, np.float64)))

    @property
    def entropy(self) -> float:
        """n ℓ_end."""
        return sum(self.tokens) * self.end

    @property
    def learned(self) -> float:
        """The area above; negative where the model ends worse on new data than it was on the way."""
        return self.nats - self.entropy


class TwoPart(NamedTuple):
    """The two-part length of data: the parameters, then the data under them.

    Attributes:
      bits: of a parameter in the code of `quantise`.
      parameters: length of the parameters, in nats.
      data: length of the data under the parameters as they come out of their code, in nats.
    """

    bits: int
    parameters: float
    data: float

    @property
    def nats(self) -> float:
        """The sum."""
        return self.parameters + self.data


def quantise(params: Mapping, bits: int) -> tuple[dict, float]:
    """Parameters in a code of so many bits each, and the length of that code in nats.

    Of each row w (along the last axis) the code has one float32 scale s = max|w| / (2^(bits − 1) − 1) and the whole numbers
    round(w/s), of `bits` bits each. With 32 bits the parameters are stored as float32, as they are, and there are no scales.
    Names, shapes and the number of bits are known to both sides and cost nothing.

    Args:
      params: nested dicts of arrays.
      bits: from 2 to 16, or 32.
    Returns:
      the parameters that come out of the code, and its length in nats.
    """
    coded, length = {}, 0.0
    for name, value in params.items():
        if isinstance(value, Mapping):
            coded[name], nats = quantise(value, bits)
            length += nats
            continue
        value = np.asarray(value, np.float32)
        scales = 0
        if bits < 32:
            largest = np.max(np.abs(value), axis=-1, keepdims=True) if value.ndim else np.abs(value)
            scale = np.where(largest > 0, largest, 1) / (2 ** (bits - 1) - 1)
            scales, value = scale.size, (np.rint(value / scale) * scale).astype(np.float32)
        coded[name] = value
        length += (bits * value.size + 32 * scales) * math.log(2)
    return coded, length
