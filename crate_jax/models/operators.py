"""MSSA and ISTA, the two operators that a white-box block is made of, with the switches between practice and theory."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from crate_jax import InputError, objectives
from crate_jax.models.attention import attend, attend_cached, attend_shared, cache_token
from crate_jax.models.config import ModelConfig
from crate_jax.models.layers import number, rows, scalar, uniform_init
from crate_jax.settings import one_of, setting

# Choices of CRATELayers, explained at `MSSA` and `ISTA`.
OUTPUTS = ("free", "tied", "transposed", "fixed", "identity")
ATTENTIONS = ("softmax", "linear")
FORMS = ("released", "orthogonal", "unrolled")


@dataclasses.dataclass(frozen=True)
class CRATELayers:
    """What determines the blocks of a CRATE, next to their width; the default values are the released model.

    `step_size` is η and `penalty` λ of the ISTA step, `compression_step` κ of the MSSA step; `learn_steps` makes parameters
    of the three, in each layer. `eps_sq` is ε² in the factors p/(N ε²) and d/(N ε²) of the derivation, N the number of
    tokens. The choices of `output`, `attention` and `ista` (with `ista_steps`) are listed at `MSSA` and `ISTA`, those of
    `update` at `crate.UPDATES`.
    """

    head_dim: int = setting(64, "Features of a head: dimension of a subspace.", least=1)
    step_size: float = setting(0.1, "Step size η of ISTA.", least=0)
    penalty: float = setting(0.1, "Sparsity penalty λ of ISTA.", least=0)
    compression_step: float = setting(1.0, "Step size κ of MSSA.", least=0)
    learn_steps: bool = setting(False, "Learn η, λ and κ, in each layer.")
    eps_sq: float = setting(0.5, "The ε² in the factors p/(N ε²) and d/(N ε²) of the derivation.", above=0)
    output: str = setting("free", "Output matrix of MSSA; free: learned, tied: as derived.", choices=OUTPUTS)
    update: str = setting("skip", "How MSSA's update joins the tokens: skip, negative or derived.")
    attention: str = setting("softmax", "How tokens are weighed in MSSA.", choices=ATTENTIONS)
    ista: str = setting("released", "Form of the ISTA step.", choices=FORMS)
    ista_steps: int = setting(2, "Steps of the unrolled form of ISTA.", least=1)

    @property
    def has_attention(self) -> bool:
        """Linear attention compares no tokens, so no kernel computes it."""
        return self.attention != "linear"


RELEASED = CRATELayers()


class MSSA(nnx.Module):
    """Multi-head subspace self-attention, one bases tensor U serving as query, key and value (CRATE eq. 12, Alg. 2).

    MSSA(Z) = Σ_k softmax(p^-½ (Z U_k)(Z U_k)ᵀ) (Z U_k) O_k, with `bases` U `[k, d, p]` and O `[k, p, d]`.

    Args:
      config: the model; its width, heads and types.
      layers: the switches.
        output: what O is.
          free: a learned `output`, and a learned bias (use_bias); what the released code has where the derivation has U_kᵀ.
          tied: β U_kᵀ with β = p/(N ε²), as derived (eq. 12).
          transposed: the d × d matrix [U_1 … U_K] where `tied` (without β) has its transpose.
          fixed: the random matrix that `free` starts from, never trained.
          identity: the heads side by side, no matrix at all.
        attention: softmax, or linear: the mean of the scores in its place (see `objectives.mssa`).
      causal: whether a token attends only to itself and those before it.
      stddev: of the normal distribution that U and O start from; None: uniform, as PyTorch's linear layers start.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: CRATELayers = RELEASED,
        *,
        use_bias: bool = True,
        causal: bool = False,
        stddev: float | None = None,
        rngs: nnx.Rngs,
    ):
        one_of("model.output", layers.output, OUTPUTS)
        one_of("model.attention", layers.attention, ATTENTIONS)
        dim, heads, head_dim = config.dim, config.heads, config.head_dim
        if layers.output in ("transposed", "identity") and heads * head_dim != dim:
            raise InputError(
                f"model.output: {layers.output!r} needs model.heads × model.head_dim = model.dim; "
                f"found {heads} × {head_dim} and {dim}"
            )
        self.kind, self.softmax, self.causal = layers.output, layers.attention == "softmax", causal
        self.dtype, self.kernel = config.compute_dtype, config.attention_kernel
        self.beta = head_dim / (config.sequence_length * layers.eps_sq)
        starts = [uniform_init(1 / math.sqrt(inputs)) for inputs in (dim, heads * head_dim)]
        into, init = starts if stddev is None else [nnx.initializers.normal(stddev)] * 2
        free, shape = layers.output == "free", (heads, head_dim, dim)
        self.bases = nnx.Param(into(rngs.params(), (heads, dim, head_dim)))
        self.output = nnx.Param(init(rngs.params(), shape)) if free else None
        self.fixed_output = nnx.Param(init(rngs.params(), shape)) if layers.output == "fixed" else None
        self.bias = nnx.Param(init(rngs.params(), (dim,))) if free and use_bias else None

    def __call__(self, z: jax.Array, *, real: int | None = None, wanted: int | None = None) -> jax.Array:
        """The update of the first `wanted` tokens, of `real` ones (see `stack.Block`)."""
        if not self.softmax:
            bases = self.bases[...].astype(self.dtype)
            out = objectives.mssa(
                z.astype(self.dtype), bases, self._output(), softmax=False, causal=self.causal
            )
            return self._add_bias(out)[:, :wanted]
        w = self._coordinates(z)
        if wanted is None or self.causal:
            mixed = attend_shared(w, causal=self.causal, real=real, kernel=self.kernel)
            return self._join(mixed[:, :wanted])
        # Few queries: there is little to gain from another kernel, and padding to lose.
        return self._join(attend(w[:, :wanted], w, w, real=real))

    def decode(self, z: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The update of one token `[b, d]`, given those before it; the cache `[b, k, n, p]` holds their projections.

        One tensor is query, key and value, so the cache is half as large as a transformer's.
        """
        projected = self._coordinates(z[:, None])[:, 0]
        cache = cache_token(cache, projected, position)
        return self._join(attend_cached(projected, cache, cache, position, softmax=self.softmax)), cache

    def project(self, z: jax.Array) -> jax.Array:
        """Coordinates of the tokens in every subspace, `[b, n, d]` → `[b, k, n, p]`."""
        return jnp.swapaxes(self._coordinates(z), 1, 2)

    def intermediates(
        self, z: jax.Array, normed: jax.Array, update: jax.Array, compressed: jax.Array, after: jax.Array
    ):
        """What `crate_jax.models.trace` reads of a compression step.

        Args:
          z: the tokens `[b, n, d]` before it. normed: their layer norm, which MSSA takes. update: what MSSA returned.
          compressed: the tokens after it. after: the layer norm of these by the same parameters.
        """
        return {
            "normed": normed,
            "mssa_in": z,
            "mssa_update": update,
            "mssa_out": compressed,
            "mssa_out_normed": after,
            "bases": self.bases[...],
            "subspace_in": self.project(normed),
            "subspace_out": self.project(after),
        }

    def _coordinates(self, z: jax.Array) -> jax.Array:
        """W = Z U, `[b, n, d]` → `[b, n, k, p]`, as one flat product: faster than one that carries the heads as an axis."""
        heads, dim, head_dim = self.bases.shape
        bases = jnp.swapaxes(self.bases[...].astype(self.dtype), 0, 1).reshape(dim, heads * head_dim)
        return (rows(z.astype(self.dtype)) @ bases).reshape(*z.shape[:-1], heads, head_dim)

    def _join(self, mixed: jax.Array) -> jax.Array:
        """Σ_k H_k O_k + b for `[…, k, p]`, as one flat product."""
        output = self._output()
        heads, head_dim, dim = output.shape
        out = mixed.reshape(-1, heads * head_dim) @ output.reshape(-1, dim)
        return self._add_bias(out.reshape(*mixed.shape[:-2], dim))

    def _output(self) -> jax.Array:
        """O `[k, p, d]`."""
        bases = self.bases[...]
        heads, dim, head_dim = bases.shape
        if self.output is not None:
            output = self.output[...]
        elif self.fixed_output is not None:
            output = jax.lax.stop_gradient(self.fixed_output[...])
        elif self.kind == "tied":
            output = self.beta * jnp.swapaxes(bases, 1, 2)
        elif self.kind == "transposed":
            output = jnp.swapaxes(bases, 0, 1).reshape(heads, head_dim, dim)
        else:
            output = jnp.eye(dim).reshape(heads, head_dim, dim)
        return output.astype(self.dtype)

    def _add_bias(self, x: jax.Array) -> jax.Array:
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class ISTA(nnx.Module):
    """Sparsification with a learned complete dictionary D `[d, d]`; tokens are rows, so z D is the papers' Dᵀz.

    Args:
      config: the model; its width, number of tokens and types.
      layers: the switches. `step_size` and `penalty` are η and λ, with `learn_steps` the values that two parameters start
        from. `ista` is the form of the step:
          released: relu(z + η z (D − DᵀD) − ηλ), one proximal step on the LASSO from the tokens themselves (CRATE eq. 17),
            exactly the released relu(z + η(Dᵀz − DᵀDz) − ηλ) with the d×d matrix formed once for all tokens.
          orthogonal: relu((1 + 4/(9(1 + α))) z D − 4λ/(9α)), α = d/(N ε²): the step derived for an orthogonal D (eq. 92),
            which D is at the start. There is no η.
          unrolled: `ista_steps` proximal steps from zero, z⁰ = 0, zⁱ⁺¹ = relu(zⁱ + η (x − zⁱDᵀ) D − ηλ).
    """

    def __init__(self, config: ModelConfig, layers: CRATELayers = RELEASED, *, rngs: nnx.Rngs):
        one_of("model.ista", layers.ista, FORMS)
        dim, orthogonal = config.dim, layers.ista == "orthogonal"
        self.form, self.steps, self.dtype = layers.ista, layers.ista_steps, config.compute_dtype
        self.alpha = dim / (config.sequence_length * layers.eps_sq)
        # torch.nn.init.kaiming_uniform_ with its default gain √2.
        init = nnx.initializers.orthogonal() if orthogonal else uniform_init(math.sqrt(6 / dim))
        self.dictionary = nnx.Param(init(rngs.params(), (dim, dim)))
        self.step_size = scalar(layers.step_size, learned=layers.learn_steps and not orthogonal)
        self.penalty = scalar(layers.penalty, learned=layers.learn_steps)

    def __call__(self, z: jax.Array) -> jax.Array:
        return self._step(rows(z.astype(self.dtype)), self.dictionary[...]).reshape(z.shape)

    def _step(self, z: jax.Array, dictionary: jax.Array) -> jax.Array:
        penalty = number(self.penalty)
        if self.form == "orthogonal":
            moved = (1 + 4 / (9 * (1 + self.alpha))) * (z @ dictionary.astype(self.dtype))
            return objectives.soft_threshold(moved, 4 * penalty / (9 * self.alpha), nonnegative=True)
        constants = {"step_size": number(self.step_size), "penalty": penalty}
        if self.form == "unrolled":
            return objectives.ista(z, dictionary, steps=self.steps, **constants)
        return objectives.ista_step(z, dictionary, **constants)
