"""Compiled text, written by hand: what is read of it can be counted with a pencil."""

from __future__ import annotations

import pytest

from vild_jax.plan import hlo

MESH = {'data': 4, 'fsdp': 2}
STATE = r'state\.params'
TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p0: f32[8,16], p1: f32[4]) -> bf16[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  ROOT %c = bf16[8,16]{1,0} convert(%p0)
}

%body (t: (s32[], f32[10])) -> (s32[], f32[10]) {
  %t = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[10]{0} get-tuple-element(%t), index=1
  %ar.in = f32[10]{0} all-reduce(%x), channel_id=4, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %next = (s32[], f32[10]{0}) tuple(%i, %ar.in)
}

%condition (t2: (s32[], f32[10])) -> pred[] {
  %t2 = (s32[], f32[10]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

%all-reduce-scatter.1 (q: f32[64]) -> f32[8] {
  %q = f32[64]{0} parameter(0)
  %ar.s = f32[64]{0} all-reduce(%q), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = f32[8]{0} dynamic-slice(%ar.s), dynamic_slice_sizes={8}
}

ENTRY %main (p: f32[8,16], i: f32[4]) -> f32[8] {
  %weight = f32[8,16]{1,0} parameter(0), metadata={op_name="state.params['kernel']"}
  %image = f32[4]{0} parameter(1), metadata={op_name="batch.image"}
  %small = bf16[8,16]{1,0} fusion(%weight, %image), kind=kLoop, calls=%fused
  %ag.s = (f32[8,16]{1,0}, f32[8,32]{1,0}) all-gather-start(%weight), replica_groups=[4,2]<=[8], dimensions={1}, \
metadata={op_name="jit(step)/gather"}
  %ag.d = f32[8,32]{1,0} all-gather-done(%ag.s)
  %bad = f32[16]{0} all-gather(%image), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}, \
metadata={op_name="jit(step)/conv"}
  %pair = (f32[4]{0}, bf16[16]{0}) all-reduce(%image, %other), replica_groups={}, to_apply=%add
  %other = bf16[16]{0:T(128)(2,1)} convert(%bad)
  %cp.s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%image), source_target_pairs={{0,1},{1,0}}
  %cp.d = f32[4]{0} collective-permute-done(%cp.s)
  %named = f32[4]{0} all-to-all(%image), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, \
dimensions={0}
  %start = (s32[], f32[10]{0}) tuple(%image, %image)
  %loop = (s32[], f32[10]{0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %rs = f32[8]{0} fusion(%loop), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


@pytest.fixture(scope='module')
def found():
  return {(c.kind, c.bytes): c for c in hlo.collectives(hlo.parse(TEXT), MESH, STATE)}


def test_every_collective_once_by_kind_bytes_and_axes(found):
  # Of a start and its done one, what comes out; in tiles of 128, 16 bf16 are 256 bytes; the loop runs three times.
  expected = {
    ('all-gather', 1024): (('fsdp',), 1),
    ('all-gather', 64): (('data',), 1),
    ('collective-permute', 16): (('fsdp',), 1),
    ('all-to-all', 16): (('fsdp',), 1),
    ('all-reduce', 40): (('data',), 3),
    ('reduce-scatter', 256): (('data', 'fsdp'), 1),
    ('all-reduce', 16 + 256): (('data', 'fsdp'), 1),
  }
  assert {key: (c.axes, c.times) for key, c in found.items()} == expected


def test_a_gather_of_parameters_is_told_from_one_of_pictures(found):
  assert found['all-gather', 1024].of_state and found['all-gather', 1024].op_name == 'jit(step)/gather'
  assert not found['all-gather', 64].of_state and found['all-gather', 64].op_name == 'jit(step)/conv'


def test_sources_go_through_fusions_and_loops():
  program = hlo.parse(TEXT)
  of = lambda computation, name: hlo.sources(program, program.computations[computation][name])
  assert of('fused', 'c') == {"state.params['kernel']"}  # the fusion has the picture too, but not for this
  assert of('main', 'small') == {"state.params['kernel']", 'batch.image'}
  assert of('body', 'ar.in') == {'batch.image'}


@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ('f32[]', 4),
    ('pred[3]{0}', 3),
    ('bf16[2,3]{1,0}', 12),
    ('s4[8]{0}', 4),
    ('c64[2]', 16),
    ('token[]', 0),
    ('(f32[2]{0}, (u8[3]{0}, f8e4m3fn[5]{0}))', 16),
    ('f32[1,200]{1,0:T(8,128)}', 8 * 256 * 4),
    ('bf16[9,5]{0,1:T(8,128)(2,1)}', 8 * 128 * 2),  # the first dimension is the fastest
  ],
)
def test_bytes_of_types(shape, size):
  assert sum(array.bytes for array in hlo.arrays(shape)) == size


def test_the_largest_arrays_are_those_that_are_stored():
  rows = hlo.largest(hlo.parse(TEXT), 3)
  assert [row[:2] for row in rows] == [(1024, 'f32[8,32]'), (512, 'f32[8,16]'), (256, 'bf16[16]')]
  assert not hlo.arrays('f32[8]{0:T(128)S(1)}')[0].in_hbm  # in VMEM


def test_groups_of_an_unknown_form_have_no_axes():
  assert hlo.axes('replica_groups=@mesh<a=2>{a}', MESH) is None


@pytest.mark.parametrize(
  'text',
  [  # both of one refusal by libtpu 0.0.42: what it prints, and what it raises
    'Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) exceeds '
    'available HBM (15.75G).',
  ],
)
def test_a_program_that_does_not_fit_says_how_much_it_needs(text):
  assert hlo.refused(text) == {'needed': int(20.5 * 2**30), 'available': int(15.75 * 2**30)}
  assert hlo.refused('INTERNAL: something else') is None
