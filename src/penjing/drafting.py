"""Drafting: tokens that are guessed ahead of the model, which then checks all of them in one pass.

The model draws every token itself, guessed or not; a guess only tells which tokens to compute together. So the answer
does not change, and what a way of guessing saves follows from an answer that was written without it: from where the
guesses would have been right, and from what a pass over so many tokens takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from penjing.plan import Drafting

Passes = Counter[int]  # how many passes checked so many guesses


class Habit(Struct, frozen=True):
    """How one way of guessing went in answers that are known, whatever a pass takes.

    Units:
        passes: for each drawn token, by how many guesses they check, by kind of prompt.
    """

    drafting: Drafting
    passes: dict[str, dict[int, float]]

    @property
    def usual(self) -> dict[int, float]:
        """Passes for each drawn token, the mean of all kinds of prompts."""
        guesses = sorted({n for passes in self.passes.values() for n in passes})
        return {n: _mean([passes.get(n, 0.0) for passes in self.passes.values()]) for n in guesses}

    @property
    def spread(self) -> float:
        """Half of what kinds of prompts differ by in all their passes, relative to the mean."""
        totals = [sum(passes.values()) for passes in self.passes.values()]
        return (max(totals) - min(totals)) / 2 / _mean(totals)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # without the module for it, which the engine's child would carry along


class Guesser(Protocol):
    """Something that says how a text goes on."""

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        """Up to `most` tokens after `text`, which only grows from call to call."""
        ...


class Lookup:
    """What followed the last time that the text ended in the same `matched` tokens.

    The rule of llama.cpp's `ngram-simple`: the text has more than `matched` + `tokens` + 1 tokens before its last one,
    the match does not begin at its first token nor reach its end, and at least `matched` tokens followed.
    """

    def __init__(self, matched: int, tokens: int) -> None:
        self._matched, self._tokens = matched, tokens
        self._starts: dict[tuple[int, ...], int] = {}
        self._indexed = 1

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        n = self._matched
        for start in range(self._indexed, len(text) - n - 1):
            self._starts[tuple(text[start : start + n])] = start
        self._indexed = max(self._indexed, len(text) - n - 1)
        if len(text) - 1 <= n + self._tokens + 1:
            return ()
        match = self._starts.get(tuple(text[-n:]))
        if match is None:
            return ()
        found = text[match + n : min(match + n + self._tokens, len(text) - 1)]
        return found[:most] if len(found) >= n else ()


def replay(prompt: Sequence[int], answer: Sequence[int], guesser: Guesser, tokens: int) -> tuple[Passes, int]:
    """Passes that writing `answer` would take beyond the prefill, and how many guesses would be right.

    At most `tokens` are guessed at once. The first token of the answer comes from the prefill.
    """
    text = [*prompt, *answer[:1]]
    passes: Passes = Counter()
    right = 0
    while (left := len(prompt) + len(answer) - len(text)) > 0:
        guess = guesser.guess(text, min(tokens, left - 1))
        passes[len(guess)] += 1
        true = answer[len(text) - len(prompt) :]
        same = next((i for i, g in enumerate(guess) if g != true[i]), len(guess))
        right += same
        text += true[: same + 1]
    return passes, right


class Known:
    """A draft model whose likeliest next token after every prefix of one text is known.

    It is right as long as its tokens are those of the text, and so sees the text itself.
    """

    def __init__(self, likeliest: Sequence[int]) -> None:
        """`likeliest[i]` follows the first i + 1 tokens."""
        self._likeliest = likeliest

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        return self._likeliest[len(text) - 1 : len(text) - 1 + most]


def seconds_of(passes: Passes, check_seconds: Mapping[int, float], guess_seconds: float = 0.0) -> float:
    """Time of `passes`: a pass over n tokens takes `check_seconds[n]`, on the line between those that were timed.

    `guess_seconds`: of each guessed token.
    """
    import numpy as np  # here, because the engine's child uses the rest of this module and does without

    sizes = sorted(check_seconds)
    counts = np.array(list(passes))
    each = np.interp(counts + 1, sizes, [check_seconds[n] for n in sizes]) + guess_seconds * counts
    return float(each @ np.array(list(passes.values())))
