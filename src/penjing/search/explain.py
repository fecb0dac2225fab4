"""Why a joint plan is what it is: what binds, what each limit costs, and what was turned down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from penjing.errors import DoesNotFit
from penjing.model import Model
from penjing.plan import Chosen, Drafting, Refusal, Settings
from penjing.quality import menu
from penjing.quality.allocate import Allocation, Item, Limits, least_kld, least_seconds, price
from penjing.search import guesses, joint
from penjing.search.task import Found, Layout, Task
from penjing.units import GIB, show_bytes, show_number, show_seconds

_BINDS = 0.99  # of a limit, from which on it counts as reached
_MORE_KLD = 0.01
_SCALES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)  # of the limit on divergence, for the frontier
_NAMED_TYPES = 3
_SAME = 0.005  # relative difference of times that nobody would notice


def show_types(model: Model, types: Mapping[str, str]) -> str:
    """The types with the most weights, with their shares: `q4_K 71 %, q6_K 20 %, q5_0 9 %`."""
    weights: Counter[str] = Counter()
    for tensor in model.tensors:
        if tensor.name in types:
            weights[types[tensor.name]] += tensor.n_weights
    total = sum(weights.values()) or 1
    large = [
        (kind, count / total) for kind, count in weights.most_common(_NAMED_TYPES) if count >= total / 200
    ]
    named = [f"{kind} {share:.0%}" for kind, share in large]
    rest = len(weights) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def why(name: str, chosen: Chosen, baseline: Chosen) -> str:
    mine, theirs = chosen.estimate.total_seconds.value, baseline.estimate.total_seconds.value
    if mine is None or theirs is None or chosen is baseline:
        return name
    default = f"a stock mix under the engine's default {show_seconds(theirs)}"
    return f"{name}: {show_seconds(mine)} for the workload, {default}"


def slower(candidate: Chosen, winner: Chosen) -> str:
    """Why `candidate` was not chosen, in terms of the time of the workload."""
    mine, best = candidate.estimate.total_seconds.value, winner.estimate.total_seconds.value
    assert mine is not None and best is not None
    if abs(mine - best) <= _SAME * best:
        return f"{show_seconds(mine)} for the workload: no difference that could be noticed"
    if mine < best:
        return f"{show_seconds(mine)} against {show_seconds(best)}: too little, or not in every round"
    return f"{show_seconds(mine)} for the workload, the chosen {show_seconds(best)}"


def notes(task: Task, found: Found) -> Iterator[str]:
    """What takes the time, what another workload would choose, and what binds at which price."""
    items = joint.priced(task, found.layout)
    estimate, prompt = found.chosen.estimate, task.question.workload.prompt_tokens
    first, total = estimate.first_token_seconds.value or 0.0, estimate.total_seconds.value or 0.0
    yield f"the prompt takes {show_seconds(first)} of {show_seconds(total)}, the answer {show_seconds(total - first)}"
    for phase, what in (("prefill_seconds", f"prompt of {prompt} tokens"), ("decode_seconds", "answer")):
        other = least_seconds(items, found.limits, phase)
        lost = other.seconds - found.allocation.seconds
        if lost > _SAME * total:
            types = show_types(task.model, other.types)
            yield f"types for the {what} alone would be {types}: {show_seconds(lost)} slower in all"
    yield from _guessed(task, found, items)
    yield from _prices(found, items)
    if cached := task.kld_of_cache(found.chosen.settings):
        yield f"the cache in {found.chosen.settings.cache_type} is {show_number(cached)} of the KL divergence"


def _guessed(task: Task, found: Found, items: Sequence[Item]) -> Iterator[str]:
    """What guesses are worth by kind of prompt, and what the types would be without them."""
    layout, chosen = found.layout, found.allocation
    if layout.drafting.kind == "none":
        return
    model = menu.retyped(task.model, chosen.types)
    ratios = task.passes.guess_ratios(model, layout.for_answer, layout.drafting)
    each = ", ".join(f"{ratio:.2f} ({domain})" for domain, ratio in ratios.items())
    yield (
        f"{layout.drafting}: {each} of the time of decode, if it is guessed as well as its source was; "
        "`penjing draft` tells of the finished file"
    )
    try:
        plain = least_seconds(joint.priced(task, replace(layout, drafting=Drafting())), found.limits)
    except DoesNotFit:
        yield "without guesses no types keep the limits"
        return
    lost = price(items, plain.types).seconds - chosen.seconds
    if lost > _SAME * (found.chosen.estimate.total_seconds.value or 0.0):
        types = show_types(task.model, plain.types)
        yield f"types without guesses would be {types}: with them {show_seconds(lost)} slower in all"


def _prices(found: Found, items: Sequence[Item]) -> Iterator[str]:
    named = {
        "kld": ("the limit on the KL divergence", _MORE_KLD, show_number),
        "n_bytes": ("memory", GIB, show_bytes),
        "prefill_seconds": ("the limit on the first token", 1.0, show_seconds),
        "decode_seconds": ("the limit on decode speed", 1.0, show_seconds),
    }
    for name, limit in found.limits.given.items():
        what, step, show = named[name]
        used = getattr(found.allocation, name)
        if used < _BINDS * limit:
            yield f"{what} does not bind: {show(used)} of {show(limit)} is used by the weights"
            continue
        looser = least_seconds(items, replace(found.limits, **{name: limit + step}))
        saved = found.allocation.seconds - looser.seconds
        yield f"{what} binds: {show(step)} more would save {show_seconds(max(0.0, saved))} of the workload"


def frontier(task: Task, found: Found) -> Iterator[Chosen]:
    """The same layout and settings with tighter and looser limits on the divergence, fastest first."""
    items, kld = joint.priced(task, found.layout), found.limits.kld
    for scale in sorted(_SCALES, reverse=True) if kld else ():
        assert kld is not None
        try:
            allocation = least_seconds(items, replace(found.limits, kld=scale * kld))
            if guesses.objection(task, found.layout, allocation):
                continue
            chosen = joint.appraised(task, allocation, [found.chosen.settings])
        except DoesNotFit:
            continue
        limit = scale * kld + task.kld_of_cache(found.chosen.settings)
        yield replace(chosen, why=f"KL divergence up to {show_number(limit)}")


def ready_made(task: Task, found: Found) -> Iterator[Refusal]:
    """Stock mixes and uniform types in the same layout: too far from the source, too large, or slower."""
    items = joint.priced(task, found.layout)
    for name, allocation in menu.priced(items, menu.ready_made(task.model)).items():
        yield Refusal(f"all in {name}", _worse(allocation, found))


def _worse(allocation: Allocation, found: Found) -> str:
    limits, best = found.limits, found.allocation
    if limits.kld is not None and allocation.kld > limits.kld:
        return (
            f"predicted KL divergence {show_number(allocation.kld)}, the limit is {show_number(limits.kld)}"
        )
    if limits.n_bytes is not None and allocation.n_bytes > limits.n_bytes:
        return f"its weights take {show_bytes(allocation.n_bytes)}, the limit leaves {show_bytes(limits.n_bytes)}"
    return f"its products take {show_seconds(allocation.seconds)}, those of the chosen {show_seconds(best.seconds)}"


def nearest(task: Task, proposed: Iterable[Settings]) -> str:
    """What would have to give way, as options: the least divergence within the memory, the least memory within both."""
    settings = min(proposed, key=lambda s: s.split)
    items = joint.priced(task, Layout.of(settings))
    limits = joint.limits_of(task, items, settings)
    try:
        best = least_kld(items, int(limits.n_bytes or 2**62))
    except DoesNotFit:
        return "more memory, or a smaller model"
    free = (
        least_seconds(items, Limits(kld=limits.kld, n_bytes=limits.n_bytes))
        if best.kld <= (limits.kld or 2)
        else best
    )
    speed = task.question.workload.answer_tokens / max(free.decode_seconds, 1e-9)
    kld = show_number(1.05 * max(best.kld, 1e-4))
    return f"--max-kld {kld} is possible in this memory; decode reaches {show_number(speed)} tok/s"
