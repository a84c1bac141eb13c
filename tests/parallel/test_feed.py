"""The thread that sends batches to the devices."""

import threading

import jax
import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.parallel.feed import AHEAD, Feed
from crate_jax.parallel.sharding import MeshConfig, make_mesh


class Numbers:
    """Batches 0, 1, 2, …; one of them cannot be read."""

    def __init__(self, stop: int, broken: int | None = None):
        self.made, self.stop, self.broken, self.closed = 0, stop, broken, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.made == self.stop:
            raise StopIteration
        if self.made == self.broken:
            raise InputError("image 3: unreadable image")
        self.made += 1
        return {"index": np.full(2, self.made - 1)}

    def close(self):
        self.closed = True


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def test_batches_arrive_in_order_and_on_the_device(mesh):
    feed = Feed(Numbers(20), mesh)
    seen = [batch["index"] for batch in feed]
    assert all(isinstance(index, jax.Array) for index in seen)
    assert [int(index[0]) for index in seen] == list(range(20))
    assert feed.waited > 0
    feed.close()


def test_no_more_than_a_few_are_made_ahead_and_closing_ends_the_thread(mesh):
    numbers = Numbers(1000)
    feed = Feed(numbers, mesh)
    next(feed)
    feed.close()
    assert numbers.closed and numbers.made <= AHEAD + 2
    assert "feed" not in [thread.name for thread in threading.enumerate()]


def test_what_cannot_be_read_is_raised_in_its_place(mesh):
    feed = Feed(Numbers(9, broken=3), mesh)
    assert [int(next(feed)["index"][0]) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(InputError, match="image 3"):
            next(feed)
    feed.close()
