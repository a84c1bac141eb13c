"""Sums are right, uniform, of known entropy, and never both trained on and tested on."""

import collections
import dataclasses
import json
import math

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import sources
from crate_jax.data.addition import AdditionConfig, Permutation
from crate_jax.data.dataset import DatasetInfo


def sums(options: str, split: str) -> list[str]:
    dataset = sources.open_dataset(f"addition:{options}")
    tokens, source = dataset.info("sums").tokens, dataset.load(split)
    return [tokens.decode(source[i]["tokens"]) for i in range(min(len(source), 2000))]


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ("digits=3", 10),
        ("digits=8,leading_zero=true", 10),
        ("digits=4,base=2", 2),
        ("digits=20,base=36", 36),
        ("digits=5,base=16,reversed=true", 16),
    ],
)
def test_every_sum_is_right(options, base):
    config = AdditionConfig.parse(options)
    for text in sums(options, "train") + sums(options, "test"):
        a, rest = text.removesuffix("$").split("+")
        b, c = rest.split("=")
        assert len(a) == len(b) == len(c) - 1 == config.digits
        c = c[::-1] if config.reversed else c
        assert int(a, base) + int(b, base) == int(c, base)
        assert config.leading_zero or (a[0] != "0" and b[0] != "0")


@pytest.mark.parametrize("options", ["digits=2", "digits=2,leading_zero=true,held_out=77", "digits=3,base=3"])
def test_each_pair_is_once_in_one_split_and_its_mirror_with_it(options):
    config = AdditionConfig.parse(options)
    dataset = sources.open_dataset(f"addition:{options}")
    test, train = ([tuple(e["tokens"]) for e in _all(dataset.load(split))] for split in ("test", "train"))
    assert len(test) == dataset.splits["test"] and len(train) == dataset.splits["train"]
    assert len(set(test) | set(train)) == len(test) + len(train)
    d = config.digits

    def pair(tokens):
        return tokens[:d], tokens[d + 1 : 2 * d + 1]

    held_out = {pair(tokens) for tokens in test}
    mirrors = {(b, a) for a, b in held_out}
    trained = {pair(tokens) for tokens in train}
    assert not trained & (held_out | mirrors)
    # All that is left is there.
    assert len(trained | held_out | mirrors) == config.count**2


def _all(source):
    return [source[i] for i in range(len(source))]


def test_the_floor_is_the_entropy_of_the_generator():
    """By counting all sums of two digits of base 4: H of each symbol given those before it."""
    config = AdditionConfig.parse("digits=2,base=4")
    dataset = sources.open_dataset("addition:digits=2,base=4")
    texts = [tuple(e["tokens"]) for split in ("train", "test") for e in _all(dataset.load(split))]
    # The mirrors of test pairs are in neither split.
    texts += [(*t[3:5], t[2], *t[:2], *t[5:]) for t in texts]
    texts = sorted(set(texts))
    assert len(texts) == 12**2
    for position, floor in enumerate(config.floor):
        before = collections.Counter(text[:position] for text in texts)
        with_it = collections.Counter(text[: position + 1] for text in texts)
        entropy = sum(
            count / len(texts) * math.log(before[prefix[:-1]] / count) for prefix, count in with_it.items()
        )
        assert floor == pytest.approx(entropy, abs=1e-12)


def test_the_floors_of_the_eight_digit_demonstration():
    plain, zeros = AdditionConfig(digits=8), AdditionConfig(digits=8, leading_zero=True)
    assert plain.tokens.length == 28 and plain.tokens.vocab_size == 14
    assert sum(plain.floor) / 28 == pytest.approx(2 * math.log(9e7) / 28)
    assert sum(zeros.floor) / 28 == pytest.approx(16 * math.log(10) / 28)
    assert sum(plain.floor[plain.tokens.answer :]) == 0
    assert len(sources.open_dataset("addition:digits=8").load("train")) == 2**31


@pytest.mark.parametrize("count", [1, 2, 10, 64, 81, 1000])
def test_a_permutation_and_its_inverse(count):
    order = Permutation(count)
    assert sorted(map(order, range(count))) == list(range(count))
    assert [order.inverse(order(x)) for x in range(count)] == list(range(count))


def test_a_permutation_of_more_than_64_bits():
    order = Permutation(36**128)
    places = [order(x) for x in (0, 1, 36**127)]
    assert [order.inverse(place) for place in places] == [0, 1, 36**127] and len(set(places)) == 3


def test_the_order_looks_random():
    """Means and correlation of the first 4,000 pairs within four standard errors."""
    dataset = sources.open_dataset("addition:digits=3")
    tokens = np.array([dataset.load("test")[i]["tokens"] for i in range(4000)], int)
    a, b = tokens[:, :3] @ [100, 10, 1], tokens[:, 4:7] @ [100, 10, 1]
    error = 900 / math.sqrt(12 * 4000)
    assert abs(a.mean() - 549.5) < 4 * error and abs(b.mean() - 549.5) < 4 * error
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(4000)


def test_what_is_known_of_the_tokens_survives_a_file():
    info = sources.open_dataset("addition:digits=2").info("addition:digits=2")
    values = json.loads(json.dumps(dataclasses.asdict(info)))
    assert DatasetInfo.from_json(values, None) == info


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("digits=0", r"addition: digits: found 0; accepted: a whole number from 1 to 64"),
        ("digits=two", r"addition: digits: found 'two'; accepted: a whole number"),
        ("reversed=yes", r"addition: reversed: found 'yes'; accepted: true, false"),
        ("digit=3", r"unknown option digit; did you mean digits"),
        ("digits=1,base=3", r"has 4 sums; accepted: at least 10"),
        ("base=37", r"addition: base: found 37; accepted: a whole number from 2 to 36"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(InputError, match=message):
        sources.open_dataset(f"addition:{options}")
