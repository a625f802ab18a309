"""Labelled pairs for losses that know only which answer is better, not how surely or how much it counts."""

from pathlib import Path

from cai.errors import CaiError
from cai.formats.jsonl import read_rows
from cai.records import Preference


def read_hard_pairs(data: Path, stage: str) -> tuple[list[Preference], list[str]]:
    """Each pair of a file with its likelier answer as `chosen` and p = 1, and the prompt ids of those with p = 0.5.

    Verdicts, which speak of the answer that was `chosen` before, are dropped.
    Raises: CaiError naming the stage when pairs weigh differently, as its loss is a plain mean over them, or when p is
    0.5 in all of them.
    """
    hard, undecided, weights = [], [], set()
    for row in read_rows(data, Preference):
        weights.add(row.weight)
        if row.p == 0.5:
            undecided.append(row.prompt_id)
            continue
        chosen, rejected = (row.chosen, row.rejected) if row.p > 0.5 else (row.rejected, row.chosen)
        hard.append(row.model_copy(update={"chosen": chosen, "rejected": rejected, "p": 1.0, "verdicts": []}))
    if len(weights) > 1:
        raise CaiError(
            f"{stage}: the preferences have weights from {min(weights):g} to {max(weights):g}, and this loss counts "
            "all pairs alike; dpo with the loss sigmoid, ipo or robust weighs them"
        )
    if undecided and not hard:
        raise CaiError(f"{stage}: nothing to train on: all {len(undecided)} preferences have p = 0.5")
    return hard, undecided
