"""The table of what is said of arrays by their path: weight decay's column. Placement is tested with the mesh."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from crate_jax import InputError, models
from crate_jax.models import partition
from crate_jax.training.optim import decay_mask

# Every family as it is by default, and with each part that only a switch brings.
CONFIGS = {name: family.config() for name, family in models.FAMILIES.items()} | {
    "projection head": models.CRATEConfig(head_hidden=8, pool="mean"),
    "learned steps": models.CRATEConfig(learn_steps=True, output="fixed"),
    "biases": models.IGPTConfig(use_bias=True, num_classes=3),
    "learned steps of tokens": models.CRATEGPTConfig(learn_steps=True, dim=64, heads=1),
}
# By the last part of a parameter's path. Whoever adds a family says here what its parameters are.
DECAYED = {"bases", "output", "dictionary", "decoder", "kernel", "token_embedding"}
NOT_DECAYED = {
    *("scale", "tssa_scale", "mlp_scale", "bias", "base_bias", "temperature"),
    *("position_embedding", "decoder_position_embedding", "class_token", "mask_token"),
    *("compression_step", "step_size", "penalty", "fixed_output"),
}


def paths(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_decayed(name):
    config = dataclasses.replace(CONFIGS[name], depth=2)
    mask = decay_mask(models.create(config).abstract_params)
    for path, decayed in paths(mask).items():
        last = path.split("/")[-1]
        assert last in DECAYED | NOT_DECAYED, path
        assert decayed == (last in DECAYED), path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_decides_for_every_parameter(name):
    for path in paths(models.create(dataclasses.replace(CONFIGS[name], depth=1)).abstract_params):
        partition.is_decayed(path, 2**40)  # However large it is.


def test_a_large_parameter_of_no_row_is_an_error_and_a_small_one_is_left_alone():
    small, large = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3,), (1024, 1024)))
    assert decay_mask({"blocks": {"shift": small}}) == {"blocks": {"shift": False}}
    with pytest.raises(InputError, match="no rule matches parameter blocks/memory, 4194304 bytes; add one"):
        decay_mask({"blocks": {"memory": large}})


def test_a_stack_is_not_gathered_whole():
    """The parameters of a model with two layers: those outside of the stack are gathered, each layer's when it runs."""
    params = {"head": {"kernel": jnp.zeros((8, 8))}, "blocks": {"mlp_in": {"kernel": jnp.zeros((2, 8, 8))}}}
    mesh = AbstractMesh((1, 2, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def gathered(tree, **options):
        with jax.sharding.use_abstract_mesh(mesh):
            return str(jax.make_jaxpr(partial(partition.gather, **options))(tree)).count(
                "sharding_constraint"
            )

    assert gathered(params) == 1
    assert gathered(jax.tree.map(lambda leaf: leaf[-1], params["blocks"])) == 1
    assert gathered(params, stacks=True) == 2
