"""cuDNN's attention without a GPU: what is asked of the custom call, with a stand-in that answers as cuDNN does, and how the
call is compiled for an H100.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, environment
from jax.sharding import AbstractMesh, AxisType

from crate_jax import InputError, models
from crate_jax.models import cudnn
from tests.models.test_attention import close, reference


def answer(target, shapes, config, query, key, value, *rest):
    """The custom call by its documented meaning, with NaN wherever that says nothing."""
    attention = json.loads(config)["cudnn_fmha_backend_config"]
    backward = target == "__cudnn$fmhaSoftmaxBackward"
    assert target in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
    (b, n, heads, p), m = query.shape, key.shape[1]
    assert n % 8 == m % 8 == p % 8 == 0
    assert attention["intermediate_tensor_shape"]["dimensions"] == [str(x) for x in (b, heads, n, m)]
    statistics, grad, out = (rest[:3], rest := rest[3:])[0] if backward else (None, None, None)
    padded, causal = "PADDING" in attention["mask_type"], "CAUSAL" in attention["mask_type"]
    assert attention["mask_type"] in ("NO_MASK", "PADDING", "CAUSAL", "PADDING_CAUSAL")
    queries, keys = rest if padded else (jnp.full(b, n), jnp.full(b, m))
    allowed = (jnp.arange(m) < keys[:, None])[:, None, None, :]
    if causal:
        allowed = allowed & jnp.tril(jnp.ones((n, m), bool))
    scores = attention["fmha_scale"] * jnp.einsum("bihp,bjhp->bhij", query, key)
    scores = jnp.where(allowed, scores, -jnp.inf)
    present = (jnp.arange(n) < queries[:, None])[:, None, :]
    if not backward:
        log_sum = jax.nn.logsumexp(scores, axis=-1)
        found = jnp.einsum("bhij,bjhp->bhip", jnp.exp(scores - log_sum[..., None]), value)
        results = [jnp.where(present[..., None], found, jnp.nan), jnp.where(present, log_sum, jnp.nan)]
    else:
        weights = jnp.exp(scores - statistics[..., None])
        total = jnp.einsum("bihp,bihp->bhi", grad, out)
        grad_scores = weights * (jnp.einsum("bihp,bjhp->bhij", grad, value) - total[..., None])
        grad_scores = attention["fmha_scale"] * grad_scores
        results = [
            jnp.einsum("bhij,bjhp->bhip", grad_scores, key),
            jnp.einsum("bhij,bihp->bhjp", grad_scores, query),
            jnp.einsum("bhij,bihp->bhjp", weights, grad),
        ]
        is_key = (jnp.arange(m) < keys[:, None])[:, None, :, None]
        results[1:] = [jnp.where(is_key, x, jnp.nan) for x in results[1:]]
    assert [x.shape for x in results] == [x.shape for x in shapes]
    return results


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(cudnn, "_custom_call", answer)


OPTIONS = {
    "all": {},
    "causal": {"causal": True},
    "real": {"real": 9},
    "lengths": {"lengths": np.array([3, 10])},
    "causal lengths": {"causal": True, "lengths": np.array([3, 10])},
    "an example with none": {"lengths": np.array([0, 10])},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("n", [10, 16])
def test_values_and_gradients_are_the_references(stand_in, n, name):
    tokens, key, value, grad = jax.random.normal(jax.random.key(0), (4, 2, n, 3, 8))
    options = {"causal": False, "lengths": None, "real": None, "scale": 0.3, **OPTIONS[name]}
    lengths = options["lengths"]
    call = {**options, "mask": None, "lengths": None if lengths is None else jnp.asarray(lengths)}
    out, pullback = jax.vjp(partial(cudnn.attend, **call), tokens, key, value)
    expected, gradients = reference(tokens, key, value, **options)
    close(out, expected)
    for found, wanted in zip(pullback(grad), gradients(np.asarray(grad, np.float64)), strict=True):
        close(found, wanted)
    out, pullback = jax.vjp(partial(cudnn.attend_shared, **call), tokens)
    expected, gradients = reference(tokens, tokens, tokens, **options)
    close(out, expected)
    close(pullback(grad)[0], sum(gradients(np.asarray(grad, np.float64))))


def test_a_mask_is_refused():
    tokens = jnp.zeros((1, 8, 1, 8))
    with pytest.raises(InputError, match="mask of attention: found one for kernel cudnn; accepted: lengths"):
        cudnn.attend_shared(
            tokens, causal=False, mask=jnp.ones((8, 8), bool), lengths=None, real=None, scale=1.0
        )


@pytest.mark.parametrize(("batch", "heads"), [(4, 2), (3, 2), (4, 3)])
def test_a_mesh_splits_batch_and_heads_where_they_divide(monkeypatch, batch, heads):
    seen = []
    monkeypatch.setattr(cudnn, "_custom_call", lambda *x: (seen.append(x[3].shape), answer(*x))[1])
    tokens = jax.ShapeDtypeStruct((batch, 10, heads, 8), jnp.float32)
    options = {"causal": False, "mask": None, "lengths": None, "real": None, "scale": 0.3}
    attend = partial(cudnn.attend_shared, **options)
    both = lambda tokens, grad: (attend(tokens), *jax.vjp(attend, tokens)[1](grad))  # noqa: E731
    mesh = AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        shapes = jax.eval_shape(both, tokens, tokens)
    assert [x.shape for x in shapes] == [tokens.shape] * 2
    part = (batch // 2 if batch % 2 == 0 else batch, 16, heads // 2 if heads % 2 == 0 else heads, 8)
    assert set(seen) == {part}


IMAGES = {"depth": 2, "image_size": 32, "patch_size": 8, "num_classes": 3, "attention_kernel": "cudnn"}
SMALL = {
    "crate": models.CRATEConfig(dim=16, heads=2, head_dim=8, **IMAGES),
    "mean": models.CRATEConfig(dim=16, heads=2, head_dim=8, pool="mean", **IMAGES),
    "crate_alpha": models.CRATEAlphaConfig(dim=16, heads=2, **IMAGES),
    "crate_mae": models.CRATEMAEConfig(dim=16, heads=2, head_dim=8, **{**IMAGES, "num_classes": 0}),
    "vit": models.ViTConfig(dim=16, heads=2, **IMAGES),
    "igpt": models.IGPTConfig(dim=16, depth=2, heads=2, num_positions=9, attention_kernel="cudnn"),
    "bert": models.IGPTConfig(
        dim=16, depth=2, heads=2, num_positions=9, causal=False, attention_kernel="cudnn"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scan"), [*((name, True) for name in SMALL), ("crate", False)])
def test_nothing_sees_the_padding(stand_in, monkeypatch, name, scan):
    """Tokens padded once for all layers: outputs, gradients and traces of a model are those without padding."""
    monkeypatch.setattr(cudnn, "DTYPES", ("bfloat16", "float32"))
    kernel = models.attention.KERNELS["cudnn"]._replace(dtypes=("float32",))
    monkeypatch.setitem(models.attention.KERNELS, "cudnn", kernel)
    config = dataclasses.replace(SMALL[name], dtype="float32", scan=scan)
    padded = models.create(config, "gpu")
    assert padded.resolved.attention_kernel == "cudnn"
    plain = models.create(dataclasses.replace(config, attention_kernel="xla"), "gpu")
    params = plain.init(jax.random.key(0))
    if name in ("igpt", "bert"):
        inputs = jax.random.randint(jax.random.key(1), (2, 9), 0, config.vocab_size)
        # The released head starts at zero, where no gradient would reach the layers.
        params["head"]["kernel"] = jax.random.normal(jax.random.key(3), params["head"]["kernel"].shape)
    else:
        inputs = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    seen = []
    monkeypatch.setattr(cudnn, "_custom_call", lambda *x: (seen.append(x[3].shape), answer(*x))[1])

    def value(model, params):
        out, _ = model.apply(params, inputs)
        return jnp.sum(jnp.sin(3 * out)), out

    (_, found), gradients = jax.value_and_grad(partial(value, padded), has_aux=True)(params)
    assert seen and all(shape[1] % 8 == 0 for shape in seen)
    (_, expected), wanted = jax.value_and_grad(partial(value, plain), has_aux=True)(params)
    close(found, expected, 1e-5)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        close(a, b, 1e-4)
    traces = [model.apply(params, inputs, trace=True)[1] for model in (padded, plain)]
    for a, b in zip(*map(jax.tree.leaves, traces), strict=True):
        close(a, b, 1e-4)


H100 = """
import functools, json, sys
import jax, jax.numpy as jnp
from crate_jax.models import cudnn
from crate_jax.planning import topology
(device,) = topology.devices(topology.parse("h100:1"))
found = {}
for n, p, causal in ((197, 64, False), (197, 48, False), (200, 64, False), (1024, 64, True)):
    x = jax.ShapeDtypeStruct((2, n, 3, p), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
    attend = functools.partial(
        cudnn.attend_shared, causal=causal, mask=None, lengths=None, real=None, scale=0.125
    )
    both = jax.jit(lambda x, grad: (attend(x), *jax.vjp(attend, x)[1](grad)))
    found[f"{n} {p}"] = both.lower(x, x).compile().as_text()
print(json.dumps(found))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the CUDA compiler is not installed"
)
def test_the_call_compiles_for_an_h100_that_is_not_here():
    done = subprocess.run(
        [sys.executable, "-c", H100],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in json.loads(done.stdout.splitlines()[-1]).values():
        for target in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
            assert text.count(f'custom_call_target="{target}"') == 1
        # Operands and results are read and written where they lie.
        assert " transpose(" not in text and " copy(" not in text
