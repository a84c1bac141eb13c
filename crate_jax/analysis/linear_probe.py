"""Probes of frozen features: multinomial logistic regression by L-BFGS, and nearest neighbours.

Both work on all layers at once. Examples come as `[blocks, rows, …]`, padded with examples that count 0: one block is in
the air at a time, and the rows of a block may be split over devices.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crate_jax.analysis.features import Features
from crate_jax.data.dataset import held_out_fifth
from crate_jax.models.partition import BATCH_AXES
from crate_jax.parallel.sharding import batch_shards

# Inverse regularisation strengths tried, strongest first; every solution is the next one's start.
STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 3))
# Converged: the gradient's norm is at most this part of that at zero weights; float32 does not always reach half of it.
TOLERANCE = 1e-4
MAX_ITERATIONS = 1000
# Of DINO's evaluation (Caron et al. 2021, arXiv 2104.14294, section 4.1; after Wu et al. 2018, arXiv 1805.01978).
NEIGHBOURS, TEMPERATURE = 20, 0.07

MAX_ROWS = 8192
QUERIES = 512  # Test examples compared with a block at a time.
GROUP_BYTES = 2**30  # Of training features on the devices at a time, but one layer at least.


class Examples(NamedTuple):
    """Labelled examples in blocks.

    Attributes:
      x: `[blocks, rows, d]`, float32; with a leading axis for layers where a docstring says so.
      labels: `[blocks, rows]`, int32.
      counts: `[blocks, rows]`, float32: how often an example counts; 0 for padding.
    """

    x: jax.Array
    labels: jax.Array
    counts: jax.Array


class Classifier(NamedTuple):
    """x ↦ x·weights + bias; `[d, c]` and `[c]`."""

    weights: jax.Array
    bias: jax.Array


class Fit(NamedTuple):
    """A classifier, the value of its objective in nats, the gradient's norm by that at zero, iterations taken."""

    classifier: Classifier
    loss: jax.Array
    gradient: jax.Array
    iterations: jax.Array


class Probe(NamedTuple):
    """What probes say, one value a layer `[layers]`.

    Attributes:
      accuracy: of the logistic regression, on the test split.
      strength: its C, the best of STRENGTHS on the validation split.
      validation: accuracy there.
      loss: the objective on the training split.
      gradient: its norm where L-BFGS stopped, by that at zero weights; at most TOLERANCE where it converged.
      iterations: of the last fit.
      knn: accuracy of the nearest neighbours, on the test split.
    """

    accuracy: np.ndarray
    strength: np.ndarray
    validation: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    iterations: np.ndarray
    knn: np.ndarray


def chosen_layer(validation: Sequence[float] | np.ndarray) -> int:
    """The layer, from 0, that a network's best layer means: the best on the validation split, the first of equals.

    The test split plays no part in the choice, so the layer's accuracy there is as good as one layer's alone.

    Args:
      validation: `Probe.validation`, `[layers]`.
    """
    return int(np.argmax(validation))


def probe(train: Features, test: Features, num_classes: int, mesh: Mesh) -> Probe:
    """Probe every layer.

    The strength of the regularisation is the one with the highest accuracy on a fixed stratified fifth of the training
    split (the strongest of equals); the classifier is then fitted to the whole training split. Features are standardised
    by their mean and deviation over the training split.

    Args:
      train: features of the training split.
      test: features of the test split.
      num_classes: of the labels.
      mesh: examples are split over its data and fsdp axes.
    Raises:
      InputError: a class has too few examples to hold out a fifth.
    """
    validation = np.zeros(len(train.labels), np.float32)
    validation[held_out_fifth(train.labels, "probe")["test"]] = 1
    group = max(1, GROUP_BYTES // (4 * train.dim * len(train.labels)))
    parts = []
    for start in range(0, train.num_layers, group):
        layers = slice(start, start + group)
        fitted, tested = _load(train, layers, mesh), _load(test, layers, mesh)
        fitted, tested = centre(fitted, tested)
        knn = knn_accuracy(fitted, tested, num_classes)
        fitted, tested = standardise(fitted, tested)
        linear = linear_accuracy(fitted, to_blocks(validation, 0, mesh), tested, num_classes)
        parts.append(jax.device_get({**linear, "knn": knn}))
    return Probe(**{name: np.concatenate([part[name] for part in parts]) for name in Probe._fields})


def to_blocks(array: np.ndarray, axis: int, mesh: Mesh) -> jax.Array:
    """Cuts `axis`, of length n, into `[blocks, rows]` padded with zeros, the rows split over the devices of the mesh."""
    n = array.shape[axis]
    shards = batch_shards(mesh)
    blocks = -(-n // MAX_ROWS)
    rows = -(-n // (blocks * shards)) * shards
    padding = [(0, 0)] * array.ndim
    padding[axis] = 0, blocks * rows - n
    array = np.pad(array, padding).reshape(*array.shape[:axis], blocks, rows, *array.shape[axis + 1 :])
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*(None,) * (axis + 1), BATCH_AXES)))


def _load(features: Features, layers: slice, mesh: Mesh) -> Examples:
    """`x` with a leading layer axis."""
    ones = np.ones(len(features.labels), np.float32)
    return Examples(
        to_blocks(features.read(layers), 1, mesh),
        to_blocks(features.labels, 0, mesh),
        to_blocks(ones, 0, mesh),
    )


@partial(jax.jit, donate_argnums=(0, 1))
def centre(train: Examples, test: Examples) -> tuple[Examples, Examples]:
    """Take the mean of the training examples from both. `x` has a leading layer axis."""
    counts = train.counts[..., None]
    mean = jnp.sum(counts * train.x, (1, 2), keepdims=True) / counts.sum()
    return train._replace(x=train.x - mean), test._replace(x=test.x - mean)


@partial(jax.jit, donate_argnums=(0, 1))
def standardise(train: Examples, test: Examples) -> tuple[Examples, Examples]:
    """Deviation 1 over the (centred) training examples, then a rotation to their principal axes.

    The rotation changes neither the logistic regression, whose penalty is the same in any orthogonal basis, nor its
    accuracy, but decorrelates its weights, which `fit` then scales one by one. A constant feature becomes 0. `x` has a
    leading layer axis.
    """
    counts = train.counts[..., None]
    std = jnp.sqrt(jnp.sum(counts * train.x**2, (1, 2), keepdims=True) / counts.sum())
    # Of a constant feature the mean was taken away; only rounding is left.
    scale = jnp.where(std > 1e-6 * jnp.max(std, axis=-1, keepdims=True), std, jnp.inf)
    x = train.x / scale
    covariance = jnp.einsum("lbnd,lbne->lde", counts * x, x, precision="highest") / counts.sum()
    _, axes = jnp.linalg.eigh(covariance)

    def rotate(x):
        return jnp.einsum("lbnd,lde->lbne", x, axes, precision="highest")

    return train._replace(x=rotate(x)), test._replace(x=rotate(test.x / scale))


@partial(jax.jit, static_argnames="num_classes")
def linear_accuracy(
    train: Examples, validation: jax.Array, test: Examples, num_classes: int
) -> dict[str, jax.Array]:
    """Sweep, choice and last fit for each layer; `x` has a leading layer axis.

    Args:
      train: standardised training examples.
      validation: `[blocks, rows]`, 1 for those that the sweep holds out.
      test: test examples, standardised alike.
      num_classes: of the labels.
    Returns:
      the fields of `Probe` but `knn`, each `[layers]`.
    """
    strengths = jnp.asarray(STRENGTHS)

    def one_layer(train_x, test_x):
        data = train._replace(x=train_x)
        rest = data._replace(counts=data.counts * (1 - validation))
        held_out = data._replace(counts=data.counts * validation)

        def sweep(start, strength):
            classifier = fit(rest, strength, start).classifier
            return classifier, (classifier, accuracy(classifier, held_out))

        dim = train_x.shape[-1]
        zero = Classifier(jnp.zeros((dim, num_classes)), jnp.zeros(num_classes))
        _, (classifiers, scores) = jax.lax.scan(sweep, zero, strengths)
        best = jnp.argmax(scores)
        last = fit(data, strengths[best], jax.tree.map(lambda leaf: leaf[best], classifiers))
        return {
            "accuracy": accuracy(last.classifier, test._replace(x=test_x)),
            "strength": strengths[best],
            "validation": scores[best],
            "loss": last.loss,
            "gradient": last.gradient,
            "iterations": last.iterations,
        }

    return jax.vmap(one_layer)(train.x, test.x)


def fit(
    examples: Examples,
    strength: jax.Array | float,
    start: Classifier,
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Fit:
    """Multinomial logistic regression by L-BFGS, inside one `while_loop`; can be jitted and vmapped.

    Minimises, over n examples (by count), in nats,
        (1/n) Σ_i −log softmax(x_i W + b)[y_i]  +  ‖W‖² / (2 C n),
    which is scikit-learn's `LogisticRegression(C)`; the bias is not regularised.

    Args:
      examples: `x` without a layer axis.
      strength: C, the inverse strength of the regularisation.
      start: where to begin.
      tolerance: stop when the gradient's norm (by the scaled weights) is at most so much of that at zero weights.
      max_iterations: stop after so many; a step that no longer lowers the objective in float32 also ends it.
    """
    count = examples.counts.sum()
    classes = start.bias.size
    # The objective's curvature along each axis where all classes are equally likely; with weights in units of its inverse
    # root L-BFGS meets a nearly round bowl.
    squares = jnp.einsum("bn,bnd->d", examples.counts, examples.x**2) / count
    likely = (classes - 1) / classes**2
    scale = Classifier(
        jax.lax.rsqrt(likely * squares + 1 / (strength * count))[:, None], jax.lax.rsqrt(jnp.asarray(likely))
    )

    def objective(scaled):
        classifier = jax.tree.map(jnp.multiply, scaled, scale)

        @jax.checkpoint  # The logits of a block are computed again for its gradient, not kept.
        def add(total, block):
            nats = optax.losses.softmax_cross_entropy_with_integer_labels(
                _logits(classifier, block.x), block.labels
            )
            return total + jnp.sum(block.counts * nats), None

        total, _ = jax.lax.scan(add, jnp.zeros(()), examples)
        return (total + jnp.sum(classifier.weights**2) / (2 * strength)) / count

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)
    start = jax.tree.map(jnp.divide, start, scale)
    at_zero = optax.tree.norm(jax.grad(objective)(jax.tree.map(jnp.zeros_like, start)))

    def step(carry):
        iteration, scaled, state, *_ = carry
        value, gradient = value_and_grad(scaled, state=state)
        updates, state = optimizer.update(
            gradient, state, scaled, value=value, grad=gradient, value_fn=objective
        )
        scaled = optax.apply_updates(scaled, updates)
        gradient = optax.tree.norm(optax.tree.get(state, "grad")) / at_zero
        return iteration + 1, scaled, state, gradient, optax.tree.get(state, "value") < value

    def unfinished(carry):
        iteration, _, _, gradient, lower = carry
        return (iteration < max_iterations) & (gradient > tolerance) & lower

    initial = jnp.zeros((), jnp.int32), start, optimizer.init(start), jnp.asarray(jnp.inf), jnp.asarray(True)
    iterations, scaled, state, gradient, _ = jax.lax.while_loop(unfinished, step, initial)
    return Fit(
        jax.tree.map(jnp.multiply, scaled, scale), optax.tree.get(state, "value"), gradient, iterations
    )


def accuracy(classifier: Classifier, examples: Examples) -> jax.Array:
    """The share of examples, by count, whose largest logit is that of their label; `x` without a layer axis."""

    def correct(block):
        return jnp.sum(block.counts * (_logits(classifier, block.x).argmax(-1) == block.labels))

    return jax.lax.map(correct, examples).sum() / examples.counts.sum()


@partial(jax.jit, static_argnames="num_classes")
def knn_accuracy(train: Examples, test: Examples, num_classes: int) -> jax.Array:
    """The share of test examples that their nearest neighbours name, `[layers]`; `x` has a leading layer axis.

    The NEIGHBOURS training examples of the largest cosine s to a test example each vote with exp(s / TEMPERATURE) for
    their class. Neighbours are kept block by block, so no array of all pairs is made. `probe` centres the features first,
    which DINO does not: the mean that all examples share would bring every cosine close to 1.
    """

    def one_layer(train_x, test_x):
        keys = train._replace(x=_unit(train_x))

        def merge(best, block, query):
            cosines = jnp.matmul(block.x, query, precision="highest")
            cosines = jnp.where(block.counts > 0, cosines, -jnp.inf)
            joined, labels = jnp.append(best[0], cosines), jnp.append(best[1], block.labels)
            cosines, chosen = jax.lax.top_k(joined, NEIGHBOURS)
            return (cosines, labels[chosen]), None

        def name(query):
            none = jnp.full(NEIGHBOURS, -jnp.inf), jnp.zeros(NEIGHBOURS, jnp.int32)
            (cosines, labels), _ = jax.lax.scan(partial(merge, query=query), none, keys)
            votes = jnp.exp(cosines / TEMPERATURE)
            return jnp.zeros(num_classes).at[labels].add(votes).argmax()

        queries = _unit(test_x).reshape(-1, test_x.shape[-1])
        named = jax.lax.map(name, queries, batch_size=QUERIES)
        right = named == test.labels.reshape(-1)
        return jnp.sum(test.counts.reshape(-1) * right) / test.counts.sum()

    return jax.lax.map(lambda x: one_layer(*x), (train.x, test.x))


def _logits(classifier: Classifier, x: jax.Array) -> jax.Array:
    # Accelerators round the factors of a float32 product by default, which L-BFGS's line search cannot bear.
    return jnp.matmul(x, classifier.weights, precision="highest") + classifier.bias


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(x.dtype).tiny)
