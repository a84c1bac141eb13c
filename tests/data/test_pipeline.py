"""Batches: a pure function of (seed, step), the same for any number of processes and threads."""

import itertools
import pickle
import threading

import numpy as np
import pytest

from crate_jax import InputError
from crate_jax.data import Augment, evaluation, train


class Numbered:
    """Image i is filled with i + 1 and labelled i modulo 10; ``broken`` examples cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()):
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if index in self.broken:
            raise InputError(f"image {index}: unreadable image")
        return {"image": np.full((4, 4, 1), index + 1, np.uint8), "label": np.int32(index % 10)}


def assert_equal(first: dict, second: dict):
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
        assert value.dtype == second[key].dtype


def joined(parts: list[dict]) -> dict:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def test_batch_has_the_contracted_shapes():
    batch = train(Numbered(20), batch_size=6, seed=0).batch(0)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((6, 4, 4, 1), np.uint8),
        "label": ((6,), np.int32),
        "index": ((6,), np.int64),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"] + 1)
    np.testing.assert_array_equal(batch["label"], batch["index"] % 10)


def test_an_example_has_the_shapes_of_a_batch():
    """And nothing beside it is read."""
    batches = train(Numbered(20), batch_size=6, seed=0)
    first = batches.batch(0)
    broken = tuple(int(i) for i in first["index"][1:])
    one = train(Numbered(20, broken), batch_size=6, seed=0).example()
    assert_equal(one, {name: values[:1] for name, values in first.items()})


def test_batch_is_pure():
    make = lambda: train(Numbered(50), batch_size=8, seed=3, augment=Augment(shift=1.0))  # noqa: E731
    batches, steps = make(), [5, 0, 117, 5, 10**6]
    first = [batches.batch(step) for step in steps]
    assert_equal(first[0], first[3])
    for step, batch in zip(reversed(steps), reversed(first), strict=True):  # another order, another instance
        assert_equal(make().batch(step), batch)


@pytest.mark.parametrize(("num_threads", "prefetch"), [(None, 2), (1, 1), (4, 9), (0, 2), (2, 0)])
@pytest.mark.parametrize("start", [0, 13])
def test_iterate_gives_the_same_as_batch(start, num_threads, prefetch):
    batches = train(
        Numbered(30),
        batch_size=8,
        seed=1,
        augment=Augment(shift=1.0, flip=True),
        num_threads=num_threads,
        prefetch=prefetch,
    )
    for step, batch in enumerate(itertools.islice(batches.iterate(start), 25), start):
        assert_equal(batch, batches.batch(step))


def test_iterators_are_independent():
    batches = train(Numbered(30), batch_size=8, seed=1)
    late, early = batches.iterate(9), batches.iterate(2)
    for step in range(4):
        assert_equal(next(late), batches.batch(9 + step))
        assert_equal(next(early), batches.batch(2 + step))


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_share_the_global_batch(process_count):
    options = {"batch_size": 8, "seed": 7, "augment": Augment(shift=1.0, flip=True)}
    whole = train(Numbered(27), **options)
    parts = [
        train(Numbered(27), **options, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for step in (0, 1, 3, 4, 50):
        assert_equal(joined([part.batch(step) for part in parts]), whole.batch(step))


@pytest.mark.parametrize(("count", "batch_size"), [(24, 8), (25, 8), (7, 20), (1, 3), (2, 1)])
def test_every_epoch_is_a_permutation(count, batch_size):
    batches = train(Numbered(count), batch_size=batch_size, seed=0)
    stream = np.concatenate([batches.batch(step)["index"] for step in range(-(-3 * count // batch_size))])
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    epochs = [
        train(Numbered(64), batch_size=64, seed=seed).batch(epoch)["index"]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    for first, second in itertools.combinations(epochs, 2):
        assert (first == second).mean() < 0.2  # 1/64 by chance


def test_first_places_are_uniform():
    """The shuffle has no favourites: over many seeds each example is equally often the first."""
    first = [train(Numbered(5), batch_size=1, seed=seed).batch(0)["index"][0] for seed in range(500)]
    assert np.bincount(first, minlength=5).min() > 65


def test_augmentation_differs_between_epochs_and_examples():
    class Same(Numbered):
        def __getitem__(self, index):
            image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
            return {"image": image, "label": np.int32(0)}

    batches = train(Same(6), batch_size=6, seed=0, augment=Augment(shift=2.0))
    images = np.concatenate([batches.batch(epoch)["image"] for epoch in range(4)])
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 24
    other_seed = train(Same(6), batch_size=6, seed=1, augment=Augment(shift=2.0)).batch(0)["image"]
    assert (other_seed != images[:6]).any()


def test_order_does_not_depend_on_augmentation():
    plain, augmented = (
        train(Numbered(40), batch_size=8, seed=5, augment=a) for a in (None, Augment(shift=1.0))
    )
    np.testing.assert_array_equal(plain.batch(3)["index"], augmented.batch(3)["index"])


def test_the_order_of_a_seed_is_fixed():
    """A checkpoint holds the step alone: another order would silently change what a resumed run sees."""
    order = train(Numbered(10), batch_size=10, seed=0).batch(0)["index"]
    assert order.tolist() == [5, 8, 9, 7, 4, 2, 1, 0, 3, 6]


@pytest.mark.parametrize("process_count", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 11, 12, 13, 25])
def test_evaluation_counts_every_example_once(count, process_count):
    parts = [
        evaluation(Numbered(count), batch_size=12, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    for _ in range(2):  # it can be iterated again
        batches = [list(part) for part in parts]
        assert {len(b) for b in batches} == {len(parts[0])} == {-(-count // 12)}
        whole = joined([joined(list(slices)) for slices in zip(*batches, strict=True)])
        assert whole["mask"].dtype == np.float32 and whole["image"].shape[1:] == (4, 4, 1)
        assert whole["mask"].sum() == count
        real = whole["mask"] == 1
        assert real[:count].all() and not real[count:].any()  # in order, the padding last
        np.testing.assert_array_equal(whole["index"][real], np.arange(count))
        np.testing.assert_array_equal(whole["image"][real][:, 0, 0, 0], np.arange(count) + 1)
        assert (whole["index"][~real] == -1).all()


def test_an_unreadable_image_stops_every_way_of_reading():
    source = Numbered(20, broken=(13,))
    batches = train(source, batch_size=4, seed=0)
    (step,) = (s for s in range(5) if 13 in train(Numbered(20), batch_size=4, seed=0).batch(s)["index"])
    for read in (
        lambda: batches.batch(step),
        lambda: list(itertools.islice(batches.iterate(0), 10)),
        lambda: list(evaluation(source, batch_size=4)),
    ):
        with pytest.raises(InputError) as error:
            read()
        assert str(error.value) == "image 13: unreadable image"


def test_batches_before_an_unreadable_image_arrive():
    iterator = iter(evaluation(Numbered(20, broken=(13,)), batch_size=4))
    assert [next(iterator)["index"][0] for _ in range(3)] == [0, 4, 8]
    with pytest.raises(InputError, match="image 13"):
        next(iterator)


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    iterator = train(Numbered(20), batch_size=4, seed=0, num_threads=3).iterate(0)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_batches_can_be_sent_to_another_process():
    batches = train(Numbered(20), batch_size=4, seed=0, augment=Augment(shift=1.0))
    assert_equal(pickle.loads(pickle.dumps(batches)).batch(3), batches.batch(3))


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(InputError, match=r"data\.threads is -1; accepted: 0 or more"):
        train(Numbered(20), batch_size=4, seed=0, num_threads=-1)


@pytest.mark.parametrize("make", [lambda **kw: train(seed=0, **kw), evaluation])
def test_batch_sizes_that_cannot_be_shared_are_refused(make):
    for batch_size, process_count in ((10, 4), (0, 1), (-8, 4)):
        with pytest.raises(
            InputError, match=rf"^batch size is {batch_size}; accepted: a positive multiple of"
        ):
            make(source=Numbered(20), batch_size=batch_size, process_count=process_count)
    with pytest.raises(InputError, match="the data source is empty"):
        make(source=Numbered(0), batch_size=4)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match=r"^seed is -1; accepted: 0 or more$"):
        train(Numbered(3), batch_size=1, seed=-1)
