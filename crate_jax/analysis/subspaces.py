"""The geometry of a white box's parameters: how its subspaces U_k lie to one another and how alike its atoms are; and what
the parameters do to tokens: energy in each subspace, and how well each layer can be undone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import InputError
from crate_jax.models import Model, Params
from crate_jax.models.stack import Intermediates


class Subspaces(NamedTuple):
    """How the subspaces of a layer lie to one another; k of them, p dimensions each, in d.

    Attributes:
      cosines: `[k, k, p]`, the cosines of the principal angles between each pair, the largest first.
      overlap: `[k, k]`, the mean of the squared cosines, ‖Q_iᵀ Q_j‖²_F / p for orthonormal bases Q: 1 for the same subspace,
        0 for orthogonal ones; p/d on average for random ones.
      deviation: `[k]`, ‖c U_kᵀU_k − I‖_F / √p at the best scale c: 0 where the columns are orthogonal and equally long.
      joint_deviation: the same of all columns [U_1 … U_K] together, / √(k p); at least √(1 − d/(k p)) where k p > d.
      norms: `[k]`, ‖U_k‖_F.
    """

    cosines: np.ndarray
    overlap: np.ndarray
    deviation: np.ndarray
    joint_deviation: float
    norms: np.ndarray


class Dictionary(NamedTuple):
    """How alike the atoms of a dictionary D `[d, m]` are (its columns; tokens x are coded as Dᵀx).

    Attributes:
      coherence: the largest |cosine| between two atoms.
      mean_cosine: the mean |cosine| over pairs; √(2/(π d)) on average for random atoms in many dimensions.
      least_coherence: Welch's bound √((m − d)/(d (m − 1))), below which no dictionary of this shape can be; 0 for m ≤ d.
      deviation: ‖c DᵀD − I‖_F / √m at the best scale c.
      norms: `[m]`, the lengths of the atoms.
    """

    coherence: float
    mean_cosine: float
    least_coherence: float
    deviation: float
    norms: np.ndarray


def subspaces(bases: np.ndarray) -> Subspaces:
    """The geometry of one layer's subspaces.

    Args:
      bases: U `[k, d, p]`, p ≤ d.
    Raises:
      InputError: another shape, or values that are not finite.
    """
    bases = np.asarray(bases, np.float64)
    if bases.ndim != 3 or bases.shape[2] > bases.shape[1] or not np.isfinite(bases).all():
        raise InputError(f"bases: found shape {bases.shape}; accepted: finite numbers [k, d, p], p ≤ d")
    orthonormal, _ = np.linalg.qr(bases)
    products = np.einsum("idp,jdq->ijpq", orthonormal, orthonormal)
    cosines = np.clip(np.linalg.svd(products, compute_uv=False), 0, 1)
    joint = np.concatenate(list(bases), axis=1)
    return Subspaces(
        cosines,
        np.square(cosines).mean(axis=-1),
        np.array([_deviation(each) for each in bases]),
        _deviation(joint),
        np.linalg.norm(bases, axis=(1, 2)),
    )


def dictionary(atoms: np.ndarray) -> Dictionary:
    """The geometry of one layer's dictionary.

    Args:
      atoms: D `[d, m]`, two columns or more.
    Raises:
      InputError: another shape, or values that are not finite.
    """
    atoms = np.asarray(atoms, np.float64)
    if atoms.ndim != 2 or atoms.shape[1] < 2 or not np.isfinite(atoms).all():
        raise InputError(f"dictionary: found shape {atoms.shape}; accepted: finite numbers [d, m], m ≥ 2")
    d, m = atoms.shape
    norms = np.linalg.norm(atoms, axis=0)
    unit = atoms / np.maximum(norms, np.finfo(float).tiny)
    cosines = np.abs(unit.T @ unit)[~np.eye(m, dtype=bool)]
    bound = np.sqrt(max(m - d, 0) / (d * (m - 1)))
    return Dictionary(float(cosines.max()), float(cosines.mean()), float(bound), _deviation(atoms), norms)


def _deviation(columns: np.ndarray) -> float:
    """min_c ‖c MᵀM − I‖_F / √(columns), at c = tr(G)/‖G‖²_F with G = MᵀM."""
    gram = columns.T @ columns
    size, squared = len(gram), np.square(gram).sum()
    return float(np.sqrt(max(1 - np.trace(gram) ** 2 / (size * squared), 0))) if squared else 1.0


def layer_reader(intermediates: Intermediates) -> dict[str, jax.Array]:
    """What one layer of a white box does to tokens, one value per example; pass it as `trace=`.

    - `energy` `[b, k]`: share of the energy of the normed tokens in each subspace, Σ_i ‖Q_kᵀ x_i‖² / Σ_i ‖x_i‖², Q_k an
      orthonormal basis of U_k, x = LN(z). p/d for tokens of no direction. Shares of subspaces that overlap may sum to more
      than 1.
    - `sparsification_error` `[b]`: ‖X − s C Dᵀ‖_F / ‖X‖_F, how far the codes C = ISTA(X) of X = LN(Z½) are from giving X
      back through their dictionary, at the best scale s of the example.
    - `compression_error` `[b]`: ‖Z − (Z½ − MSSA(LN(Z½)))‖_F / ‖Z‖_F, how far MSSA subtracted is from undoing MSSA added:
      CRATE-MAE's decoder does both, with parameters of its own. (Of another `update` than `skip`, solved for Z likewise.)
    - `compression_size` `[b]`: ‖Z − Z½‖_F / ‖Z‖_F, the same error if nothing is undone.
    """
    bases = intermediates["bases"].astype(jnp.float32)
    x = intermediates["normed"].astype(jnp.float32)
    orthonormal = jnp.linalg.qr(bases)[0]
    inside = jnp.square(jnp.einsum("bnd,kdp->bknp", x, orthonormal)).sum((-2, -1))
    x, codes = (intermediates[name].astype(jnp.float32) for name in ("ista_in", "ista_out"))
    back = codes @ intermediates["dictionary"].astype(jnp.float32).T
    scale = (back * x).sum((-2, -1), keepdims=True) / jnp.maximum(_squared(back), 1e-30)[:, None, None]
    z, half, undone = (
        intermediates[name].astype(jnp.float32) for name in ("mssa_in", "mssa_out", "mssa_undone")
    )
    return {
        "energy": inside / jnp.maximum(_squared(intermediates["normed"].astype(jnp.float32)), 1e-30)[:, None],
        "sparsification_error": jnp.sqrt(_squared(x - scale * back) / _squared(x)),
        "compression_error": jnp.sqrt(_squared(z - undone) / _squared(z)),
        "compression_size": jnp.sqrt(_squared(z - half) / _squared(z)),
    }


def parameters_reader(intermediates: Intermediates) -> dict[str, jax.Array]:
    """The parameters of one layer, `bases` and `dictionary`; pass it as `trace=`."""
    return {name: intermediates[name] for name in ("bases", "dictionary")}


def layer_parameters(model: Model, params: Params, inputs: jax.Array) -> dict[str, Any]:
    """`bases` `[layers, k, d, p]` and `dictionary` `[layers, d, m]` of a white box, whatever its family.

    Args:
      inputs: any one example, as the model takes it.
    Raises:
      InputError: a black box.
    """
    check_white_box(model)
    return model.apply(params, inputs, trace=parameters_reader)[1]


def check_white_box(model: Model) -> None:
    """Raises InputError where a model has no subspaces and no dictionary."""
    if model.readings is None:
        raise InputError(
            f"subspaces and atoms of {model.config.family}: found a model without them; accepted: crate, crate_alpha, "
            "crate_gpt, crate_mae"
        )


def _squared(x: jax.Array) -> jax.Array:
    """Σ x² of each example."""
    return jnp.square(x).sum((-2, -1))
