"""Rate reduction: what grouping tokens saves, and the objectives built on it, each with its paper's sign and
scale.

To be maximised: `rate_reduction`, `sparse_rate_reduction`, `sparse_rate_reduction_l1`,
`variational_rate_reduction`, `emp_ssl_total_coding_rate`. To be minimised: `simdino_regularizer`,
`token_statistics_coding_rate`, and the rates `class_coding_rate` and `subspace_coding_rate`.
"""

import jax.numpy as jnp
from jax import lax

from crate_jax.objectives import arguments
from crate_jax.objectives.coding_rate import class_coding_rate, coding_rate, subspace_coding_rate
from crate_jax.objectives.logdet import log1p
from crate_jax.objectives.moments import moment_residual
from crate_jax.objectives.partition import everywhere
from crate_jax.objectives.powers import largest_exponent, quotient, shift
from crate_jax.objectives.sparsity import l1_norm

HIGHEST = lax.Precision.HIGHEST


@everywhere
def rate_reduction(z, membership, *, eps_sq, mask=None):
    """Rate reduction of MCR², to be maximised: ΔR(Z, Π) = R(Z) − R_c(Z | Π).

    Args:
      z: features `[..., n, d]`; MCR² takes them on the unit sphere, the caller normalises.
      membership: labels `[..., n]` or weights `[..., n, K]`, as for `class_coding_rate`.
      eps_sq, mask: as for `coding_rate` (the released training takes ε² = 0.5, under the name eps).

    Returns:
      `[...]` fp32, nats, ≥ 0 up to rounding of the two rates.

    Raises:
      ValueError: as for `class_coding_rate`.

    Source: MCR² (arXiv 2006.08558) and its code (ryanchankh/mcr2, `loss.py`, which minimises −ΔR).

    >>> import jax.numpy as jnp
    >>> round(float(rate_reduction(jnp.eye(4), jnp.array([0, 0, 1, 1]), eps_sq=0.5)), 4)
    0.5878
    """
    return coding_rate(z, eps_sq=eps_sq, mask=mask) - class_coding_rate(
        z, membership, eps_sq=eps_sq, mask=mask
    )


@everywhere
def sparse_rate_reduction(z, bases, *, eps_sq, penalty, mask=None):
    """Sparse rate reduction of CRATE, to be maximised: R(Z) − R^c(Z; U) − λ‖Z‖₀.

    ‖Z‖₀ counts entries, so its gradient is zero: measure with this one, train with
    `sparse_rate_reduction_l1`.

    Args:
      z: tokens `[..., n, d]`; bases: `[k, d, p]`.
      eps_sq: ε² > 0, the same in both rates. penalty: λ. mask: as for `coding_rate`.

    Returns:
      `[...]` fp32, nats (λ in nats per non-zero entry).

    Raises:
      ValueError: as for `subspace_coding_rate`.

    Source: CRATE (arXiv 2306.01129), Section 2.1, Eq. 1. The measure ‖Z‖₀ + R^c − R of arXiv 2411.17182 is
    its negative at λ = 1.

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> round(float(sparse_rate_reduction(jnp.eye(4), bases, eps_sq=0.5, penalty=0.1)), 4)
    0.4109
    """
    count = jnp.sum(_kept(z, mask) != 0, axis=(-2, -1)).astype(jnp.float32)
    return _rate_gap(z, bases, eps_sq, mask) - penalty * count


@everywhere
def sparse_rate_reduction_l1(z, bases, *, eps_sq, penalty, mask=None):
    """Sparse rate reduction with its convex surrogate, to be maximised: R(Z) − R^c(Z; U) − λ‖Z‖₁.

    Args, returns, raises: as for `sparse_rate_reduction` (λ in nats per unit of |z|).

    Source: Learning Deep Representations of Data Distributions (book), section Unrolled Optimization for
    Sparse Rate Reduction; CRATE (arXiv 2306.01129), Appendix A.3, Eq. 77 (R − λ‖Z‖₁ with Z ≥ 0).

    >>> import jax.numpy as jnp
    >>> bases = jnp.eye(4).reshape(4, 2, 2).swapaxes(0, 1)
    >>> round(float(sparse_rate_reduction_l1(2 * jnp.eye(4), bases, eps_sq=0.5, penalty=0.1)), 4)
    0.3756
    """
    return _rate_gap(z, bases, eps_sq, mask) - penalty * l1_norm(_kept(z, mask))


def _kept(z, mask):
    z = arguments.floating("z", z, "... n d")
    return z if mask is None else jnp.where(arguments.token_mask(mask, z)[..., None] > 0, z, 0)


def _rate_gap(z, bases, eps_sq, mask):
    return coding_rate(z, eps_sq=eps_sq, mask=mask) - subspace_coding_rate(z, bases, eps_sq=eps_sq, mask=mask)


@everywhere
def variational_rate_reduction(z, membership, atoms, spectrum, *, eps_sq, penalty):
    """Variational MCR² (V-MCR²), to be maximised: R(Z) − Σ_j (n_j/2n) Σ_l log(1 + d/(n_j ε²) A_lj) − (λ/2)
    Σ_j ‖ZᵀΠ_jZ − ΓDiag(A_j)Γᵀ‖_F².

    The sum of logarithms is an upper bound of R_c, hence the whole a lower bound of ΔR, wherever the
    residual is zero, and equal to it where Γ_j Diag(A_j)Γ_jᵀ is the eigendecomposition of ZᵀΠ_jZ: one
    log-determinant instead of K + 1. Public code differs in two ways that agree where the residual is zero:
    R of the fitted Σ_j ΓDiag(A_j)Γᵀ instead of Z, and a λ divided by K.

    Args:
      z: features `[n, d]` (unit norm in the paper); membership: weights `[n, K]`, rows summing to one.
      atoms: Γ, `[d, q]`, columns of unit norm (normalised here). spectrum: A, `[q, K]`, ≥ 0.
      eps_sq: ε² > 0. penalty: λ.

    Returns:
      Scalar fp32, nats. The residual is formed with twice the digits of fp32 and then squared: within 1e-3 of float64 for
      token norms from 1 to 100 (measured: n = 1000, d = 16). A norm above 1e9 overflows in the fourth power, truly. By the
      weights of an empty class the slope of its logarithms, truly infinite where A > 0, is log(1 + d/ε² A)/(2n): that of
      one token.

    Raises:
      ValueError: as for `class_coding_rate`; integer labels; atoms or spectrum that do not fit.

    Source: Baek et al., V-MCR² (arXiv 2204.00077); scale and sign from public code (kebaek/mcr2, `loss.py`,
    and KeepLost/V-MCR2, `funcs/vmcr2.py`).

    >>> import jax.numpy as jnp
    >>> z, classes = jnp.eye(4), jnp.eye(2)[jnp.array([0, 0, 1, 1])]
    >>> round(float(variational_rate_reduction(z, classes, jnp.eye(4), classes, eps_sq=0.5, penalty=1.0)), 4)
    0.5878
    """
    z = arguments.floating("z", z, "n d").astype(jnp.float32)
    if arguments.is_labels(membership, z):
        raise ValueError("membership: integer labels were given; weights [n, K] are accepted")
    atoms, spectrum = (
        arguments.floating("atoms", atoms, "d q"),
        arguments.floating("spectrum", spectrum, "q K"),
    )
    arguments.same_size("atoms", atoms, 0, z.shape[1], "the features of z")
    arguments.same_size("spectrum", spectrum, 0, atoms.shape[1], "the columns of atoms")
    arguments.same_size("spectrum", spectrum, 1, membership.shape[1], "the classes of membership")
    n, d = z.shape
    weights = jnp.asarray(membership, jnp.float32)
    atoms, spectrum = atoms.astype(jnp.float32), spectrum.astype(jnp.float32)
    count = jnp.sum(weights, axis=0)
    # d/(n_j ε²) A_lj as a mantissa and a power of two, so that neither factor leaves fp32's range.
    mantissa, power = quotient(d, jnp.where(count > 0, count, 1.0), eps_sq)
    logs = log1p(mantissa * spectrum, jnp.broadcast_to(power, spectrum.shape))
    bound = jnp.sum(count / (2 * max(n, 1)) * jnp.sum(logs, axis=0))
    return coding_rate(z, eps_sq=eps_sq) - bound - penalty / 2 * moment_residual(z, weights, atoms, spectrum)


@everywhere
def token_statistics_coding_rate(z, bases, membership, *, eps_sq):
    """Variational compression term of ToST, to be minimised: ½ Σ_k (n_k/n) Σ_i log(1 + d/(n_k ε²)
    (U_kᵀZᵀΠ_kZU_k)_ii).

    Only second moments of projected tokens enter: linear in n and in p. With orthonormal columns in each U_k
    that span the tokens of group k (any square orthogonal U_k does) it is an upper bound of
    `class_coding_rate`, tight where U_k diagonalises ZᵀΠ_kZ. The scale is d/ε², not p/ε².

    Args:
      z: tokens `[..., n, d]`; bases: `[k, d, p]`; membership: weights `[..., n, k]` over the subspaces.
      eps_sq: ε² > 0.

    Returns:
      `[...]` fp32, nats, ≥ 0. By the weights of an empty group the gradient is the one-sided derivative.

    Raises:
      ValueError: as for `class_coding_rate` and `subspace_coding_rate`; integer labels; another number of
        subspaces.

    Source: Wu et al., ToST (arXiv 2412.17810), as in Learning Deep Representations of Data Distributions
    (book), section Linear-Time Attention: Token Statistics Transformer; its gradient step is the TSSA
    operator.

    >>> import jax.numpy as jnp
    >>> z, classes = jnp.eye(4), jnp.eye(2)[jnp.array([0, 0, 1, 1])]
    >>> bases = jnp.stack([jnp.eye(4), jnp.eye(4)])
    >>> round(float(token_statistics_coding_rate(z, bases, classes, eps_sq=0.5)), 4)
    1.6094
    """
    z, bases = arguments.tokens_and_bases(z, bases)
    if arguments.is_labels(membership, z):
        raise ValueError("membership: integer labels were given; weights [..., n, k] are accepted")
    arguments.same_size("membership", membership, -1, bases.shape[0], "the subspaces of bases")
    arguments.positive("eps_sq", eps_sq)
    weights, z = jnp.asarray(membership, jnp.float32), z.astype(jnp.float32)
    # Tokens with a largest entry of order one: their squares neither overflow nor vanish.
    height = largest_exponent(z, (-2, -1))
    unit, bases = shift(z, -height), bases.astype(jnp.float32)
    squares = jnp.square(jnp.einsum("...nd,kdp->...nkp", unit, bases, precision=HIGHEST))
    moments = jnp.einsum("...nk,...nkp->...kp", weights, squares, precision=HIGHEST)
    count = jnp.sum(weights, axis=-2)

    mantissa, power = quotient(z.shape[-1], jnp.where(count > 0, count, 1.0), eps_sq)
    grown = mantissa[..., None] * moments
    logs = jnp.sum(log1p(grown, jnp.broadcast_to(power[..., None] + height, grown.shape)), axis=-1)
    # An empty group that receives the token z: n_k Σ log(1 + d/ε² (u·z)²), for n_k from 0 on.
    mantissa, power = quotient(z.shape[-1], eps_sq)
    grown = lax.stop_gradient(mantissa * squares)
    alone = jnp.sum(log1p(grown, jnp.broadcast_to(power + height[..., None], grown.shape)), axis=-1)
    first = jnp.sum(weights * alone, axis=-2)
    return 0.5 * jnp.sum(jnp.where(count > 0, count * logs, first), axis=-1) / max(z.shape[-2], 1)


@everywhere
def simdino_regularizer(z, *, eps_sq=0.05, gamma=1.0, mask=None):
    """Coding-rate regulariser of SimDINO, to be added to a loss that is minimised: −γ ½ logdet(I + d/ε² Γ),
    Γ = ZᵀZ/n.

    Γ is the uncentred second moment, as in the released code; subtract the mean from z for the covariance. The
    loss takes the mean over the global views; the released one has γ = (d + n)/(d n).

    Args:
      z: features `[..., n, d]` of n samples (unit norm in the paper); one value per leading index (view).
      eps_sq: ε² > 0 (released: 0.05 in the commands and for SimDINOv2, under the name eps). gamma: γ.
      mask: `[..., n]`, non-zero for samples, zero for padding; n then counts the samples only.

    Returns:
      `[...]` fp32, nats times γ, ≤ 0 for γ ≥ 0.

    Raises:
      ValueError: as for `coding_rate`.

    Source: Wu et al., SimDINO (arXiv 2502.10385), as in Learning Deep Representations of Data Distributions
    (book), section Simplified Contrastive Learning; RobinWu218/SimDINO, `simdinov2/loss/dino_clstoken_loss.py`.

    >>> import jax.numpy as jnp
    >>> round(float(simdino_regularizer(jnp.eye(4), eps_sq=0.5, gamma=0.5)), 4)
    -1.0986
    """
    return -gamma * coding_rate(z, eps_sq=eps_sq, mask=mask)


@everywhere
def emp_ssl_total_coding_rate(z, *, eps_sq=0.2):
    """Total coding rate of EMP-SSL, to be maximised: (1/v) Σ_i ½ logdet(I + d/(b ε²) Z_iᵀZ_i) over v patches
    of an image.

    The released loss adds its negative. It is neither the rate of all patches together nor their sum.

    Args:
      z: features `[..., v, b, d]`: v patches of each of b images (unit norm in the paper).
      eps_sq: ε² > 0 (released: 0.2, under the name eps).

    Returns:
      `[...]` fp32, nats, ≥ 0.

    Raises:
      ValueError: z of another rank or dtype, eps_sq ≤ 0.

    Source: Tong et al., EMP-SSL (arXiv 2304.03977); tsb0601/EMP-SSL, `loss.py` and `main.py`.

    >>> import jax.numpy as jnp
    >>> round(float(emp_ssl_total_coding_rate(jnp.stack([jnp.eye(4), jnp.zeros((4, 4))]), eps_sq=0.5)), 4)
    1.0986
    """
    z = arguments.floating("z", z, "... v b d")
    return jnp.sum(coding_rate(z, eps_sq=eps_sq), axis=-1) / max(z.shape[-3], 1)
