"""What would fit, for a user whose wish does not."""

from __future__ import annotations

from msgspec.structs import replace

from penjing.cost.memory import predict_memory
from penjing.errors import DoesNotFit
from penjing.plan import Settings
from penjing.search import candidates
from penjing.search.choose import Question
from penjing.units import show_bytes

_CELLS = 256


def largest_context(question: Question, settings: Settings, budget_bytes: int) -> int:
    """The most cache positions with which `settings` fit into `budget_bytes`, a multiple of 256; 0 if none."""
    low, high = 0, question.model.context_tokens // _CELLS
    while low < high:
        middle = (low + high + 1) // 2
        trial = replace(settings, context_tokens=middle * _CELLS)
        if predict_memory(question.model, trial, question.traits).total_bytes <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low * _CELLS


def does_not_fit(question: Question, budget_bytes: int) -> DoesNotFit:
    """The refusal, with what would fit: a context, the disk, or a smaller file."""
    model, workload = question.model, question.workload
    frugal = candidates.frugal(question.default)[-1]
    need = predict_memory(model, frugal, question.traits)
    ways = []
    context = largest_context(question, frugal, budget_bytes) // workload.users
    if context >= _CELLS:
        ways.append(f"a context of {context} tokens fits: `--context {context}`")
    if need.pinned_bytes <= budget_bytes and not workload.allow_disk:
        ways.append("run it from disk, slowly: `--allow-disk`")
    room = budget_bytes - need.pinned_bytes
    if room > 0.1 * model.n_bytes:
        bits = 8 * room / max(1, model.n_weights)
        ways.append(
            f"or take a file of the same model of at most {show_bytes(room)} (about {bits:.1f} bits per weight)"
        )
    if not ways:
        ways.append(
            f"even from disk it needs {show_bytes(need.pinned_bytes)}: `--allow-disk --memory {need.pinned_bytes}`"
        )
    return DoesNotFit(
        f"`{model.name}` needs {show_bytes(need.total_bytes)} with a context of "
        f"{question.default.context_tokens} tokens, the limit is {show_bytes(budget_bytes)}",
        hint="; ".join(ways),
    )
