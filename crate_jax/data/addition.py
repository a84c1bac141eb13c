"""Sums, a + b = c, made exactly and never stored: data whose entropy is known.

A sequence is ``a+b=c$``: a and b have d digits, c has d + 1 with a zero in front where it needs one, and ``$`` is the end.
All sequences have 3d + 4 symbols. a and b are uniform and independent, so their digits are all there is to say: ``+``,
``=``, ``$`` and every digit of the sum follow from the symbols before them and have entropy 0. No model's mean loss is
below `floor`, and that of a model that adds need not be above it.

Pairs come in the order of a fixed pseudo-random permutation of all pairs. The first `held_out` of them are the test split.
The others are the training split, without the pairs (b, a) of a test pair (a, b), and no more than 2³¹ of them: with 8
digits there are 8·10¹⁵.
"""

import bisect
import dataclasses
import hashlib
import math
import typing
from functools import cached_property

import numpy as np

from crate_jax import InputError, settings
from crate_jax.data.dataset import DatasetInfo, Source, Tokens
from crate_jax.settings import setting

# Digits of bases up to 36, then what else there is. No sequence holds "^": it is the start symbol of a demonstration
# (github.com/yulundu/compression), kept for the same 14 symbols in base 10. Our models have a start token of their own.
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
OTHERS = "^$+="
# Grain permutes indices below 2³².
_MOST = 2**31
# Of the Feistel network that permutes pairs.
ROUNDS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditionConfig:
    """Which sums; written after the colon of ``addition:``, as in ``addition:digits=3,reversed=true``."""

    digits: int = setting(3, "Digits of a and of b.", least=1, most=64)
    base: int = setting(10, "Base of the digits.", least=2, most=len(DIGITS))
    leading_zero: bool = setting(False, "Whether a and b may begin with a zero.")
    reversed: bool = setting(False, "Write the sum with its last digit first.")
    held_out: int = setting(10_000, "Pairs held out for testing; never more than a tenth of all.", least=1)

    @classmethod
    def parse(cls, text: str) -> "AdditionConfig":
        """From ``KEY=VALUE,KEY=VALUE``.

        Raises:
          InputError: an unknown key, or a value that is not accepted.
        """
        hints, known = typing.get_type_hints(cls), settings.settings_of(cls)
        given: dict[str, typing.Any] = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            if key not in known:
                raise settings.unknown("data.name: addition: unknown option", key, known)
            name = f"data.name: addition: {key}"
            if hints[key] is bool:
                settings.one_of(name, value, ("true", "false"))
                given[key] = value == "true"
            else:
                given[key] = settings.convert(name, value, hints[key], known[key])
        config = cls(**given)
        settings.check(config, "data.name: addition: ")
        return config

    @property
    def least(self) -> int:
        """The smallest value of a, and of b."""
        return 0 if self.leading_zero else self.base ** (self.digits - 1)

    @property
    def count(self) -> int:
        """The number of values of a, and of b."""
        return self.base**self.digits - self.least

    @property
    def floor(self) -> tuple[float, ...]:
        """Entropy in nats of each symbol, given those before it; the sum is 2·ln(number of values of a)."""
        first = self.base - (not self.leading_zero)
        number = [math.log(first), *[math.log(self.base)] * (self.digits - 1)]
        return (*number, 0.0, *number, *[0.0] * (self.digits + 3))

    @property
    def tokens(self) -> Tokens:
        """What a sequence is made of."""
        return Tokens(
            self.base + len(OTHERS),
            "symbol",
            "sums",
            length=3 * self.digits + 4,
            symbols=DIGITS[: self.base] + OTHERS,
            floor=self.floor,
            answer=2 * self.digits + 2,
        )


class Addition:
    """All sums of a configuration, none of them stored."""

    def __init__(self, options: str):
        self._config = AdditionConfig.parse(options)
        total = self._config.count**2
        if total < 10:
            raise InputError(
                f"data.name: addition: {options} has {total} sums; accepted: at least 10, to hold a tenth out"
            )
        self._pairs = Pairs(self._config.count, min(self._config.held_out, total // 10))
        self.splits = {"train": min(self._pairs.num_train, _MOST), "test": self._pairs.held_out}

    def info(self, name: str) -> DatasetInfo:
        return DatasetInfo(name, num_examples=dict(self.splits), tokens=self._config.tokens)

    def load(self, split: str) -> Source:
        return _Sums(self._config, self._pairs, split, self.splits[split])

    def cut(self, length: int) -> "Addition":
        del length  # Sums have a length of their own.
        return self


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of 0 … count − 1 in pseudo-random order, those for testing and those for training apart."""

    count: int
    held_out: int

    @cached_property
    def order(self) -> "Permutation":
        return Permutation(self.count**2)

    @cached_property
    def _mirrors(self) -> list[int]:
        """Places of the pairs that are test pairs with a and b exchanged, but are none themselves; sorted."""
        mirrored = (divmod(self.order(place), self.count) for place in range(self.held_out))
        places = {self.order.inverse(b * self.count + a) for a, b in mirrored}
        return sorted(place for place in places if place >= self.held_out)

    @cached_property
    def _skips(self) -> list[int]:
        """Place of each mirror less the number of mirrors before it: from there on it is skipped."""
        return [place - i for i, place in enumerate(self._mirrors)]

    @property
    def num_train(self) -> int:
        """Pairs that are no test pair either way round."""
        return self.count**2 - self.held_out - len(self._mirrors)

    def test(self, index: int) -> tuple[int, int]:
        """Test pair `index`."""
        return divmod(self.order(index), self.count)

    def train(self, index: int) -> tuple[int, int]:
        """Training pair `index`: the places after the test pairs, mirrors skipped."""
        place = self.held_out + index
        return divmod(self.order(place + bisect.bisect_right(self._skips, place)), self.count)


class Permutation:
    """A pseudo-random permutation of 0 … count − 1 that stores nothing, for counts of any size.

    A Feistel network permutes the numbers of an even number of bits; a result that is too large is permuted
    again until it is not (cycle walking).
    """

    def __init__(self, count: int):
        self._count = count
        self._half = -(-max(2, (count - 1).bit_length()) // 2)
        self._mask = (1 << self._half) - 1

    def __call__(self, x: int) -> int:
        """Where `x` goes."""
        while True:
            left, right = x >> self._half, x & self._mask
            for key in range(ROUNDS):
                left, right = right, left ^ self._mixed(right, key)
            x = left << self._half | right
            if x < self._count:
                return x

    def inverse(self, x: int) -> int:
        """What goes to `x`."""
        while True:
            left, right = x >> self._half, x & self._mask
            for key in reversed(range(ROUNDS)):
                left, right = right ^ self._mixed(left, key), left
            x = left << self._half | right
            if x < self._count:
                return x

    def _mixed(self, x: int, key: int) -> int:
        """Some bits that depend on all of `x` and on the round."""
        size = -(-self._half // 8)
        mixed = hashlib.blake2b(x.to_bytes(size, "little"), digest_size=size, key=bytes([key]))
        return int.from_bytes(mixed.digest(), "little") & self._mask


@dataclasses.dataclass(frozen=True)
class _Sums:
    config: AdditionConfig
    pairs: Pairs
    split: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        a, b = self.pairs.test(index) if self.split == "test" else self.pairs.train(index)
        least = self.config.least
        return {"tokens": sequence(self.config, a + least, b + least)}


def sequence(config: AdditionConfig, a: int, b: int) -> np.ndarray:
    """The tokens of a + b = c, uint8 `[3 · digits + 4]`."""
    base, digits = config.base, config.digits
    end, plus, equals = base + 1, base + 2, base + 3
    total = _digits(a + b, base, digits + 1)
    answer = total if config.reversed else total[::-1]
    symbols = [*_digits(a, base, digits)[::-1], plus, *_digits(b, base, digits)[::-1], equals, *answer, end]
    return np.array(symbols, np.uint8)


def _digits(number: int, base: int, count: int) -> list[int]:
    """The last `count` digits, the last one first."""
    out = []
    for _ in range(count):
        number, digit = divmod(number, base)
        out.append(digit)
    return out
