"""Random policies: each operation does what its name says."""

import numpy as np
import pytest
from PIL import Image

from crate_jax.data import policies

IMAGE = np.random.default_rng(0).integers(256, size=(24, 24, 3), dtype=np.uint8)


def apply(name: str, amount: float, image: np.ndarray = IMAGE) -> np.ndarray:
    return np.asarray(policies._OPERATIONS[name][0](Image.fromarray(image), amount))


def test_magnitude_zero_changes_nothing():
    for name in policies._OPERATIONS:
        if name not in ("autocontrast", "equalize"):  # they have no magnitude
            np.testing.assert_array_equal(apply(name, 0), IMAGE)


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("translate_x", 3, np.pad(IMAGE[:, 3:], ((0, 0), (0, 3), (0, 0)))),
        ("translate_y", -2, np.pad(IMAGE[:-2], ((2, 0), (0, 0), (0, 0)))),
        ("rotate", 90, np.rot90(IMAGE)),
        ("posterize", 4, IMAGE & 0xF0),
        ("solarize", 256, 255 - IMAGE),
        ("solarize", 128, np.where(IMAGE < 128, IMAGE, 255 - IMAGE)),
        ("brightness", -1, np.zeros_like(IMAGE)),
    ],
)
def test_operations_in_closed_form(name, amount, expected):
    np.testing.assert_array_equal(apply(name, amount), expected)


def test_contrast_and_colour_end_in_grey():
    assert np.ptp(apply("contrast", -1)) == 0
    grey = apply("color", -1)
    assert (grey == grey[..., :1]).all() and np.ptp(grey) > 0


def test_every_operation_is_drawn_and_signs_differ(monkeypatch):
    drawn = []
    spy = {
        name: (lambda image, amount, name=name: drawn.append((name, amount)) or image, *rest)
        for name, (_, *rest) in policies._OPERATIONS.items()
    }
    monkeypatch.setattr(policies, "_OPERATIONS", spy)
    for seed in range(400):
        policies.randaugment(IMAGE, np.random.default_rng(seed), 2, 15)
    assert len(drawn) == 800 and {name for name, _ in drawn} == set(spy)
    assert {amount for name, amount in drawn if name == "rotate"} == {15.0, -15.0}
    assert {amount for name, amount in drawn if name == "solarize"} == {128.0}
    moved = {abs(amount) for name, amount in drawn if name == "translate_x"}
    assert len(moved) == 1 and moved.pop() == pytest.approx(24 * 150 / 331 / 2)
    drawn.clear()
    for seed in range(400):
        policies.trivial_augment(IMAGE, np.random.default_rng(seed))
    assert len(drawn) == 400 and {name for name, _ in drawn} == set(spy)
    assert max(abs(amount) for name, amount in drawn if name == "rotate") > 90


def test_timms_operations_are_done_half_the_time_and_vary_in_strength(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        policies, "_timm_operation", lambda image, name, level, sign, _: drawn.append((name, level)) or image
    )
    for seed in range(2000):
        policies.randaugment_timm(IMAGE, np.random.default_rng(seed), 2, 9)
    assert abs(len(drawn) - 2000) < 150 and {name for name, _ in drawn} == set(policies._TIMM_OPERATIONS)
    levels = np.array([level for _, level in drawn])
    assert abs(levels.mean() - 0.9) < 0.01 and abs(levels.std() - 0.05) < 0.005 and levels.max() == 1


def test_three_augment_takes_each_third():
    kinds = [0, 0, 0]
    for seed in range(300):
        image = policies.three_augment(IMAGE, np.random.default_rng(seed)).astype(int)
        grey = (image == image[..., :1]).all()
        solarised = (image == np.where(IMAGE < 128, IMAGE, 255 - IMAGE)).all()
        kinds[0 if grey else 1 if solarised else 2] += 1
    assert min(kinds) > 70


def test_jitter_stays_near_and_moves():
    jittered = np.stack(
        [
            policies.color_jitter(np.full((4, 4, 3), 100, np.uint8), np.random.default_rng(s), 0.3)
            for s in range(99)
        ]
    )
    assert 65 <= jittered.min() < 80 and 120 < jittered.max() <= 135
