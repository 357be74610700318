"""Estimates from the text of a compiled program, on an excerpt in the compiler's format: counts, times, transfers."""

import pytest

from pplx_jax.core.errors import BadInput
from pplx_jax.plan.chips import Topology
from pplx_jax.plan.estimate import estimate
from pplx_jax.plan.hlo import parse, runs, trip_count
from pplx_jax.plan.kernels import BUNDLES_PER_TILE, VOCABULARY_SLOTS, kernel_cycles, visited_share
from pplx_jax.plan.links import Place, buffer_bytes, first_group, received_bytes, transfers

PROGRAM = """
HloModule jit_step, is_scheduled=true

%body.1 (p: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %p = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %w = bf16[2,64,128]{2,1,0} constant({...})
  %all-gather.1 = bf16[128,128]{1,0} all-gather(%w), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  %product.1 = bf16[64,128]{1,0} fusion(%x, %all-gather.1), kind=kOutput, calls=%fused.1, backend_config={"estimated_cycles":"1500"}
  %q = bf16[1,2,1,512,128]{4,3,2,1,0} bitcast(%x)
  %k = bf16[1,2,1024,128]{3,2,1,0} bitcast(%x)
  %attention_forward.2 = (bf16[1,2,1,512,128]{4,3,2,1,0}, f32[1,2,1,512]{3,2,1,0}) custom-call(%q, %k, /*index=2*/%k), custom_call_target="tpu_custom_call"
  %one = s32[]{:T(128)} constant(1)
  ROOT %t = (s32[], bf16[64,128]) tuple(%one, %product.1)
}

%condition.1 (p.2: (s32[], bf16[64,128])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, bf16[64,128]{1,0}) parameter(0)
  %count = s32[]{:T(128)} constant(36), backend_config={"flag_configs":[]}
  %i = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %count), direction=LT
}

%fused.1 (a: bf16[64,128], b: bf16[128,128]) -> bf16[64,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = bf16[128,128]{1,0} parameter(1)
  ROOT %convolution.1 = bf16[64,128]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%dear.1 (c: f32[]) -> f32[] {
  %c = f32[] parameter(0)
  ROOT %e.1 = f32[] add(%c, %c), backend_config={"estimated_cycles":"8000"}
}

%cheap.1 (d: f32[]) -> f32[] {
  ROOT %d = f32[] parameter(0)
}

%fused.2 (f: f32[1024]) -> f32[4096] {
  %f = f32[1024]{0} parameter(0)
  ROOT %all-gather.9 = f32[4096]{0} all-gather(%f), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, backend_config={"async_collective_fusion_config":{}}
}

ENTRY %main.1 (x.1: bf16[64,128]) -> f32[] {
  %x.1 = bf16[64,128]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[64,128]) tuple(%zero, %x.1)
  %while.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}) while(%start), condition=%condition.1, body=%body.1
  %p.9 = f32[] constant(1)
  %either = f32[] conditional(%zero, %p.9, %p.9), branch_computations={%cheap.1, %dear.1}
  %async-collective-start = (f32[1024]{0}, f32[4096]{0}, u32[]) fusion(%x.1), kind=kCustom, calls=%fused.2
  %async-collective-done = f32[4096]{0} fusion(%async-collective-start), kind=kCustom, calls=%fused.2
  %sum = f32[512]{0} all-reduce(%p.9), channel_id=3, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add.1
  ROOT %all-reduce.2 = f32[] add(%either, %p.9), backend_config={"estimated_cycles":"100"}
}
"""  # noqa: E501 the compiler's own lines
V5E = Topology("v5e:2x4")
# Two slices of four chips in a row.
PLACES = [Place(slice_, (0, place)) for slice_ in (0, 1) for place in range(4)]


def test_a_loop_runs_as_often_as_its_condition_says():
    module, entry = parse(PROGRAM)
    loop = next(each for each in module[entry] if each.opcode == "while")
    assert trip_count(module, loop) == 36
    times = {run.instruction.name: run.times for run in runs(module, entry, 0.25, set())}
    assert times["product.1"] == times["convolution.1"] == 36
    assert times["e.1"] == 0.25 and times["d"] == 0.75 and times["sum"] == 1


def test_arrays_operands_and_cycles_of_an_instruction():
    module, _ = parse(PROGRAM)
    kernel = next(each for each in module["body.1"] if each.opcode == "custom-call")
    assert kernel.arrays == [("bf16", (1, 2, 1, 512, 128)), ("f32", (1, 2, 1, 512))]
    assert kernel.operands == ["q", "k", "k"] and kernel.cycles is None
    assert kernel.bytes == 2 * 512 * 128 * 2 + 2 * 512 * 4 and kernel.largest_bytes == 2 * 512 * 128 * 2


def test_a_step_is_the_sum_of_its_parts():
    found = estimate(PROGRAM, PLACES, V5E, branch_share=0.25, visited_share=1.0)
    assert found.compiler_seconds == pytest.approx((36 * 1500 + 0.25 * 8000 + 100) / 1.5e9)
    # Two heads of 512 queries on 1,024 keys: four tiles.
    assert found.kernel_seconds == {
        "attention_forward": pytest.approx(36 * 4 * BUNDLES_PER_TILE["attention_forward"]["v5e"] / 1.5e9)
    }
    assert found.product_flops == 36 * 2 * 64 * 128 * 128
    by_kind = {(each.kind, each.link, each.overlapped): each for each in found.transfers}
    gathered = by_kind["all-gather", "ici", False]
    assert gathered.count == 36 and gathered.bytes == 36 * 128 * 128 * 2 * 3 / 4
    assert by_kind["all-gather", "ici", True].count == 1  # two fusions carry it
    across = by_kind["all-reduce", "dcn", False]
    assert across.bytes == 512 * 4 and across.seconds == pytest.approx(512 * 4 / 3.125e9)
    assert found.exposed_seconds == pytest.approx(gathered.seconds + across.seconds)
    total = found.compiler_seconds + sum(found.kernel_seconds.values()) + found.exposed_seconds
    assert found.step_seconds(V5E, 0.0) == pytest.approx(total)


def test_a_step_is_never_faster_than_its_operations_at_the_peak():
    found = estimate(PROGRAM, PLACES, V5E, branch_share=0.25, visited_share=1.0)
    assert found.step_seconds(V5E, 197e12) == pytest.approx(1.0)


def test_what_has_no_estimate_is_named():
    without = PROGRAM.replace(', backend_config={"estimated_cycles":"1500"}', "").replace("attention_f", "other_f")
    found = estimate(without.replace("constant(36)", "parameter(1)"), PLACES, V5E, branch_share=1, visited_share=1)
    text = "; ".join(found.without_estimate)
    for part in ("trip count of while.1", "kernel other_forward", "products fused with asynchronous collectives"):
        assert part in text
    assert found.compiler_seconds >= 2 * 64 * 128 * 128 / 197e12
    empty = estimate("", PLACES, V5E, branch_share=1, visited_share=1)
    assert "no text" in empty.without_estimate[0] and empty.step_seconds(V5E, 197e12) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,4},{1,5}}", [0, 4]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", list(range(8))),
        ("source_target_pairs={{3,5},{5,3}}", [3, 5]),
        ("to_apply=%add", list(range(8))),
    ],
)
def test_the_devices_of_a_collective(text, group):
    assert first_group(text, 8) == group


def test_what_travels_by_the_ring_algorithm():
    assert received_bytes("all-gather", 800, 8) == 700 and received_bytes("all-reduce", 800, 8) == 1400
    assert received_bytes("reduce-scatter", 100, 8) == 700 and received_bytes("all-to-all", 800, 1) == 0


def test_a_group_of_two_slices_sends_within_them_first():
    (_, within, seconds), (link, across, _) = transfers("all-reduce", 800, PLACES, V5E)
    assert (within, link, across) == (1200, "dcn", 200)
    assert seconds == pytest.approx(1200 / 4.5e10)  # four chips in a row: its ends are not joined
    whole = [Place(0, (a, b)) for a in range(16) for b in range(16)]
    ((_, sent, seconds),) = transfers("all-gather", 256, whole, Topology("v5e:16x16"))
    assert (sent, seconds) == (255, pytest.approx(255 / 1.8e11))  # four links


def test_results_of_collectives_that_are_alive_together():
    module, _ = parse(PROGRAM)
    assert buffer_bytes({"body.1": module["body.1"]}) == 128 * 128 * 2
    assert buffer_bytes({"main.1": module["main.1"]}) == 4096 * 4


def test_kernels_by_their_schedules():
    module, _ = parse(PROGRAM)
    by_name = {each.name: each for each in module["body.1"]}
    kernel, operands = by_name["attention_forward.2"], [by_name["q"], by_name["k"]]
    forward = BUNDLES_PER_TILE["attention_forward"]
    assert kernel_cycles(kernel, operands, V5E, 0.5) == 2 * forward["v5e"]
    assert kernel_cycles(kernel, operands, Topology("v5p:2x2x1"), 1.0) == 4 * forward["v5p"] / 2  # two cores
    assert kernel_cycles(by_name["product.1"], operands, V5E, 1.0) is None


def test_kernels_without_a_schedule_take_their_products_at_the_peak():
    ironwood = Topology("tpu7x:2x2x1")
    places = [Place(each.slice, (*each.coords, 0)) for each in PLACES]  # of three axes
    found = estimate(PROGRAM, places, ironwood, branch_share=0.25, visited_share=0.5)
    # Two products of 512 x 512 scores of a head of 128, in four tiles of which half are visited, 36 times.
    least = 36 * 2 * 2 * (2 * 512 * 512 * 128) / 1153.5e12
    assert found.kernel_seconds == {"attention_forward": pytest.approx(least)}
    assert "kernel attention_forward, taken at the peak" in found.without_estimate
    with_schedule = estimate(PROGRAM, PLACES, V5E, branch_share=0.25, visited_share=0.5).without_estimate
    assert not any("attention" in part for part in with_schedule)


def test_the_vocabulary_loss_by_its_products_and_positions():
    block, width, classes = 2048, 1024, 4096
    program = f"""HloModule m, is_scheduled=true

ENTRY %main.1 (l: s32[1], h: bf16[{block},{width}], t: bf16[{classes},{width}]) -> f32[8,8] {{
  %l = s32[1]{{0}} parameter(0)
  %h = bf16[{block},{width}]{{1,0}} parameter(1)
  %t = bf16[{classes},{width}]{{1,0}} parameter(2)
  %vocab_scores.3 = f32[8,8]{{1,0}} custom-call(%l, %h, %t), custom_call_target="tpu_custom_call"
}}
"""
    product = 2 * block * width * classes / 197e12 / VOCABULARY_SLOTS["vocab_scores"]["v5e"]
    for positions, blocks in ((0, 0), (1, 1), (block, 1), (block + 1, 2)):
        shares = {"branch_share": 1.0, "visited_share": 1.0, "predicted_positions": positions}
        found = estimate(program, PLACES, V5E, **shares)
        assert found.kernel_seconds == {"vocab_scores": pytest.approx(blocks * product)}
        assert found.without_estimate == []
        least = estimate(program, PLACES, Topology("tpu7x:2x2x1"), **shares)
        assert least.kernel_seconds == {"vocab_scores": pytest.approx(blocks * 2 * block * width * classes / 1153.5e12)}
        assert least.without_estimate == ["kernel vocab_scores, taken at the peak"]


def test_a_packed_row_costs_the_tiles_that_its_texts_meet():
    assert visited_share([4096], 1, 4096) == 1.0
    assert visited_share([256] * 16, 1, 4096) == 16 * 256 * 512 / 4096**2
    assert visited_share([], 1, 4096) == 0.0


@pytest.mark.parametrize("name, slices", [("v4:2x2", 1), ("v5e", 1), ("v5e:2y2", 1), ("v5e:2x2", 0), ("v5e:0x2", 1)])
def test_an_unknown_topology_is_bad_input(name, slices):
    with pytest.raises(BadInput, match="such as v5e:16x16"):
        Topology(name, slices)
