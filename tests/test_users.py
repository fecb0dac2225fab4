"""What several users see: laws of `cost.speed.request`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from penjing.cost import speed
from penjing.plan import Settings
from penjing.rates import Knobs, Rates

ONE = Settings(2, 2)
COUNTS = (1, 2, 4, 16)
STEP_MS = {1: 5.0, 2: 6.0, 4: 8.0, 16: 18.0}  # a step for all of them
SECONDS = st.floats(1e-4, 10)


def rates(prompt_seconds: float = 0.5) -> Rates:
    """A prompt of 512 tokens and steps of 8 tokens, for each count of users."""
    found = Rates("test").add(Knobs.of("prefill", ONE), 512, 0, (prompt_seconds,) * 3)
    for users, ms in STEP_MS.items():
        found = found.add(Knobs.of("decode", replace(ONE, sequences=users)), 8, 64, (8 * ms / 1000,) * 3)
    return found


def request(users: int, prompt_seconds: float = 0.5) -> speed.Request:
    found = speed.request(rates(prompt_seconds), replace(ONE, sequences=users), 512, 128)
    assert found is not None
    return found


def test_one_user_waits_for_nobody():
    """Alone a request is its prompt and its steps, and the first token comes after the prompt."""
    alone = request(1)

    assert alone.total.value == pytest.approx(alone.prefill.value + alone.steps.value)
    assert alone.first == alone.prefill.estimate()


@pytest.mark.parametrize("users", COUNTS[1:])
def test_the_others_prompts_are_in_every_request(users: int):
    """Each of n prompts is worked on once in the time of a request."""
    one = request(users)

    assert one.total.value == pytest.approx(users * 0.5 + 128 * STEP_MS[users] / 1000)
    assert one.decode.value == pytest.approx(one.total.value - 0.5)


@given(SECONDS)
def test_more_users_wait_longer_and_get_more_together(prompt_seconds: float):
    """The time of a request and the bounds of its first token rise with the users; what all get together does too."""
    found = [request(users, prompt_seconds) for users in COUNTS]
    totals = [one.total.value for one in found]
    together = [one.users / one.total.value for one in found]

    assert totals == sorted(totals) and together == sorted(together)
    assert [one.first.high for one in found] == sorted(one.first.high for one in found)
    for one in found:
        assert one.first.low <= one.first.value <= one.first.high
        assert one.first.high >= one.users * one.prefill.value


def test_users_that_were_not_timed_are_not_known():
    """Three together were never timed: nothing is said instead of the figure for one."""
    assert speed.request(rates(), replace(ONE, sequences=3), 512, 128) is None
