"""Signs that a policy exploits its reward model: the proxy climbs while KL or length runs away.

Over-optimisation of a proxy shows against KL (Gao et al. 2023, arXiv:2210.10760), and first of all in length (Singhal
et al. 2024, arXiv:2310.03716). The bounds below are ours: they mean "look at the samples", not "it is proven".
"""

from collections.abc import Sequence
from typing import Any

WINDOW = 5  # updates averaged at the start and at the end
RUNAWAY_KL = 30.0  # nats an answer, where no target is set
TARGETS = 2.0  # times the target KL
LENGTH_FACTOR = 1.5  # longer, or shorter, than at the start


def runaway(history: Sequence[dict[str, Any]], target_kl: float | None) -> dict[str, str]:
    """Warnings by kind, `kl` and `length`, from the metrics of all updates so far; none before two windows are full."""
    if len(history) < 2 * WINDOW:
        return {}

    def change(name: str) -> tuple[float, float]:
        first, last = history[:WINDOW], history[-WINDOW:]
        return sum(line[name] for line in first) / WINDOW, sum(line[name] for line in last) / WINDOW

    score_before, score = change("objective/scores")
    if score <= score_before:
        return {}
    warnings = {}
    rise = f"the reward model's score climbed from {score_before:.2f} to {score:.2f} while"
    advice = "it may be exploited: read samples.jsonl"
    step, (_, kl) = history[-1]["step"], change("objective/kl")
    bound = TARGETS * target_kl if target_kl is not None else RUNAWAY_KL
    if kl > bound:
        warnings["kl"] = f"update {step}: {rise} the KL reached {kl:.1f} nats an answer (bound {bound:.0f}); {advice}"
    before, length = change("response/length")
    if not before / LENGTH_FACTOR <= length <= before * LENGTH_FACTOR:
        warnings["length"] = f"update {step}: {rise} answers went from {before:.0f} to {length:.0f} tokens; {advice}"
    return warnings
