"""Images as the values of their channels: windows of whole rows, for models of tokens."""

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import sources


@pytest.fixture
def images(tmp_path):
    """3 training and 2 test images of 4 by 4 pixels in colour: all values differ."""
    values = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    path = tmp_path / "images.npz"
    labels = np.array([0, 1, 0, 1, 0])
    np.savez(path, x_train=values[:3], y_train=labels[:3], x_test=values[3:], y_test=labels[3:])
    return f"pixels:npz:{path}", values


def test_windows_are_rows_one_after_the_other(images):
    name, values = images
    train, test = (sources.load(name, split, length=24) for split in ("train", "test"))
    rows = values.reshape(20, 12)
    # Training windows begin at any row, also in the last one of an image; test windows share none.
    assert len(train) == 11 and len(test) == 4
    for first in range(11):
        np.testing.assert_array_equal(train[first]["tokens"], rows[first : first + 2].reshape(-1))
    np.testing.assert_array_equal(
        np.concatenate([test[i]["tokens"] for i in range(4)]), values[3:].reshape(-1)
    )
    longest = sources.load(name, "train", length=96)
    np.testing.assert_array_equal(longest[2]["tokens"], rows[2:10].reshape(-1))


def test_what_it_says_of_itself(images):
    name, _ = images
    info = sources.inspect(name)
    assert info.kind == "pixels" and info.tokens.vocab_size == 256 and info.tokens.unit == "channel"
    assert info.num_examples == {"train": 144, "test": 96}
    assert info.cut(24).num_examples["test"] == 4
    assert sources.inspect("pixels:digits").tokens.vocab_size == 17


@pytest.mark.parametrize(
    ("length", "message"),
    [(20, "found 20; accepted: a multiple of 12, a row"), (108, "found 108; .* up to 96")],
)
def test_windows_of_no_whole_rows(images, length, message):
    with pytest.raises(InputError, match=f"model.num_positions: {message}"):
        sources.load(images[0], "train", length=length)


def test_only_images_have_pixels():
    with pytest.raises(InputError, match="addition:digits=2 is sums; accepted: pixels:NAME"):
        sources.open_dataset("pixels:addition:digits=2")
