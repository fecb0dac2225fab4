"""Writes docs/models-on-machines.md: the best plan for well-known models on machines from one card to a rack.

python docs/models_on_machines.py
"""

from __future__ import annotations

from pathlib import Path

from penjing import catalogue
from penjing.elsewhere.answers import Asked, best_of
from penjing.elsewhere.hardware import hardware
from penjing.figures import Estimate
from penjing.units import show_number
from penjing.workload import Workload

MODELS = (
    "Qwen3-235B-A22B", "GLM-4.6", "MiniMax-M2", "ERNIE-4.5-300B-A47B", "Hunyuan-A13B", "DeepSeek-V3", "gpt-oss-120b",
)  # fmt: skip
MACHINES = (
    "RTX 4090 + 128GB DDR5", "8x RTX 4090", "8x H20", "8x H200 SXM", "8x Ascend 910B2", "M3 Ultra 512GB",
)  # fmt: skip
USES = (Workload(1000, 500), Workload(1000, 500, users=16))
PAGE = Path(__file__).with_name("models-on-machines.md")
HEAD = """# Models on machines

Written by `python docs/models_on_machines.py` from datasheets and the fitted cost model; nothing here was measured.
For 1000 prompt and 500 answer tokens: the plan with the least time for a request, in 4 bits or more where that fits.
Rates in tokens per second, with the interval that held 80 % of what was measured on devices left out of the fit;
[accuracy](accuracy.md) says how far predictions were off. *decode* is of each user, *all* of all users together with
their prompts.
"""


def main() -> None:
    parts = [HEAD]
    for use in USES:
        users = f"{use.users} users" if use.users > 1 else "One user"
        parts.append(f"\n## {users}\n")
        for name in MODELS:
            asked = Asked.of(catalogue.model(name), use)
            parts.append(
                f"\n### {name}, {users.lower()}\n\n| machine | plan | decode | all | first token | binds |"
            )
            parts.append("|---|---|---|---|---|---|")
            parts += [_row(asked, machine) for machine in MACHINES]
    PAGE.write_text("\n".join(parts) + "\n", "utf-8")


def _row(asked: Asked, machine: str) -> str:
    found = best_of(asked, hardware(machine))
    if found.chosen is None:
        return f"| {machine} | does not fit: {found.limited_by} | | | | |"
    e = found.chosen.estimate
    cells = (
        machine, str(found.chosen.settings), _rate(e.decode_tokens_per_s), _rate(e.throughput_tokens_per_s),
        f"{show_number(e.first_token_seconds.value or 0)} s", found.limited_by,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _rate(estimate: Estimate) -> str:
    assert estimate.value is not None and estimate.low is not None and estimate.high is not None
    return f"{show_number(estimate.value)} ({show_number(estimate.low)} to {show_number(estimate.high)})"


if __name__ == "__main__":
    main()
