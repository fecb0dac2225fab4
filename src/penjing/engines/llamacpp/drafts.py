"""Answers with tokens guessed ahead: draws that check guesses, and a smaller model that makes them.

Runs in the child process only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from penjing.drafting import Guesser
from penjing.engines.base import Sampling
from penjing.engines.llamacpp.drawing import new_sampler
from penjing.errors import EngineError

if TYPE_CHECKING:
    from penjing.engines.llamacpp.runner import Runner


class Drafts:
    """Draws from a model, several in one pass where guesses were right."""

    def __init__(self, runner: Runner, guesser: Guesser | None, tokens: int) -> None:
        """`tokens`: most that are guessed at once; none where nobody guesses."""
        self._runner, self._guesser, self._tokens = runner, guesser, tokens
        self.guessed = self.right = 0

    def draws(self, text: list[int], end: int, sampler: Any) -> Iterator[int]:
        """The tokens after `text`, up to a length of `end`; all of `text` but its last token is in the cache."""
        while True:
            most = max(0, min(self._tokens, end - len(text) - 1))
            guess = self._guesser.guess(text, most) if self._guesser else ()
            self._runner.decode([text[-1], *guess], every=bool(guess))
            self.guessed += len(guess)
            for i in range(len(guess) + 1):
                token = self._runner.sample(sampler, i)
                is_right = i < len(guess) and token == guess[i]
                self.right += is_right
                text.append(token)
                yield token
                if not is_right:
                    break
            if guess:
                _go_back(self._runner, len(text) - 1)


class DraftModel:
    """A smaller model with the same tokens, which guesses what is likeliest."""

    def __init__(self, runner: Runner, larger: Runner) -> None:
        """Raises EngineError if the tokens of the two are not the same."""
        if _words(runner) != _words(larger):
            raise EngineError(
                f"the draft model has {runner.vocabulary} tokens that are not the {larger.vocabulary} of the model",
                hint="name a smaller model of the same family with `--draft-model`",
            )
        self._runner = runner
        self._sampler = new_sampler(runner.lib, Sampling(temperature=0))
        self.forget()

    def forget(self) -> None:
        """Begin another text."""
        self._seen: list[int] = []  # tokens in the cache
        self._sure = 0  # of which so many belong to the text
        self._runner.clear()

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """See `drafting.Guesser`."""
        if most == 0:
            return []
        while self._sure < min(len(self._seen), len(text) - 1) and self._seen[self._sure] == text[self._sure]:
            self._sure += 1
        _go_back(self._runner, self._sure)
        self._runner.prefill(text[self._sure :])
        guessed = [self._runner.sample(self._sampler)]
        while len(guessed) < most:
            self._runner.decode(guessed[-1:])
            guessed.append(self._runner.sample(self._sampler))
        self._seen = [*text, *guessed[:-1]]
        self._sure = len(text)
        return guessed


def _go_back(runner: Runner, depth: int) -> None:
    """Forget what was guessed wrong."""
    if not runner.rewind(depth):
        raise EngineError(
            "the model keeps a state that cannot go back, so that nothing can be guessed ahead",
            hint="--draft off",
        )


def _words(runner: Runner) -> list[bytes]:
    """The text of every token."""
    lib, ffi, vocabulary = runner.lib, runner.ffi, runner.vocab
    return [ffi.string(lib.llama_vocab_get_text(vocabulary, token)) for token in range(runner.vocabulary)]
