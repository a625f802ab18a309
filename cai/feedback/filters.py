"""Filters of revisions: small models often return the draft, or the critique, instead of a new answer.

Training on pairs of such revisions teaches their faults: small models collapse into repeated phrases
(Xue 2025, arXiv:2504.04918). A revision that fails a filter is flagged on its row, counted in the summary, and kept out
of the pairs.
"""

import re

WORD = re.compile(r"\w+")
FILTERS = {
    "empty": "the revision has no words",
    "unchanged": "the revision is the answer it started from",
    "copied_critique": "most of the revision is copied from the critique",
    "repeats_itself": "over a fifth of its sequences of four words stand in it before",
}
NGRAM = 4  # words in a row that count as copied, or as repeated
# Share of a text's n-grams that stand in it before. 392 answers of hh-rlhf with more than 30 words have at most 0.13,
# and the looping ones of a model with 135M parameters 0.49 and more.
MAX_REPEATED = 0.2
MAX_COPIED = 0.5  # share of a revision's n-grams


def failed_filters(before: str, critique: str | None, revision: str) -> list[str]:
    """The names from FILTERS that a revision of `before` fails; [] when it passes all."""
    old, new = _normalised_words(before), _normalised_words(revision)
    if not new:
        return ["empty"]
    if new == old:
        return ["unchanged"]
    failed = []
    if critique is not None and _copied_share(new, _normalised_words(critique), old) > MAX_COPIED:
        failed.append("copied_critique")
    if _repetition(new) > MAX_REPEATED:
        failed.append("repeats_itself")
    return failed


def _normalised_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _copied_share(text: list[str], critique: list[str], draft: list[str]) -> float:
    """The share of `text`'s n-grams that stand in the critique and not in the draft, in [0, 1]."""
    ngrams, copied = _ngrams(text), _ngrams(critique) - _ngrams(draft)
    return len(ngrams & copied) / len(ngrams) if ngrams else 0.0


def repetition(text: str) -> float:
    """The share of a text's n-grams of NGRAM words that stand in it before, in [0, 1]; 0 for a text of fewer words.

    seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319 §6.1).
    """
    return _repetition(_normalised_words(text))


def _repetition(words: list[str]) -> float:
    total = len(words) - NGRAM + 1
    return 1 - len(_ngrams(words)) / total if total > 0 else 0.0


def _ngrams(words: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(NGRAM)), strict=False))  # half the time of a slice for each
