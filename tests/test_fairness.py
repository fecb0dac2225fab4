"""Who is next, and who has had enough: laws of the line and of the bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penjing.serve.fairness import Bucket, Line

KEYS = st.sampled_from("abc")
ADDS = st.lists(st.tuples(KEYS, st.integers(1, 4), st.integers(1, 500)), max_size=40)


@given(ADDS)
def test_each_item_is_taken_once_and_in_turn_for_its_key(adds: list[tuple[str, int, int]]):
    """What was added comes out, whole, and for each key in the order in which it came."""
    line: Line[int] = Line()
    for number, (key, weight, _) in enumerate(adds):
        line.add(key, number, weight)
    taken = []
    while (item := line.take(4, 4)) is not None:
        taken.append(item)
        line.charge(adds[item][0], adds[item][2])

    assert sorted(taken) == list(range(len(adds))) and len(line) == 0
    for key in "abc":
        own = [n for n in taken if adds[n][0] == key]
        assert own == sorted(own)


@given(
    st.lists(st.integers(1, 500), min_size=20, max_size=20),
    st.lists(st.integers(1, 500), min_size=20, max_size=20),
)
def test_two_who_always_ask_get_the_same(one: list[int], other: list[int]):
    """While both wait, what they were given never differs by more than the largest request."""
    line: Line[tuple[str, int]] = Line()
    for key, costs in (("a", one), ("b", other)):
        for cost in costs:
            line.add(key, (key, cost))
    given_so_far = {"a": 0, "b": 0}
    left = {"a": 20, "b": 20}
    while left["a"] and left["b"]:
        key, cost = line.take(1, 2) or ("", 0)
        line.charge(key, cost)
        given_so_far[key] += cost
        left[key] -= 1
        assert abs(given_so_far["a"] - given_so_far["b"]) <= 500


def test_one_who_comes_back_has_no_credit():
    """After a time away a key takes turns, instead of catching up on all that it missed."""
    line: Line[str] = Line()
    for _ in range(10):
        line.add("busy", "busy")
        line.take(1, 2)
        line.charge("busy", 100)
    for _ in range(4):
        line.add("busy", "busy")
        line.add("late", "late")
    order = []
    while (item := line.take(1, 2)) is not None:
        order.append(item)
        line.charge(item, 100)

    assert order[:2].count("late") <= 1 and order[:4].count("late") <= 3


def test_who_was_alone_owes_nothing_afterwards():
    """What a key was given while nobody else asked is forgotten when nothing is under way any more."""
    line: Line[str] = Line()
    for _ in range(16):
        line.add("early", "early")
        line.take(1, 16)
        line.charge("early", 3000)
    line.forget()
    for _ in range(4):
        line.add("busy", "busy")
    line.add("early", "early")

    order = []
    while (item := line.take(1, 2)) is not None:
        order.append(item)
        line.charge(item, 100)
    assert "early" in order[:2]


def test_equals_do_not_push_each_other_out():
    """Room is made by a key that would still have as many as the one that comes."""
    line: Line[int] = Line()
    for number, key in enumerate("aabb"):
        line.add(key, number)

    assert line.newest_of_longest("a") is None and line.newest_of_longest("b") is None
    assert line.newest_of_longest("c") in (("a", 1), ("b", 3))
    line.add("a", 4)
    assert line.newest_of_longest("c") == ("a", 4)


def test_a_large_one_is_waited_for():
    """What needs two slots is not overtaken for ever by what needs one."""
    line: Line[str] = Line()
    line.add("a", "large", 2)
    line.add("a", "small", 1)

    assert line.take(1, 2) is None
    assert [line.take(2, 2), line.take(1, 2)] == ["large", "small"]


@given(ADDS)
def test_who_leaves_is_gone(adds: list[tuple[str, int, int]]):
    """Items that are removed are never taken; the others are."""
    line: Line[list[int]] = Line()
    items = [[number] for number in range(len(adds))]
    for (key, weight, _), item in zip(adds, items, strict=True):
        line.add(key, item, weight)
    for (key, _, _), item in list(zip(adds, items, strict=True))[::2]:
        line.remove(key, item)
    taken = []
    while (found := line.take(4, 4)) is not None:
        taken.append(found)

    assert sorted(taken) == items[1::2]


@given(st.lists(st.tuples(st.floats(0, 600), st.integers(1, 300)), max_size=50))
def test_a_budget_is_kept(visits: list[tuple[float, int]]):
    """Never more than a full bucket, what flowed in, and the one request that overdrew it."""
    bucket, now, spent = Bucket(1000, 0.0), 0.0, 0
    for pause, tokens in visits:
        now += pause
        if bucket.wait_seconds(now) == 0:
            bucket.take(tokens, now)
            spent += tokens
        else:
            assert bucket.wait_seconds(now + bucket.wait_seconds(now) + 1e-6) == 0

    assert spent <= 1000 + now * 1000 / 3600 + 300
