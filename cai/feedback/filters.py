"""Is a revision fit to train on? Small models often return the draft, or the critique, instead of a new answer.

Preferences made of such revisions teach their faults: small models collapse into repeated phrases
(Xue 2025, arXiv:2504.04918). So they are flagged on their row, counted in the summary, and kept out of the pairs.
"""

import re

FILTERS = {
    "empty": "the revision has no words",
    "unchanged": "the revision is the answer it started from",
    "copied_critique": "most of the revision is lifted from the critique",
}
RUN = 4  # words in a row that must agree to count as lifted
LIFTED = 0.5  # share of a revision's runs


def failed_filters(before: str, critique: str | None, revision: str) -> list[str]:
    """The names from FLAGS that hold for a revision of `before`; [] when it is fit for use."""
    old, new = _normalised_words(before), _normalised_words(revision)
    found = []
    if not new:
        found.append("empty")
    elif new == old:
        found.append("unchanged")
    elif critique is not None and _lifted(new, _normalised_words(critique), old) > LIFTED:
        found.append("copied_critique")
    return found


def _normalised_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _lifted(text: list[str], critique: list[str], draft: list[str]) -> float:
    """The share of `text`'s runs of words that stand in the critique and not in the draft, in [0, 1]."""
    runs = _runs(text)
    return sum(run in _runs(critique) - _runs(draft) for run in runs) / len(runs) if runs else 0.0


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}
