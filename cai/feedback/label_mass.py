"""How much the labels of a run's pairs say, by where they come from."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cai.data.records import Preference, Source
from cai.stats.formatting import percent


class LabelMass:
    """How much the labels of pairs say, by their source: the sum of weight · |2p − 1|.

    A pair counts 0 at p = ½ and its weight at p = 1, as the size of a soft label's first step in DPO does.
    """

    def __init__(self) -> None:
        self.pairs: Counter[Source] = Counter()
        self._mass: dict[Source, float] = {}

    def add(self, row: Preference) -> None:
        """Count one pair."""
        self.pairs[row.source] += 1
        self._mass[row.source] = self._mass.get(row.source, 0.0) + row.weight * abs(2 * row.p - 1)

    def shares(self) -> dict[Source, float]:
        """The share of each source, in [0, 1]; empty where no label says anything."""
        total = sum(self._mass.values())
        return {source: mass / total for source, mass in self._mass.items()} if total else {}


LABEL_MASS = "label mass"
LABEL_MASS_MEANING = "share of Σ|2p − 1|, what the labels say, by source"


def label_mass_text(shares: Mapping[Any, float]) -> str:
    """The shares of `LabelMass`, as every surface shows them; empty for none."""
    return ", ".join(f"{percent(share)} by {source}" for source, share in shares.items())
