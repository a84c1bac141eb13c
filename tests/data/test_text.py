"""Text: files, folders, the held-out tenth, windows, and every way it can be wrong."""

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import pipeline, sources


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"text:{folder}"


def all_bytes(name, split, length):
    source = sources.load(name, split, length=length)
    return b"".join(source[i]["tokens"].tobytes() for i in range(len(source)))


def test_the_last_tenth_of_a_file_is_held_out(tmp_path):
    content = bytes(range(200))
    (tmp_path / "a.bin").write_bytes(content)
    name = f"text:{tmp_path / 'a.bin'}"
    info = sources.inspect(name)
    assert (info.kind, info.num_examples, info.num_classes) == ("text", {"train": 180, "test": 20}, 0)
    assert all_bytes(name, "test", 5) == content[180:]
    # Whole windows only.
    assert all_bytes(name, "test", 7) == content[180:194]
    train = sources.load(name, "train", length=7)
    assert len(train) == 174
    for start in (0, 1, 90, 173):
        assert train[start]["tokens"].tobytes() == content[start : start + 7]


def test_files_of_a_folder_stand_one_after_the_other(tmp_path):
    name = write(tmp_path, b=b"world", a__z=b"hello ", c=b"", d=b"!" * 89, **{".hidden": b"x"})
    whole = b"hello " + b"world" + b"!" * 89
    assert all_bytes(name, "test", 1) == whole[90:]
    train = sources.load(name, "train", length=20)
    assert train[0]["tokens"].tobytes() == whole[:20]
    assert train[4]["tokens"].tobytes() == whole[4:24]


def test_the_runs_own_folder_is_no_text(tmp_path):
    name = write(tmp_path, a=b"x" * 100, run__metrics=b"y" * 50)
    for given in (str(tmp_path / "run"), str(tmp_path / "run" / ".." / "run")):
        assert sources.inspect(name, exclude=given).num_examples == {"train": 90, "test": 10}
        assert len(sources.load(name, "train", length=10, exclude=given)) == 81
    name = write(tmp_path, train__a=b"abc", train__run__b=b"y", test__a=b"xyz")
    assert sources.inspect(name, exclude=str(tmp_path / "train" / "run")).num_examples == {
        "train": 3,
        "test": 3,
    }
    with pytest.raises(InputError, match="is the run's own directory too"):
        sources.inspect(name, exclude=str(tmp_path))


def test_a_folder_with_both_parts(tmp_path):
    name = write(tmp_path, train__a=b"abc", train__b=b"def", test__a=b"xyz")
    assert all_bytes(name, "test", 3) == b"xyz"
    assert sources.load(name, "train", length=6)[0]["tokens"].tobytes() == b"abcdef"


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    name = write(tmp_path, a=bytes(range(256)) * 4)
    source = sources.load(name, "train", length=16)
    one, two = (pipeline.train(source, batch_size=8, seed=3) for _ in range(2))
    batch = two.batch(5)
    np.testing.assert_array_equal(one.batch(5)["tokens"], batch["tokens"])
    assert batch["tokens"].shape == (8, 16) and batch["tokens"].dtype == np.uint8
    np.testing.assert_array_equal(batch["tokens"][:, 0], batch["index"] % 256)
    assert not np.array_equal(
        pipeline.train(source, batch_size=8, seed=4).batch(5)["tokens"], batch["tokens"]
    )
    (test,) = pipeline.evaluation(sources.load(name, "test", length=16), batch_size=8)
    np.testing.assert_array_equal(test["mask"], [1] * 6 + [0] * 2)


def test_pythons_own_library():
    info = sources.inspect("stdlib")
    assert info.num_examples["train"] > 2**21
    assert b"import" in all_bytes("stdlib", "test", 4096)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: f"text:{path}/none", "no file or folder .*none; accepted: text:PATH of one"),
        (lambda path: write(path, a=b""), "the train text of .* is empty"),
        (lambda path: write(path, a=b"123456789"), "the test text of .* is empty"),
        (lambda path: write(path, train__a=b"x", test__a=b""), "the test text of .* is empty"),
        (lambda path: write(path, a=b"x" * 100), "the test text of .* has 10 bytes; accepted: at least 11"),
    ],
)
def test_mistakes(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        sources.load(make(tmp_path), "test", length=11)
