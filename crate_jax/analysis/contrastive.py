"""Contrastive learners of an ideal world: features whose dot products say which observations occur near each other."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crate_jax import models
from crate_jax.analysis.world import LENGTH, LETTERS, SIZE
from crate_jax.settings import one_of

LOSSES = ("nce", "infonce")
_LEARNING_RATE, _WARMUP = 3e-3, 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Observer:
    """A model that reads one modality.

    Attributes:
      model: its output, or the head of its classes, is the features.
      observations: one for each event, `[n, …]`.
    """

    model: models.Model
    observations: np.ndarray

    def init(self, key: jax.Array) -> models.Params:
        """Fresh parameters. Heads start from N(0, 1/d), not from zero as a classifier's: at zero features, dot products have
        no gradient."""
        params = self.model.init(key)
        name = "class_head" if "class_head" in params else "head"
        kernel = params[name]["kernel"]
        random = jax.random.normal(jax.random.fold_in(key, 1), kernel.shape, kernel.dtype)
        return {**params, name: {**params[name], "kernel": random / kernel.shape[0] ** 0.5}}

    def features(self, params: models.Params) -> jax.Array:
        """The features of every event, float32 `[n, d]`."""
        output, _ = self.model.apply(params, jnp.asarray(self.observations))
        return output[1] if isinstance(output, tuple) else output


def picture_observer(pictures: np.ndarray, *, width: int, depth: int, features: int) -> Observer:
    """A CRATE that looks at pictures, `[n, 8, 8, 1]`."""
    config = models.CRATEConfig(
        image_size=SIZE,
        patch_size=4,
        channels=1,
        num_classes=features,
        dim=width,
        depth=depth,
        heads=4,
        head_dim=width // 4,
    )
    return Observer(models.create(config), pictures)


def word_observer(words: np.ndarray, *, width: int, depth: int, features: int) -> Observer:
    """A transformer with iGPT's blocks, without the causal mask, that reads words, `[n, 4]`."""
    config = models.IGPTConfig(
        num_positions=LENGTH,
        vocab_size=LETTERS,
        num_classes=features,
        dim=width,
        depth=depth,
        heads=4,
        causal=False,
    )
    return Observer(models.create(config), words)


class Learned(NamedTuple):
    """What a learner came to.

    Attributes:
      kernel: `[n, n]`, ⟨f_a, f_b⟩ - c.
      initial: the same before the first step.
      features: `[n, d]`.
      loss: the last step's, in nats.
    """

    kernel: np.ndarray
    initial: np.ndarray
    features: np.ndarray
    loss: float


def contrastive_loss(logits: jax.Array, joint: jax.Array, *, loss: str) -> jax.Array:
    """The mean over all pairs that occurred, against pairs drawn independently, computed from their frequencies.

    nce: -Σ P(a, b) log σ(s_ab) - Σ P(a) P(b) log σ(-s_ab), as many negatives as positives; least at s = PMI.
    infonce: -Σ P(a, b) (s_ab - log Σ_b' P(b') exp s_ab'), with every event as a negative in proportion to its frequency;
    least at s = PMI + any function of a, thus at PMI + a constant for a symmetric s.

    Args:
      logits: `[n, n]`, s.
      joint: `[n, n]`, P(a, b) of the sample, symmetric.
      loss: nce or infonce.
    Returns:
      a scalar, nats.

    Gutmann and Hyvärinen 2010; van den Oord et al. 2018 (arXiv 1807.03748).
    """
    marginal = joint.sum(1)
    if loss == "nce":
        positive = joint * jax.nn.log_sigmoid(logits)
        return -positive.sum() - (jnp.outer(marginal, marginal) * jax.nn.log_sigmoid(-logits)).sum()
    partition = jax.nn.logsumexp(logits, axis=1, b=marginal)
    return -(joint * logits).sum() + (marginal * partition).sum()


@partial(jax.jit, static_argnames=("observer", "loss", "steps"))
def _fit(observer, loss, steps, key, joint, mask):
    params = {"model": observer.init(key), "offset": jnp.zeros(())}
    schedule = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE, int(_WARMUP * steps), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def kernel(params):
        features = observer.features(params["model"]) * mask
        return features @ features.T - params["offset"], features

    def step(state, _):
        params, moments = state
        value, grads = jax.value_and_grad(lambda p: contrastive_loss(kernel(p)[0], joint, loss=loss))(params)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), value

    (last, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    (before, _), (after, features) = kernel(params), kernel(last)
    return after, before, features, losses[-1]


class Recipe(NamedTuple):
    """How a learner is trained: the contrastive loss, the steps of Adam on all pairs at once, the seed of its parameters."""

    loss: str
    steps: int
    seed: int


def learn(observer: Observer, counts: np.ndarray, recipe: Recipe, *, features: int | None = None) -> Learned:
    """Train an observer on the pairs that occurred.

    Every step sees all pairs of the sample and all negatives, so nothing but the first parameters is random.

    Args:
      observer: untrained. One object compiles once.
      counts: `[n, n]`, how often a and b occurred together, symmetric.
      recipe: how to train.
      features: the first so many count, the rest are zero; None: all.
    Raises:
      InputError: an unknown loss.
    """
    one_of("loss", recipe.loss, LOSSES)
    mask = np.arange(_dim(observer)) < (features or _dim(observer))
    joint = jnp.asarray(counts / counts.sum(), jnp.float32)
    key = jax.random.key(recipe.seed)
    kernel, initial, found, loss = _fit(observer, recipe.loss, recipe.steps, key, joint, mask)
    return Learned(np.asarray(kernel, float), np.asarray(initial, float), np.asarray(found), float(loss))


def _dim(observer: Observer) -> int:
    return observer.model.config.num_classes


class Agreement(NamedTuple):
    """How two kernels agree off the diagonal, where the learner has no freedom from the length of its features.

    Attributes:
      correlation: Pearson's.
      slope: of the least squares line, first on second; 1 where they differ by a constant alone.
      residual: root mean square of their difference without its mean, nats.
    """

    correlation: float
    slope: float
    residual: float


def agreement(kernel: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> Agreement:
    """Compare two kernels up to a constant, off the diagonal.

    Args:
      kernel: `[n, n]`.
      other: `[n, n]`, not constant off the diagonal.
      where: `[n, n]`, the pairs that are compared; None: all.
    """
    off = ~np.eye(len(kernel), dtype=bool)
    if where is not None:
        off &= where
    x, y = kernel[off] - kernel[off].mean(), other[off] - other[off].mean()
    return Agreement(
        float(x @ y / np.sqrt((x @ x) * (y @ y))),
        float(x @ y / (y @ y)),
        float(np.sqrt(np.mean((x - y) ** 2))),
    )
