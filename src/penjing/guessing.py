"""Whether guessing tokens ahead pays for a model on this machine: what a check takes, how often guesses are right.

The model answers prompts of several kinds without any guesses. What each way of guessing would have got right there
follows without running it (`drafting.replay`), and with the measured time of a pass over n tokens so does what it
saves. The best of each kind is then run, in turn with none, and has to give the same answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from statistics import mean, median

from msgspec import Struct
from msgspec.structs import replace

from penjing import guessing_heads, texts
from penjing.drafting import Guesser, Known, Lookup, Passes, replay, seconds_of
from penjing.drafts import Proof, Report, Trial
from penjing.engines.base import Engine, Finished, Message, Sampling, Session
from penjing.errors import UsageError
from penjing.model import Model
from penjing.plan import Drafting, Settings
from penjing.progress import Bar, bar
from penjing.tune import disturbed

MATCHED, TOKENS = (2, 3, 4, 6), (4, 8, 16)
MODEL_TOKENS = (1, 2, 3, 4, 6, 8)
_CELLS = 256
_CHECKS = (1, 2, 3, 4, 5, 7, 9, 13, 17)
_DEPTH, _ROUNDS, _PROOF_ROUNDS = 128, 3, 2
_LEAST_GAIN, _MOST_LOSS = 0.03, 0.02  # of the time of decode: over all kinds of prompts, and for any one kind
_SEPARATOR = "\n---\n"
_GREEDY = Sampling(temperature=0)


class Prompt(Struct, frozen=True):
    """What is asked; `domain` says what kind of work it is."""

    domain: str
    text: str


class _Answer(Struct, frozen=True):
    domain: str
    prompt: tuple[int, ...]
    end: Finished


def prompts(path: Path | None) -> list[Prompt]:
    """Those of a user's file, divided by lines of `---`; without one those that ship, of five kinds.

    Raises:
        UsageError: there is no prompt in the file.
    """
    if path is not None:
        return _divided("yours", texts.read_text(path), str(path))
    folder = resources.files("penjing") / "data" / "prompts"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)
    return [p for f in files for p in _divided(f.name.removesuffix(".txt"), f.read_text("utf-8"), f.name)]


def _divided(domain: str, text: str, name: str) -> list[Prompt]:
    found = [Prompt(domain, part.strip()) for part in f"\n{text}\n".split(_SEPARATOR) if part.strip()]
    if not found:
        raise UsageError(
            f"there is no prompt in `{name}`", hint="write some, with a line of `---` between two"
        )
    return found


def measured(
    path: Path, model: Model, settings: Settings, engine: Engine, asked: Sequence[Prompt],
    *, draft_model: Path | None, tokens: int,
) -> Report:  # fmt: skip
    """Everything: answers of up to `tokens` tokens to each prompt, once, and four times for each way that may win.

    Raises:
        UsageError: nothing can be guessed ahead of this model.
    """
    goes_back, heads = model.can_go_back, guessing_heads.has_heads(model)
    if not goes_back and not heads:
        raise UsageError(
            f"nothing can be guessed ahead of `{model.name}`: it keeps a state that cannot go back",
            hint=f"penjing run {path}",
        )
    settings = replace(settings, sequences=1, drafting=Drafting())
    trials: list[Trial] = []
    extra = 0
    with engine.open(path, settings) as session, bar("answering", len(asked)) as shown:
        desk = _Desk(session, asked, tokens, shown)
        plain = desk.answers(Drafting())
        checks = desk.check_seconds() if goes_back else {}
        if goes_back:
            trials = [
                _trial(d, plain, checks, [Lookup(d.matched, d.tokens) for _ in plain]) for d in _lookups()
            ]
        if goes_back and draft_model is not None:
            more, extra = _model_trials(draft_model, settings, engine, plain, checks)
            trials += more
        proofs = [desk.proof(t.drafting) for t in _worth_running(trials)]
    if heads:
        proofs += guessing_heads.proofs(path, desk.settings, engine, desk.prompts, tokens)
    trials.sort(key=lambda t: _mean(t.ratio))
    chosen, why = _verdict(trials, proofs)
    return Report(
        model.name,
        engine.version,
        settings,
        checks,
        extra,
        _rates(plain),
        tuple(trials),
        tuple(proofs),
        chosen,
        why,
        desk.disturbed,
    )


class _Desk:
    """Where prompts are answered, with guesses or without."""

    def __init__(self, session: Session, asked: Sequence[Prompt], tokens: int, shown: Bar) -> None:
        self._session, self._tokens, self._shown = session, tokens, shown
        self.disturbed = 0
        self.prompts = [(p.domain, _tokens(session, p.text)) for p in asked]
        longest = max(len(prompt) for _, prompt in self.prompts)
        needed = max(longest + tokens, _DEPTH + max(_CHECKS)) + 1
        self.settings = replace(session.settings, context_tokens=-(-needed // _CELLS) * _CELLS)

    def answers(self, drafting: Drafting) -> list[_Answer]:
        self._session.configure(replace(self.settings, drafting=drafting))
        found = []
        for domain, prompt in self.prompts:
            *_, end = self._session.generate(prompt, self._tokens, _GREEDY)
            assert isinstance(end, Finished)
            self.disturbed += disturbed(end.decode, self.settings.threads)
            found.append(_Answer(domain, tuple(prompt), end))
            self._shown.advance(1)
        return found

    def check_seconds(self) -> dict[int, float]:
        """Seconds of a pass by its tokens, each size in turn."""
        self._session.configure(replace(self.settings, drafting=Drafting("ngram", max(_CHECKS), 2)))
        rounds = [
            {n: self._session.time("check", n, _DEPTH, 2)[-1].seconds for n in _CHECKS}
            for _ in range(_ROUNDS)
        ]
        return {n: median(r[n] for r in rounds) for n in _CHECKS}

    def proof(self, drafting: Drafting) -> Proof:
        """Answers with guesses and without, in turn."""
        pairs = []
        for _ in range(_PROOF_ROUNDS):
            pairs += list(zip(self.answers(Drafting()), self.answers(drafting), strict=True))
        domains = dict.fromkeys(plain.domain for plain, _ in pairs)
        return Proof(
            drafting,
            {d: _share_right([quick.end for _, quick in pairs if quick.domain == d]) for d in domains},
            {d: _ratio([pair for pair in pairs if pair[0].domain == d]) for d in domains},
            all(plain.end.tokens == quick.end.tokens for plain, quick in pairs),
        )


def _tokens(session: Session, text: str) -> list[int]:
    return session.tokenize(session.render([Message("user", text)]), special=True)


def _share_right(ends: Sequence[Finished]) -> float:
    return sum(e.right for e in ends) / max(1, sum(e.guessed for e in ends))


def _ratio(pairs: Sequence[tuple[_Answer, _Answer]]) -> float:
    """Time of decode with guesses over that without, the median of the pairs: other work spoils some of them."""
    return median(quick.end.decode.seconds / max(1e-9, plain.end.decode.seconds) for plain, quick in pairs)


def _rates(plain: Sequence[_Answer]) -> dict[str, float]:
    found = {}
    for domain in dict.fromkeys(a.domain for a in plain):
        samples = [a.end.decode for a in plain if a.domain == domain]
        found[domain] = sum(s.tokens for s in samples) / max(1e-9, sum(s.seconds for s in samples))
    return found


def _lookups() -> Iterator[Drafting]:
    """A match may not be longer than what it makes the engine guess."""
    return (
        Drafting("ngram", tokens, matched)
        for matched, tokens in product(MATCHED, TOKENS)
        if matched <= tokens
    )


def _trial(
    drafting: Drafting, plain: Sequence[_Answer], checks: dict[int, float], guessers: Sequence[Guesser],
    guess_seconds: float = 0.0,
) -> Trial:  # fmt: skip
    """What `drafting` would have saved in the answers that are known; a guesser for each of them."""
    passes: dict[str, Passes] = {a.domain: Counter() for a in plain}
    right, drawn = Counter[str](), Counter[str]()
    for answer, guesser in zip(plain, guessers, strict=True):
        found, hits = replay(answer.prompt, answer.end.tokens, guesser, drafting.tokens)
        passes[answer.domain] += found
        right[answer.domain] += hits
        drawn[answer.domain] += max(0, len(answer.end.tokens) - 1)  # the first one comes from the prefill
    told = {d: p for d, p in passes.items() if drawn[d]}
    return Trial(
        drafting,
        {d: right[d] / max(1, sum(n * count for n, count in p.items())) for d, p in passes.items()},
        dict.fromkeys(passes, 1.0)
        | {d: seconds_of(p, checks, guess_seconds) / (checks[1] * drawn[d]) for d, p in told.items()},
        {d: {n: count / drawn[d] for n, count in p.items()} for d, p in told.items()},
    )


def _model_trials(
    draft_model: Path, settings: Settings, engine: Engine, plain: Sequence[_Answer], checks: dict[int, float]
) -> tuple[list[Trial], int]:
    """A draft model sees the right text as long as it is right, so one pass over each answer tells all.

    Returns its memory as well, in bytes.
    """
    longest = max(len(a.prompt) + len(a.end.tokens) for a in plain)
    alone = replace(
        settings, context_tokens=-(-(longest + 1) // _CELLS) * _CELLS, prefill_repack=settings.repack
    )
    with engine.open(draft_model, alone) as session:
        each = median(s.seconds / s.tokens for s in session.time("decode", 8, 16, _ROUNDS))
        known = [Known(_likeliest(session, [*a.prompt, *a.end.tokens])) for a in plain]
    ways = (Drafting("model", n, draft_model=str(draft_model.resolve())) for n in MODEL_TOKENS)
    memory = session.memory.total_bytes - session.memory.base_bytes
    return [_trial(way, plain, checks, known, each) for way in ways], memory


def _likeliest(session: Session, text: Sequence[int]) -> list[int]:
    return [int(token) for rows in session.logits(text) for token in rows.argmax(axis=1)]


def _mean(ratio: Mapping[str, float]) -> float:
    return mean(ratio.values())


def _worth_running(trials: Sequence[Trial]) -> list[Trial]:
    """Of each kind the best over all prompts, and the one that does least harm anywhere, if they seem to win."""
    found: list[Trial] = []
    for kind in ("ngram", "model"):
        hopeful = [t for t in trials if t.drafting.kind == kind and _mean(t.ratio) <= 1 - _LEAST_GAIN / 2]
        if hopeful:
            found += [
                min(hopeful, key=lambda t: _mean(t.ratio)),
                min(hopeful, key=lambda t: (round(max(t.ratio.values()), 2), _mean(t.ratio))),
            ]
    return list({t.drafting: t for t in found}.values())


def _verdict(trials: Sequence[Trial], proofs: Sequence[Proof]) -> tuple[Drafting, str]:
    """What is used from now on, and why."""
    if not proofs and not trials:
        return Drafting(), "the engine cannot run the drafting heads of this file, and nothing else can guess"
    if not proofs:
        best = min(trials, key=lambda t: _mean(t.ratio))
        what = f"{best.drafting} would take {_mean(best.ratio):.2f} of it"
        return Drafting(), f"no way of guessing seems to save time of decode: {what}"
    told = []
    for proof in sorted(proofs, key=lambda p: _mean(p.ratio)):
        what = f"{proof.drafting}: {_mean(proof.ratio):.2f} of the time of decode"
        objection = _objection(proof)
        if not objection:
            return proof.drafting, f"{what}, and the same answers"
        told.append(f"{what}, {objection}")
    return Drafting(), "; ".join(told)


def _objection(proof: Proof) -> str:
    """Why a way is not used; empty if it is worth it."""
    worst = max(proof.ratio, key=lambda domain: proof.ratio[domain])
    if not proof.same_answers:
        return "but an answer changed"
    if _mean(proof.ratio) > 1 - _LEAST_GAIN:
        return "which is slower" if _mean(proof.ratio) > 1 + _LEAST_GAIN else "which is within the noise"
    if proof.ratio[worst] > 1 + _MOST_LOSS:
        return f"but {proof.ratio[worst]:.2f} for prompts of the kind `{worst}`"
    return ""
