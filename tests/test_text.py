"""Models of text from start to end: train, report, sample; every mistake is one clear line."""

import json

import pytest
from conftest import TINY, load_config

from crate_jax import InputError, probe, sample
from crate_jax.train import train

TEXT = b"white boxes compress what they see. " * 60
SMALL = {**TINY, "model.num_positions": 16, "total_steps": 60, "optimizer.lr": 1e-2}


def config(folder, variant="gpt", **changes):
    (folder / "a.txt").write_bytes(TEXT)
    changes = {**SMALL, "data.name": f"text:{folder / 'a.txt'}", **changes}
    if variant.startswith("transformer"):
        del changes["model.head_dim"]
    return load_config(changes, "configs/text.py", variant), set(changes)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    run, overrides = config(folder)
    return folder / "run", train(run, folder / "run", overrides, sections="code_length")


def test_a_run_compresses_and_says_so(gpt):
    workdir, values = gpt
    report = json.loads((workdir / "report" / "code_length.json").read_text())["code_length"]
    assert set(report) == {"model", "order-0 entropy", "order-1 entropy", "zlib -9", "lzma -9e"}
    assert values["eval/bits_per_byte"] == pytest.approx(report["model"]["bits_per_byte"])
    assert values["eval/count"] == len(TEXT) // 10 // 16
    # One sentence, again and again.
    assert report["model"]["bits_per_byte"] < report["order-0 entropy"]["bits_per_byte"]


def test_text_is_written(gpt, tmp_path, capsys):
    workdir, _ = gpt
    options = [f"--workdir={workdir}", "--num=2", "--prompt=white", f"--output={tmp_path / 'out.txt'}"]
    sample.main(["sample", *options])
    written = (tmp_path / "out.txt").read_text()
    assert written.count("white") >= 2 and written.startswith("white")
    assert "2 × 16 bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_bert_reports_masked_bytes(tmp_path):
    run, overrides = config(
        tmp_path, "transformer_bert", **{"total_steps": 4, "checkpoint_steps": 4, "eval_steps": 4}
    )
    values = train(run, tmp_path / "run", overrides)
    report = json.loads((tmp_path / "run" / "report" / "masked_prediction.json").read_text())
    assert report["masked_prediction"]["model"]["bits_per_byte"] == pytest.approx(
        values["eval/bits_per_byte"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt=" + "x" * 16], "--prompt: found 16 bytes; accepted: fewer than the window of 16"),
        (["--mode=complete"], "--mode: found 'complete' for a model of text"),
    ],
)
def test_mistakes_when_sampling(gpt, options, message):
    with pytest.raises(InputError, match=message):
        sample.main(["sample", f"--workdir={gpt[0]}", *options])


def test_text_has_no_classes_to_probe(gpt):
    with pytest.raises(InputError, match="is text, which has no classes to probe"):
        probe.main(["probe", f"--workdir={gpt[0]}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.flip": True}, "data.flip: found True; accepted for text: False"),
        ({"model.vocab_size": 100}, "model.vocab_size: found 100; accepted: 256"),
        ({"model.num_positions": 4096}, "the train text of .* has 1,944 bytes; accepted: at least 4,096"),
        ({"task": "joint", "model.num_classes": 2}, "task: joint needs labels, which text has not"),
    ],
)
def test_mistakes(tmp_path, changes, message):
    run, overrides = config(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        train(run, tmp_path / "run", overrides)


def test_images_are_not_read_as_text(tmp_path):
    with pytest.raises(InputError, match=r"is text, which model.family 'crate' does not read"):
        train(load_config({**TINY, "data.name": "stdlib"}), tmp_path / "run")
