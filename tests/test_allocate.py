"""The knapsack against brute force, and what any allocation must keep."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import DoesNotFit
from penjing.quality.allocate import (
    Choice,
    Item,
    Limits,
    frontier,
    least_bytes,
    least_kld,
    least_seconds,
    price,
)  # fmt: skip

_TYPES = ("q4_0", "q5_0", "q8_0", "f16")
choices = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(0, 1, allow_subnormal=False)), min_size=1, max_size=len(_TYPES)
)
menus = st.lists(choices, min_size=1, max_size=5)


def items_of(menu: list[list[tuple[int, float]]]) -> list[Item]:
    return [
        Item(
            (f"blk.{i}.ffn_up.weight",),
            "ffn_up",
            i,
            tuple(Choice(_TYPES[n], b, k) for n, (b, k) in enumerate(row)),
        )
        for i, row in enumerate(menu)
    ]


@given(menus, st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_no_assignment_is_better(menu, share):
    """Within the bytes, brute force over all assignments finds nothing with less divergence."""
    items = items_of(menu)
    least, most = (sum(f(c.n_bytes for c in i.choices) for i in items) for f in (min, max))
    limit = int(least + share * (most - least))
    found = least_kld(items, limit)
    best = min(
        sum(c.kld for c in chosen)
        for chosen in product(*(i.choices for i in items))
        if sum(c.n_bytes for c in chosen) <= limit
    )

    assert found.n_bytes <= limit
    assert found.kld == pytest.approx(best, rel=1e-4, abs=1e-9)
    assert price(items, found.types) == found


timed = st.lists(
    st.lists(
        st.tuples(
            st.integers(1, 1000), st.floats(0, 1, allow_subnormal=False), st.integers(1, 100), st.integers(1, 100)
        ),
        min_size=1, max_size=len(_TYPES),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def timed_items(menu) -> list[Item]:
    return [
        Item(
            (f"blk.{i}.ffn_up.weight",),
            "ffn_up",
            i,
            tuple(Choice(_TYPES[n], *row) for n, row in enumerate(rows)),
        )
        for i, rows in enumerate(menu)
    ]


def sums(chosen) -> tuple[float, ...]:
    return tuple(
        sum(getattr(c, n) for c in chosen) for n in ("n_bytes", "kld", "prefill_seconds", "decode_seconds")
    )


@given(timed, st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=80, deadline=None)
def test_the_least_time_within_all_limits(menu, shares):
    """Limits on bytes, divergence and both phases: brute force finds nothing faster, and looser is no worse."""
    items = timed_items(menu)
    every = [sums(chosen) for chosen in product(*(i.choices for i in items))]
    ends = list(zip(*every, strict=True))
    limits = [min(e) + share * (max(e) - min(e)) + 1e-9 for e, share in zip(ends, shares, strict=True)]
    within = [s for s in every if all(value <= limit for value, limit in zip(s, limits, strict=True))]
    if not within:
        with pytest.raises(DoesNotFit):
            least_seconds(items, Limits(*limits))
        return
    found = least_seconds(items, Limits(*limits))
    best = min(s[2] + s[3] for s in within)

    assert best <= found.seconds <= best * (1 + 2e-3)
    assert found.n_bytes <= limits[0] and found.kld <= limits[1] * (1 + 1e-6) + 1e-9
    looser = least_seconds(items, Limits(*(2 * limit for limit in limits)))
    assert looser.seconds <= found.seconds * (1 + 2e-3)
    assert least_seconds(items, Limits(), "decode_seconds").decode_seconds <= found.decode_seconds * (
        1 + 2e-3
    )


@given(menus, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_smallest_within_a_divergence(menu, share):
    """The other way round: no assignment within the divergence takes fewer bytes."""
    items = items_of(menu)
    least, most = (sum(f(c.kld for c in i.choices) for i in items) for f in (min, max))
    limit = least + share * (most - least) + 1e-9
    found = least_bytes(items, limit)
    best = min(
        sum(c.n_bytes for c in chosen)
        for chosen in product(*(i.choices for i in items))
        if sum(c.kld for c in chosen) <= limit
    )

    assert found.kld <= limit * (1 + 1e-6) + 1e-9
    assert found.n_bytes <= best * 1.0001


@given(menus)
@settings(max_examples=30, deadline=None)
def test_a_frontier_falls(menu):
    """More bytes never cost divergence."""
    line = frontier(items_of(menu), points=6)

    assert all(a.n_bytes < b.n_bytes and b.kld <= a.kld + 1e-9 for a, b in pairwise(line))


def test_impossible_limits_are_refused_with_both_numbers():
    """One line with what is needed and what is there."""
    items = items_of([[(1000, 0.5), (2000, 0.1)]])

    with pytest.raises(DoesNotFit, match=r"0\.977 KiB.*10 B"):
        least_kld(items, 10)
    with pytest.raises(DoesNotFit, match=r"0\.1.*0\.01"):
        least_bytes(items, 0.01)


def test_no_long_run_of_the_lowest_format():
    """Ten layers that would all be cheapest at two bits: no five neighbours are."""
    row = (Choice("q2_K", 100, 0.010), Choice("q4_K", 200, 0.009))
    items = [Item((f"blk.{i}.ffn_up.weight",), "ffn_up", i, row) for i in range(10)]
    found = least_kld(items, 1300)
    low = [found.types[f"blk.{i}.ffn_up.weight"] == "q2_K" for i in range(10)]

    assert sum(low) >= 7
    assert not any(all(low[i : i + 5]) for i in range(6))
