"""Tokens of images as features: those of a layer, their principal components as colours, and tokens of outlying norm."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError
from crate_jax.models.stack import Intermediates
from crate_jax.settings import one_of

KINDS = ("tokens", "keys")
# Robust standard deviations above the median beyond which a norm is an outlier.
OUTLYING = 5.0


def token_reader(kind: str = "tokens") -> Callable[[Intermediates], jax.Array]:
    """A function for `trace=` that gives the features of one layer's tokens, float32 `[b, n, f]`.

    Args:
      kind: "tokens", what the layer gives, or "keys", what its attention compares, of all heads side by side; in a white box
        they are the coordinates U_kᵀ LN(z) of its input.
    Raises:
      InputError: another kind.
    """
    one_of("kind of token features", kind, KINDS)

    def read(intermediates: Intermediates) -> jax.Array:
        if kind == "tokens":
            return intermediates["out"].astype(jnp.float32)
        key = intermediates.get("key", intermediates.get("subspace_in"))
        if key is None:
            raise InputError(
                "kind of token features: found 'keys', which this model does not have; accepted: tokens"
            )
        heads_last = jnp.swapaxes(key, 1, 2)
        return heads_last.reshape(*heads_last.shape[:2], -1).astype(jnp.float32)

    return read


class JointPCA(NamedTuple):
    """Principal components of the tokens of several images together.

    Attributes:
      colours: `[m, n, 3]` in [0, 1]; the background is black.
      foreground: bool `[m, n]`, the tokens that the components were taken of.
      explained: `[3]`, each component's share of the variance of these tokens.
    """

    colours: np.ndarray
    foreground: np.ndarray
    explained: np.ndarray


def joint_pca(features: np.ndarray, *, foreground: bool | np.ndarray = False) -> JointPCA:
    """The first three principal components of all images' tokens as red, green and blue: like tokens, like colours.

    Each component is stretched from its 2nd to its 98th percentile; signs are those with which the third moment is positive.

    Args:
      features: `[m, n, d]`, the patches' tokens of m images.
      foreground: False, all tokens; True, those on the smaller side of the first component of all tokens, at its mean (as in
        DINOv2's figures); or a mask `[m, n]`.
    Raises:
      InputError: shapes that do not fit, values that are not finite, fewer than three tokens to look at.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 3 or not np.isfinite(features).all():
        raise InputError(
            f"features of the PCA: found shape {features.shape}; accepted: finite numbers [m, n, d]"
        )
    flat = features.reshape(-1, features.shape[-1])
    if isinstance(foreground, np.ndarray):
        if foreground.shape != features.shape[:2]:
            raise InputError(f"foreground: found shape {foreground.shape}; accepted: {features.shape[:2]}")
        chosen = foreground.astype(bool).ravel()
    elif foreground:
        first = _components(flat, 1)[0][:, 0]
        chosen = first > 0 if np.mean(first > 0) <= 0.5 else first <= 0
    else:
        chosen = np.ones(len(flat), bool)
    if chosen.sum() < 3:
        raise InputError(f"foreground: found {chosen.sum()} tokens; accepted: three or more")
    scores, explained = _components(flat[chosen], 3)
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = np.zeros((len(flat), 3))
    colours[chosen] = np.clip((scores - low) / np.maximum(high - low, np.finfo(float).tiny), 0, 1)
    return JointPCA(colours.reshape(*features.shape[:2], 3), chosen.reshape(features.shape[:2]), explained)


def _components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[r, count]` of the rows and the components' shares of the variance; zero where there are fewer dimensions."""
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    scores = centred @ vectors
    scores = scores * np.where((scores**3).sum(axis=0) < 0, -1, 1)
    total = max(np.square(centred).sum(), np.finfo(float).tiny)
    missing = count - scores.shape[1]
    return np.pad(scores, ((0, 0), (0, missing))), np.pad(np.maximum(values, 0) / total, (0, missing))


class NormOutliers(NamedTuple):
    """Tokens whose norm is far above the others', which some networks keep for themselves ("registers").

    Attributes:
      outlying: bool, of the shape of the norms.
      threshold: the norm above which a token is one.
      median: of all norms.
      largest: the largest norm over the median.
    """

    outlying: np.ndarray
    threshold: float
    median: float
    largest: float


def norm_outliers(norms: np.ndarray) -> NormOutliers:
    """Tokens whose norm lies more than OUTLYING robust standard deviations (1.4826 × the median deviation) above the median.

    The phenomenon is that of Darcet et al. (arXiv 2309.16588); they read a threshold off a histogram, for one network.

    Args:
      norms: of the patches' tokens of one layer, any shape.
    """
    norms = np.asarray(norms, np.float64)
    median = float(np.median(norms))
    deviation = 1.4826 * float(np.median(np.abs(norms - median)))
    threshold = median + OUTLYING * deviation
    # Without any spread rounding alone would make outliers.
    outlying = norms > max(threshold, median * (1 + 1e-6))
    return NormOutliers(outlying, threshold, median, float(norms.max() / median) if median else 0.0)
