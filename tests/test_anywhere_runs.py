"""Laws of runs of many requests and of many devices: who waits for whom, what fits, what is shared."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from penjing.cost import anywhere, constants
from penjing.cost.cases import cases
from penjing.cost.ways import Way
from test_anywhere import CARD, DENSE, HALF, MIXTURE, ONE, SERVING, job, rate


@pytest.mark.parametrize("asked, requests, expected", [(None, 40.0, 40), (100.0, 40.0, 40), (16.0, 40.0, 16)])
def test_no_more_run_at_once_than_there_are_requests(asked, requests, expected):
    """A batch never exceeds the requests of a run, whether or not a number at once was asked for."""
    few = job("in_flight", asked, requests=requests)

    assert expected == anywhere.batch_in_flight(cases([(CARD, DENSE, SERVING, few)]))[0]


def test_defaults_hang_on_a_server_and_not_on_what_is_asked():
    """A server starts 256 sequences where nobody tells it more; an engine that has all requests starts 2048."""
    asked = job("in_flight", 4000.0, prompt_tokens=8.0, output_tokens=8.0)
    served, offline = (cases([(CARD, DENSE, SERVING, replace(asked, served=s))]) for s in (True, False))

    assert [256, 2048] == [anywhere.batch_in_flight(c)[0] for c in (served, offline)]


def test_sequences_that_fit_are_whole_ones():
    """Half of a cache helps nobody."""
    c = cases([(CARD, DENSE, SERVING, job("in_flight", None, prompt_tokens=9000.0))])

    assert float(anywhere.capacity(c)[0]).is_integer()


def test_a_sequence_does_not_wait_for_its_own_prompt_between_tokens():
    """Alone, tokens follow one another as without load; among others, their prompts come in between."""
    k = constants.shipped()
    alone, many = (
        cases([(CARD, DENSE, SERVING, job("decode", n, loaded=True, requests=1000.0))]) for n in (1.0, 16.0)
    )
    one = anywhere.decode_seconds(alone, k, np.ones(1), alone.prompt + 100)

    assert pytest.approx(float(one[0])) == float(anywhere.loaded_token_seconds(alone, k)[0])
    step = anywhere.decode_seconds(many, k, np.full(1, 16.0), many.prompt + 100)
    assert anywhere.loaded_token_seconds(many, k) > step


def test_python_runs_ahead_of_the_device():
    """Of launching and computing, an eager pass takes the longer one, or a little more; others take both."""
    k, one = constants.shipped(), np.ones(1)
    for engine, hides in (("eager", True), ("serving", False)):
        c = cases([(CARD, DENSE, Way(engine, HALF), ONE)])
        parts = anywhere.decode_step(c, k, one, 1000 * one)
        busy = parts.products + parts.attention + parts.host

        assert (parts.hidden > 0) == hides
        assert max(busy, parts.launches) <= parts.total <= busy + parts.launches


def test_steps_without_graphs_start_like_eager_ones():
    """A server whose device has no graphs starts each kernel from Python, which a small model does not hide."""
    small = replace(DENSE, dense=0.2e9, head=0.05e9)

    assert rate(shapes=small, way=replace(SERVING, graphs=False)) < rate(shapes=small)


def test_runs_end_with_fewer_at_once():
    """The more requests a run has, the less its end costs; lengths that vary cost more than equal ones."""
    runs = [job("in_flight", 64.0, requests=n, varied=v) for v in (False, True) for n in (64.0, 6400.0)]
    short, long, varied, varied_long = (rate(job=r) for r in runs)

    assert varied < short and varied < varied_long < long
    assert pytest.approx(long) == rate(job=replace(runs[0], requests=None))
    assert rate(job=replace(runs[0], requests=65.0)) < short


def test_ranks_that_share_experts_hold_and_read_a_part():
    """With experts shared over data ranks more sequences fit than with whole replicas, and a few tokens on each rank
    read no more than all the experts together."""
    alone = Way("serving", HALF, data=8)
    flow = job("in_flight", None, prompt_tokens=3000.0)
    whole, shared = (cases([(CARD, MIXTURE, w, flow)]) for w in (alone, replace(alone, shared=True)))
    k = constants.shipped()

    assert anywhere.capacity(shared) > 2 * anywhere.capacity(whole)
    step = [anywhere.decode_step(c, k, np.full(1, 256.0), np.full(1, 100.0)) for c in (whole, shared)]
    assert step[1].memory < step[0].memory / 2 and step[1].exchanges > step[0].exchanges


def test_a_fixed_batch_beyond_the_memory_goes_in_turns():
    """A server takes as many as fit; twice as many then take twice as long. Other engines are taken at their word."""
    small = replace(CARD, memory_bytes=30e9)
    k, b = constants.shipped(), np.full(1, 4096.0)
    c = cases([(small, DENSE, SERVING, job("mixed", 4096.0))])

    assert anywhere.capacity(c) < 4096
    assert pytest.approx(2) == float(
        (anywhere.static_seconds(c, k, 2 * b) / anywhere.static_seconds(c, k, b))[0]
    )


def test_what_does_not_batch_reads_all_weights_for_each_sequence():
    """Engines that decode sequences one by one make no more tokens with many than with one."""
    way = Way("eager", HALF, batched=False)
    one, many = (rate(way=way, job=replace(ONE, sequences=n)) for n in (1.0, 16.0))

    assert pytest.approx(one) == many
    assert rate(way=replace(way, batched=True), job=replace(ONE, sequences=16.0)) > 4 * one


def test_stages_of_a_pipeline_work_at_the_same_time():
    """With as many parts of a batch as stages, each takes the time of its part."""
    many = replace(ONE, sequences=512.0)

    assert rate(job=many) < rate(way=replace(SERVING, pipeline=4), job=many) <= 4 * rate(job=many)
    assert pytest.approx(rate(), rel=0.3) == rate(way=replace(SERVING, pipeline=4))


def test_tensor_parallelism_over_nodes_pays_for_the_network():
    """Exchanges of 16 devices cost more than those of 8 by more than a doubling within a node does."""
    k = constants.shipped()
    four, eight, sixteen = (
        float(anywhere.decode_step(c, k, np.full(1, 64.0), np.full(1, 100.0)).exchanges[0])
        for c in (cases([(CARD, DENSE, replace(SERVING, tensor=t), ONE)]) for t in (4, 8, 16))
    )

    assert sixteen - eight > eight - four > 0
