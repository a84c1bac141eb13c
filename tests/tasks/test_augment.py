"""Augmentation on the device, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.tasks import augment

KEY = jax.random.key(0)
# Image i is filled with i, its target is class i.
IMAGES = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 10, 12, 3))
TARGETS = jnp.eye(4)


def test_normalise():
    images = np.random.default_rng(0).integers(256, size=(2, 4, 4, 3), dtype=np.uint8)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.1])
    ours = augment.normalise(jnp.asarray(images), 255, jnp.asarray(mean), jnp.asarray(std))
    np.testing.assert_allclose(ours, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mix", [augment.mixup, augment.cutmix])
def test_targets_are_the_shares_of_the_pixels(mix):
    """The mean of image i is that of the classes' numbers under its target."""
    shares = []
    for seed in range(20):
        images, targets = jax.jit(mix, static_argnums=3)(jax.random.key(seed), IMAGES, TARGETS, 1.0)
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(images.mean((1, 2, 3)), targets @ jnp.arange(4.0), rtol=1e-5, atol=1e-6)
        # Only the neighbour is mixed in.
        assert targets[2, 0] == targets[2, 3] == 0
        shares.append(float(targets[2, 2]))
    assert min(shares) < 0.3 and max(shares) > 0.7


def test_cutmix_takes_whole_pixels():
    images, _ = augment.cutmix(KEY, IMAGES, TARGETS, 1.0)
    assert set(np.unique(images[2]).tolist()) <= {1.0, 2.0}


def test_mix_is_off_by_default_and_takes_either():
    images, targets = augment.mix(KEY, IMAGES, TARGETS, mixup_alpha=0.0, cutmix_alpha=0.0)
    assert images is IMAGES and targets is TARGETS
    mix = jax.jit(lambda key: augment.mix(key, IMAGES, TARGETS, mixup_alpha=0.8, cutmix_alpha=1.0)[0])
    blended = [len(np.unique(mix(jax.random.key(seed))[2])) == 1 for seed in range(40)]
    assert 8 < sum(blended) < 32  # mixup blends all pixels alike


def test_erased_boxes():
    images = jnp.full((400, 16, 16, 1), 7.0)
    erased = np.asarray(jax.jit(augment.random_erase, static_argnums=2)(KEY, images, 0.25)) != 7.0
    share = erased.mean((1, 2, 3))
    assert 60 < (share > 0).sum() < 140
    assert share.max() < 0.45
    rows, columns = np.nonzero(erased[share.argmax()][..., 0])
    box = erased[share.argmax()][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.all()  # a rectangle
    assert (np.asarray(augment.random_erase(KEY, images[:4], 0.0)) == 7.0).all()


def test_draws_depend_on_the_key_alone():
    for function in (
        lambda key: augment.mixup(key, IMAGES, TARGETS, 0.8)[0],
        lambda key: augment.random_erase(key, IMAGES, 1.0),
    ):
        first, again, other = (function(jax.random.key(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
