"""Bytes moved, counted in small programs whose answer is known, and in what XLA makes of a function."""

import jax
import jax.numpy as jnp
import pytest

from crate_jax.planning import hlo, traffic

# 64 and 16 floats: 256 and 64 bytes.
PROGRAM = """HloModule step, entry_computation_layout={()->f32[]}

%fused (p0: f32[64], p1: f32[64]) -> f32[64] {
  %p0 = f32[64]{0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %product = f32[64]{0} multiply(%p0, %p1)
  ROOT %sum = f32[64]{0} add(%product, %p0)
}

%fused_slice (p0.1: f32[4,16], p1.1: s32[]) -> f32[16] {
  %p0.1 = f32[4,16]{1,0} parameter(0)
  %p1.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%p0.1, %p1.1, %zero), dynamic_slice_sizes={1,16}
  ROOT %view = f32[16]{0} bitcast(%row)
}

%fused_update (p0.2: f32[4,16], p1.2: f32[16], p2.2: s32[]) -> f32[4,16] {
  %p0.2 = f32[4,16]{1,0} parameter(0)
  %p1.2 = f32[16]{0} parameter(1)
  %p2.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %row.2 = f32[1,16]{1,0} bitcast(%p1.2)
  ROOT %updated = f32[4,16]{1,0} dynamic-update-slice(%p0.2, %row.2, %p2.2, %zero.2)
}

%body (arg: (s32[], f32[4,16], f32[4,16])) -> (s32[], f32[4,16], f32[4,16]) {
  %arg = (s32[], f32[4,16]{1,0}, /*index=2*/f32[4,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %read = f32[4,16]{1,0} get-tuple-element(%arg), index=1
  %written = f32[4,16]{1,0} get-tuple-element(%arg), index=2
  %slice_fusion.1 = f32[16]{0} fusion(%read, %i), kind=kLoop, calls=%fused_slice
  %update_fusion.1 = f32[4,16]{1,0} fusion(%written, %slice_fusion.1, %i), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[4,16]{1,0}, f32[4,16]{1,0}) tuple(%i, %read, %update_fusion.1)
}

%condition (arg.1: (s32[], f32[4,16], f32[4,16])) -> pred[] {
  %arg.1 = (s32[], f32[4,16]{1,0}, f32[4,16]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %limit = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%small (b0: f32[64]) -> f32[64] {
  %b0 = f32[64]{0} parameter(0)
  ROOT %small_copy = f32[64]{0} copy(%b0)
}

%large (b1: f32[64]) -> f32[64] {
  %b1 = f32[64]{0} parameter(0)
  %once = f32[64]{0} copy(%b1)
  ROOT %twice = f32[64]{0} copy(%once)
}

ENTRY %main (a: f32[64], b: f32[4,16], c: f32[4,16]) -> (f32[64], f32[4,16]) {
  %a = f32[64]{0} parameter(0)
  %b = f32[4,16]{1,0} parameter(1)
  %c = f32[4,16]{1,0} parameter(2)
  %add_fusion.7 = f32[64]{0} fusion(%a, %a), kind=kLoop, calls=%fused
  %attention.1 = (bf16[8,8]{1,0}, u8[100]{0}) custom-call(%a, %a), custom_call_target="__cudnn$fmhaSoftmax", config="("
  %branch = s32[] constant(0)
  %chosen = f32[64]{0} conditional(%branch, %a, %a), branch_computations={%small, %large}
  %init = (s32[], f32[4,16]{1,0}, f32[4,16]{1,0}) tuple(%branch, %b, %c)
  %loop = (s32[], f32[4,16]{1,0}, f32[4,16]{1,0}) while(%init), condition=%condition, body=%body
  %out = f32[4,16]{1,0} get-tuple-element(%loop), index=2
  ROOT %results = (f32[64]{0}, f32[4,16]{1,0}) tuple(%add_fusion.7, %out)
}
"""


def test_every_kind_of_instruction_in_a_known_program():
    found = traffic.moved(PROGRAM)
    assert {kind: (times, size) for kind, times, size in found.kinds} == {
        "add_fusion": (1, 3 * 256),
        # Two operands, 8 × 8 bfloat16 and the workspace.
        "__cudnn$fmhaSoftmax": (1, 2 * 256 + 128 + 100),
        "copy": (2, 4 * 256),
        # Four times one row of the four and the counter in, one row out; and the same with the row written.
        "slice_fusion": (4, 4 * (64 + 4 + 64)),
        "update_fusion": (4, 4 * (64 + 4 + 64)),
    }
    assert found.bytes == sum(size for *_, size in found.kinds)
    assert [size for *_, size in found.kinds] == sorted((size for *_, size in found.kinds), reverse=True)


def test_what_stays_on_the_chip_is_free():
    text = PROGRAM.replace("%a = f32[64]{0}", "%a = f32[64]{0:T(128)S(1)}")
    kinds = {kind: size for kind, _, size in traffic.moved(text, on_chip=True).kinds}
    assert kinds["add_fusion"] == 256
    assert traffic.moved(text).bytes == traffic.moved(PROGRAM).bytes


def test_shapes_and_their_bytes():
    assert hlo.shape_bytes("(f32[4,8]{1,0:T(8,128)}, bf16[3]{0}, pred[], u8[0]{0})") == 128 + 6 + 1
    assert hlo.shape_bytes("f8e4m3fn[16]{0}") == 16
    assert hlo.shape_bytes("token[]") == 0


@pytest.mark.parametrize("depth", [3, 5])
def test_a_scan_counts_as_often_as_it_runs(depth):
    """Whatever XLA fuses, each round reads its own weights once and no more than a few times the rest."""
    width, rows = 256, 8
    weights = jax.ShapeDtypeStruct((depth, width, width), jnp.float32)
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    scanned = jax.jit(lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
    found = traffic.moved(scanned.lower(weights, x).compile().as_text()).bytes
    one = 4 * width * width
    # The slice is read and, at most, written and read once more for the product.
    assert depth * one <= found <= depth * (3 * one + 12 * 4 * rows * width)
