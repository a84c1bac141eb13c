"""Self-distillation: the loss by hand, the teacher, the views, and models that it refuses."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax import InputError, models
from crate_jax.runs.config import Config, DataConfig, SimDINOConfig
from crate_jax.runs.config import steps as steps_
from crate_jax.tasks import make_task, views
from crate_jax.tasks.simdino import alignment, expansion
from crate_jax.tasks.tokenizer import ValueMeaning
from crate_jax.train import train
from crate_jax.training import steps
from crate_jax.training.optim import cosine_between
from crate_jax.training.starting import start_run

CONFIG = Config(
    model=models.CRATEConfig(
        image_size=8, patch_size=2, channels=1, num_classes=3, dim=8, depth=1, heads=2, head_dim=4
    ),
    task="simdino",
    ema_decay=0.9,
    simdino=SimDINOConfig(local_views=2, local_size=4),
)
PIXELS = ValueMeaning(max_value=16)
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).integers(0, 17, (4, 8, 8, 1)).astype(np.uint8)),
    "index": jnp.arange(4),
    "mask": jnp.array([1.0, 1.0, 1.0, 0.0]),
}


def unit(*shape):
    z = np.random.default_rng(1).normal(size=shape)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_alignment_by_hand():
    student, teacher = unit(4, 5, 3), unit(2, 5, 3)
    mask = np.array([1.0, 1, 0, 1, 1])
    pairs = [
        0.5 * np.sum((student[v, b] - teacher[t, b]) ** 2)
        for t in range(2)
        for v in range(4)
        for b in range(5)
        if t != v and mask[b]
    ]
    np.testing.assert_allclose(alignment(student, teacher, mask), np.mean(pairs), rtol=1e-5)


def test_expansion_by_hand():
    z, mask = unit(2, 6, 3), np.array([1.0, 1, 1, 1, 1, 0])
    rates = [0.5 * np.linalg.slogdet(np.eye(3) + 3 / (5 * 0.05) * view[:5].T @ view[:5])[1] for view in z]
    np.testing.assert_allclose(expansion(z, mask, 0.05), np.mean(rates) * (3 + 5) / (3 * 5), rtol=1e-5)


@pytest.mark.parametrize("count", [8, 5, 3])
def test_expansion_in_groups_by_hand(count):
    """As the released loss computes it on several devices: each device's own ZᵀZ over the number of all examples."""
    z, mask = unit(2, 8, 3), np.arange(8) < count
    parts = (z * mask[:, None]).reshape(2, 2, 4, 3)
    moments = np.eye(3) + 3 / (count * 0.05) * np.swapaxes(parts, -1, -2) @ parts
    expected = np.mean(np.linalg.slogdet(moments)[1] / 2) * (3 + count) / (3 * count)
    np.testing.assert_allclose(expansion(z, mask.astype(np.float32), 0.05, 2), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_teacher_sees_global_views_and_has_no_gradient():
    model = models.create(CONFIG.model)
    task = make_task(CONFIG, PIXELS)
    params, ema = (model.init(jax.random.key(seed)) for seed in (0, 1))
    shapes = []

    def teacher(images, **options):
        shapes.append(images.shape)
        return model.apply(ema, images, **options)

    def loss(params):
        return task.loss(
            lambda images, **options: model.apply(params, images, **options),
            BATCH,
            jax.random.key(2),
            teacher,
        )[0]

    value = jax.jit(loss)(params)
    assert shapes == [(8, 8, 8, 1)]
    step = jax.jit(lambda p, ema: steps.loss_and_grad(model, task, p, BATCH, jax.random.key(2), ema=ema))
    (again, metrics), grads = step(params, ema)
    np.testing.assert_allclose(value, again, rtol=1e-5)
    np.testing.assert_allclose(again, metrics["alignment"] - metrics["coding_rate"], rtol=1e-5)
    assert np.any(grads["head"]["kernel"])
    through = jax.grad(
        lambda ema: steps.loss_and_grad(model, task, params, BATCH, jax.random.key(2), ema=ema)[0][0]
    )(ema)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(through))


@pytest.mark.slow
def test_evaluation_counts_what_is_not_masked():
    model = models.create(CONFIG.model)
    task, params = make_task(CONFIG, PIXELS), model.init(jax.random.key(0))
    apply = jax.jit(lambda images: model.apply(params, images))
    other = {**BATCH, "image": BATCH["image"].at[3].set(0)}
    evaluate = jax.jit(lambda batch: task.evaluate(apply, batch))
    one, two = (evaluate(batch) for batch in (BATCH, other))
    for name, (total, weight) in one.items():
        assert weight == 3
        np.testing.assert_allclose(total, two[name][0], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_views_of_evaluation_follow_the_place_in_the_split():
    """Whatever else is in the batch: the features of a view's pixels are the same in another order."""
    task, seen = make_task(CONFIG, PIXELS), []

    def apply(images, **_):
        seen.append(images)
        return images[:, :4, :4].reshape(len(images), -1), None

    task.evaluate(apply, BATCH)
    task.evaluate(apply, {name: value[::-1] for name, value in BATCH.items()})
    for one, other in zip(seen[:3], seen[3:], strict=True):
        by_example = [views.reshape(4, -1) for views in (one, other)]
        np.testing.assert_allclose(by_example[0], by_example[1][::-1], atol=1e-6)
        assert not np.allclose(one[:2], one[2:4])


def test_views_depend_on_their_keys_alone():
    images = jax.random.uniform(jax.random.key(0), (3, 12, 12, 3))
    kind = views.Kind(8, (0.2, 0.8), True, 0.5, 0.1, 0.5)
    draw = jax.jit(lambda key, images: views.random_views(jax.random.split(key, 3), images, kind))
    one = draw(jax.random.key(1), images)
    assert one.shape == (3, 8, 8, 3) and one.min() >= 0 and one.max() <= 1
    np.testing.assert_array_equal(one, draw(jax.random.key(1), images))
    same = draw(jax.random.key(1), jnp.stack([images[0]] * 3))
    np.testing.assert_array_equal(one[0], same[0])
    assert not np.array_equal(same[0], same[1])
    assert not np.array_equal(one, draw(jax.random.key(2), images))


def test_a_crop_of_everything_is_the_image():
    image = jax.random.uniform(jax.random.key(0), (8, 8, 1))
    # Sides that would not fit are cut to the image's, so an area of many images is the image.
    whole = views.random_crop(jax.random.key(1), image, 8, (4.0, 4.0))
    np.testing.assert_allclose(whole, image, atol=1e-5)
    # A linear ramp stays one: rows of a crop rise in equal steps, as wide as the crop is of the image.
    ramp = jnp.broadcast_to(jnp.arange(32.0)[:, None, None], (32, 32, 1))
    inside = np.diff(views.random_crop(jax.random.key(2), ramp, 16, (0.25, 0.25))[:, 0, 0])[1:-1]
    np.testing.assert_allclose(inside, inside[0], rtol=1e-3)
    assert 32 / 16 * 0.43 < inside[0] < 32 / 16 * 0.58


def test_a_flat_image_stays_flat_under_blur_and_colours():
    flat = jnp.full((8, 8, 3), 0.4)
    np.testing.assert_allclose(views.random_blur(jax.random.key(0), flat, 0.1), flat, rtol=1e-5)
    changed = views.random_colors(jax.random.key(1), flat)
    np.testing.assert_allclose(changed, jnp.broadcast_to(changed[0, 0], changed.shape), rtol=1e-5)


def test_blurs_are_as_wide_in_every_view():
    """A point far from the border spreads by 0.1 to 2 units of pixels, whatever the view's size."""
    for size in (33, 65):
        point = jnp.zeros((size, size, 1)).at[size // 2, size // 2].set(1)
        blurred = views.random_blur(jax.random.key(3), point, 10.0)[..., 0]
        variance = jnp.sum(blurred.sum(axis=1) * (jnp.arange(size) - size // 2) ** 2)
        width = 10.0 * jax.random.uniform(jax.random.key(3), minval=0.1, maxval=2.0)
        np.testing.assert_allclose(variance, width**2, rtol=1e-3)


def test_the_average_slows_along_a_cosine():
    decay = cosine_between(0.99, 1.0, total_steps=100)
    np.testing.assert_allclose([decay(t) for t in (0, 50, 100)], [0.99, 0.995, 1.0], rtol=1e-6)
    assert cosine_between(0.9, None, total_steps=100)(73) == 0.9


def test_projection_head_and_pooling():
    config = dataclasses.replace(CONFIG.model, head_hidden=5)
    params = models.create(config).abstract_params["head"]
    assert params["mlp_in"]["kernel"].shape == (8, 5)
    assert params["projection"]["kernel"].shape == (5, 5)
    assert params["mlp_out"]["kernel"].shape == (5, 3)
    pooled = models.create(dataclasses.replace(CONFIG.model, pool="mean")).abstract_params
    assert "class_token" not in pooled and pooled["position_embedding"].shape == (16, 8)
    with pytest.raises(InputError, match=r"model.pool: found 'max'; accepted: class, mean"):
        models.create(dataclasses.replace(CONFIG.model, pool="max"))


@pytest.mark.slow
def test_views_come_from_the_whole_image(tmp_path):
    """Red lies outside of the centre square, which is all that the model's own input shows."""
    image = np.zeros((12, 36, 3), np.uint8)
    image[:, :12, 2], image[:, 24:, 2], image[:, 12:24, 0] = 255, 255, 255  # OpenCV writes blue first
    for i in range(20):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, channels=3),
        batch_size=4,
        total=steps_(2),
        data=DataConfig(name=f"folder:{tmp_path / 'data'}", image_size=8),
        simdino=SimDINOConfig(local_views=2, local_size=4, local_scale=(0.05, 0.2), whole_image=True),
    )
    run = start_run(config, tmp_path / "run")
    train_batch = run.data.train_batches().batch(0)
    (first, *_), (again, *_) = (list(run.data.eval_batches(run.data.source("test"))) for _ in range(2))
    for batch in (train_batch, first):
        assert batch["image"].shape == (4, 8, 8, 3) and batch["image"][..., 0].max() == 0
        assert batch["global_views"].shape == (4, 2, 8, 8, 3) and batch["global_views"][..., 0].max() > 100
        assert batch["local_views"].shape == (4, 2, 4, 4, 3)
    np.testing.assert_array_equal(first["local_views"], again["local_views"])
    values = train(config, tmp_path / "run", sections="loss")
    assert np.isfinite(values["eval/loss"]) and values["eval/count"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": models.IGPTConfig()}, "task: simdino needs features of images, .* 'igpt' does not"),
        ({"model": models.crate_mae("tiny")}, "simdino needs features of images, .* 'crate_mae' does not"),
        (
            {"model": dataclasses.replace(CONFIG.model, image_width=16)},
            "data.image_width: found 16; accepted for task simdino: none",
        ),
        ({"ema_decay": 0.0}, "ema_decay: found 0; accepted for task simdino"),
        (
            {"simdino": SimDINOConfig(local_size=5)},
            "simdino.local_size: found 5; accepted: multiples of .* 2",
        ),
        (
            {"simdino": SimDINOConfig(local_scale=(0.5, 0.2))},
            "simdino.local_scale: found .* accepted: two shares",
        ),
        ({"simdino": SimDINOConfig(local_views=-1)}, "simdino.local_views: found -1"),
    ],
)
def test_what_it_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        make_task(dataclasses.replace(CONFIG, **changes), PIXELS)
