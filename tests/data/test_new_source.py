"""A new source of data is one row: a toy of digit sums is trained on, sampled from and opened again without its data."""

import json

import numpy as np
import pytest
from conftest import TINY, load_config

from crate_jax import InputError, sample
from crate_jax.data import sources
from crate_jax.data.dataset import DatasetInfo, Tokens
from crate_jax.train import train
from crate_jax.training.opening import open_run

SYMBOLS = "0123456789+="
TOKENS = Tokens(len(SYMBOLS), "symbol", "sums", length=6, symbols=SYMBOLS)


class Sums:
    """a+b=cc for all pairs of digits; every tenth pair is for testing."""

    def __init__(self):
        self.splits = {"train": 90, "test": 10}

    def info(self, name):
        return DatasetInfo(name, num_examples=dict(self.splits), tokens=TOKENS)

    def load(self, split):
        pairs = [pair for pair in range(100) if (pair % 10 == 7) == (split == "test")]
        sums = [f"{pair // 10}+{pair % 10}={sum(divmod(pair, 10)):02d}" for pair in pairs]
        return [{"tokens": TOKENS.encode(text).astype(np.uint8)} for text in sums]

    def cut(self, length):
        return self


def config(**changes):
    changes = {
        **TINY,
        "data.name": "sums",
        "total_steps": 2,
        "checkpoint_steps": 2,
        "eval_steps": 2,
        **changes,
    }
    return load_config(changes, "configs/text.py"), set(changes)


def test_a_source_is_one_row(monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patched:
        patched.setitem(sources.SOURCES, "sums", sources.Kind(lambda rest, place: Sums(), ""))
        run, overrides = config(**{"data.test_split": "test"})
        values = train(run, tmp_path / "run", overrides, sections="code_length")
        assert values["eval/count"] == 10 and 0 < values["eval/bits_per_symbol"] < 2 * np.log2(12)
        with pytest.raises(InputError, match=r"model.vocab_size: found 256; accepted: 12, that of sums"):
            train(*_with_path(config(**{"model.vocab_size": 256}), tmp_path / "other"))
    # From here on nobody knows what "sums" is.
    assert json.loads((tmp_path / "run" / "dataset.json").read_text())["tokens"]["symbols"] == SYMBOLS
    opened = open_run(tmp_path / "run")
    assert opened.run.info.tokens == TOKENS and opened.run.config.model.num_positions == 6
    sample.main(
        [
            "sample",
            f"--workdir={tmp_path / 'run'}",
            "--num=3",
            "--prompt=1+2=",
            f"--output={tmp_path / 'out'}",
        ]
    )
    written = (tmp_path / "out").read_text().split()
    assert len(written) == 3 and all(len(text) == 6 and text.startswith("1+2=") for text in written)
    assert set("".join(written)) <= set(SYMBOLS)
    with pytest.raises(InputError, match="text: found 'x'; accepted: the characters 0123456789"):
        sample.main(["sample", f"--workdir={tmp_path / 'run'}", "--prompt=x"])
    assert "3 × 6 symbols" in capsys.readouterr().out


def _with_path(made, path):
    run, overrides = made
    return run, path, overrides


def test_names_need_what_their_kind_needs():
    for name in ("sums", "stdlib:x", "text", "tfds:"):
        with pytest.raises(
            InputError, match=f"unknown dataset '{name}'; accepted: digits, tfds:NAME, folder:PATH"
        ):
            sources.open_dataset(name)
