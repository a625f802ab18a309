"""Filters of revisions: small models often return the draft, the critique or the instruction instead of a new answer.

Training on pairs of such revisions teaches their faults: small models collapse into repeated phrases
(Xue 2025, arXiv:2504.04918). A revision that fails a filter is flagged on its row, counted in the summary, and kept out
of pairs and SFT. Those that look at phrases know English alone.

The thresholds stand on 32 revisions of a model with 135M parameters, read by hand, and on 1,134 answers of hh-rlhf, of
which those filters flag one that need no critique.
"""

import re
from collections import Counter

WORD = re.compile(r"\w+")
FILTERS = {
    "empty": "the revision has no words",
    "unchanged": "the revision is the answer it started from",
    "truncated": "the revision reached max_tokens",
    "copied_critique": "most of the revision is copied from the critique",
    "repeats_itself": "over a fifth of its sequences of four words stand in it before",
    "parrots_instruction": "six words in a row are the instruction's",
    "leaked_critique": "the revision speaks of the critique",
    "announces_itself": "its beginning or end announces a new answer",
    "other_language": "the revision is in another language than the answer it started from",
}
NGRAM = 4  # words in a row that count as copied, or as repeated
# Share of a text's n-grams that stand in it before. 392 answers of hh-rlhf with more than 30 words have at most 0.13,
# and the looping ones of a model with 135M parameters 0.49 and more.
MAX_REPEATED = 0.2
MAX_COPIED = 0.5  # share of a revision's n-grams
PARROTED = 6  # words in a row; revisions that name what the principle lists had up to 5, parrots 7 and more
MAX_SHARED = 0.05  # of a run's revisions end with one sentence; no sentence closes 1 % of the answers of hh-rlhf
MIN_SHARED = 3  # revisions, before a sentence counts as shared
SENTENCE = re.compile(r"(?<=[.!?…])\s+|\n+")
ENDS = 100  # characters at the beginning and the end, where an announcement stands
CRITIQUES = {"critique", "critiques", "criticism", "criticisms"}
ANNOUNCEMENT = re.compile(
    r"\b(?:new|revised|rewritten|improved|updated|corrected|edited|modified) (?:answer|response|reply|rewrite)\b"
    r"|\bhere(?:'s|’s| is) (?:the|a|an|my|your) (?:\w+ )?(?:answer|response|reply|version|revision|rewrite)\b"
    r"|^\W*(?:revision|rewrite|revised version|rewritten version)\W*:",
    re.IGNORECASE,
)
ANNOUNCED = re.compile("answer|response|reply|version|revision|rewrite", re.IGNORECASE)
STOPWORDS = {
    "English": "the and of to is in that it you for with are this be not have on your can as",
    "German": "der die das und ist nicht ein eine zu den mit sich auf für sie ich es wird im auch",
    "French": "le la les et est des une du que dans pour pas vous qui sur il au avec ce sont",
    "Spanish": "el la los las y es de que en un una por con para no se del lo como su",
    "Italian": "il la che di è e un una per non sono con del della si gli le da nel come",
    "Portuguese": "o a os as e é de que em um uma para com não do da se no na por",
    "Dutch": "de het een en van is dat niet op te zijn met voor je die ik er aan maar om",
}
MIN_WORDS = 10  # of a text whose language is told by stop words
MIN_STOPWORDS = 0.15  # share of its words; English prose has 0.3 to 0.5
MIN_LEAD = 1.5  # times the stop words of the next language
SCRIPTS = {
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Hangul": "\uac00-\ud7af",
    "Chinese or Japanese": "\u3040-\u30ff\u3400-\u9fff",
}
_SCRIPTS = {name: re.compile(f"[{characters}]") for name, characters in SCRIPTS.items()}
_OTHER_SCRIPTS = re.compile(f"[{''.join(SCRIPTS.values())}]")
_STOPWORDS = {name: frozenset(words.split()) for name, words in STOPWORDS.items()}
Text = tuple[str, list[str]]  # and its normalised words


def failed_filters(
    before: str, critique: str | None, revision: str, instruction: str = "", request: str = "", truncated: bool = False
) -> list[str]:
    """The names from FILTERS that a revision of `before` fails; [] when it passes all.

    `instruction` are the turns that asked for critique and revision, `request` is the user's message.
    """
    old, new = _normalised_words(before), _normalised_words(revision)
    if not new:
        return ["empty"]
    if new == old:
        return ["unchanged"]
    asked, ngrams = _normalised_words(request), _ngrams(new)
    fails = {
        "truncated": truncated,
        "copied_critique": critique is not None and _copies(new, ngrams, _normalised_words(critique), old),
        "repeats_itself": _repeated_share(new, ngrams) > MAX_REPEATED,
        "parrots_instruction": instruction != "" and _parrots(new, _normalised_words(instruction), old, asked),
        "leaked_critique": not CRITIQUES.isdisjoint(new) and CRITIQUES.isdisjoint(old + asked),
        "announces_itself": _announces(revision) and not (_announces(before) or _announces(request)),
        "other_language": _switches((before, old), (revision, new), (request, asked)),
    }
    return [name for name, failed in fails.items() if failed]


class SharedClosers:
    """The closing sentences that many of a run's revisions share, which training would teach to end any answer with.

    Of each distinct sentence a hash and a count are kept, and the text once it is the third of its kind.
    """

    def __init__(self) -> None:
        self._texts = 0
        self._counts: Counter[int] = Counter()
        self._sentences: dict[int, str] = {}

    def add(self, text: str) -> None:
        """Count one revision by its last sentence, if it has others."""
        self._texts += 1
        *others, last = SENTENCE.split(text.strip())
        if not others or len(words := _normalised_words(last)) < NGRAM:
            return
        key = hash(tuple(words))
        self._counts[key] += 1
        if self._counts[key] == MIN_SHARED:
            self._sentences[key] = last

    def shares(self) -> dict[str, float]:
        """The share of the revisions that end with a sentence, in [0, 1], of those above MAX_SHARED; the most first."""
        by_text = {sentence: self._counts[key] / self._texts for key, sentence in self._sentences.items()}
        return {
            text: by_text[text]
            for text in sorted(by_text, key=lambda t: (-by_text[t], t))
            if by_text[text] > MAX_SHARED
        }


def _normalised_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _copies(text: list[str], ngrams: set[tuple[str, ...]], critique: list[str], draft: list[str]) -> bool:
    """Whether a text is the critique word by word, or over MAX_COPIED of its n-grams are its and not the draft's."""
    copied = ngrams & _ngrams(critique)
    return text == critique or (bool(copied) and len(copied - _ngrams(draft)) / len(ngrams) > MAX_COPIED)


def repetition(text: str) -> float:
    """The share of a text's n-grams of NGRAM words that stand in it before, in [0, 1]; 0 for a text of fewer words.

    seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319 §6.1).
    """
    words = _normalised_words(text)
    return _repeated_share(words, _ngrams(words))


def repeats_itself(text: str) -> bool:
    """Whether a text loops: over MAX_REPEATED of its sequences of words stand in it before."""
    return repetition(text) > MAX_REPEATED


def _repeated_share(words: list[str], ngrams: set[tuple[str, ...]]) -> float:
    total = len(words) - NGRAM + 1
    return 1 - len(ngrams) / total if total > 0 else 0.0


def _parrots(text: list[str], instruction: list[str], draft: list[str], request: list[str]) -> bool:
    parroted = _ngrams(text, PARROTED) & _ngrams(instruction, PARROTED)
    return bool(parroted) and bool(parroted - _ngrams(draft, PARROTED) - _ngrams(request, PARROTED))


def _ngrams(words: list[str], size: int = NGRAM) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(size)), strict=False))  # half the time of a slice for each


def _announces(text: str) -> bool:
    ends = (text[:ENDS], text[-ENDS:])
    return any(ANNOUNCEMENT.search(end) is not None for end in ends if ANNOUNCED.search(end))  # half the time


def _switches(before: Text, revision: Text, request: Text) -> bool:
    """Whether a revision is in another language than the answer before and the request, as far as these are known."""
    new = _language(revision)
    return new is not None and (old := _language(before)) is not None and new not in (old, _language(request))


def language(text: str) -> str | None:
    """The language or script of a text by its script, or by its stop words in Latin script; None where both are unsure.

    Kept small on purpose: it knows STOPWORDS and SCRIPTS, and needs MIN_WORDS of running text.
    """
    return _language((text, _normalised_words(text)))


def _language(of: Text) -> str | None:
    text, words = of
    if not text.isascii() and _OTHER_SCRIPTS.search(text):
        letters = sum(character.isalpha() for character in text)
        for name, characters in _SCRIPTS.items():
            if len(characters.findall(text)) > letters / 2:
                return name
    if len(words) < MIN_WORDS:
        return None
    hits = {name: sum(map(stop.__contains__, words)) for name, stop in _STOPWORDS.items()}
    second, best = sorted(hits, key=hits.__getitem__)[-2:]
    known = hits[best] >= MIN_STOPWORDS * len(words) and hits[best] >= MIN_LEAD * hits[second]
    return best if known else None
