"""The rules about what principles say and ask; docs/constitutions.md gives each one's reason."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from cai.constitution import TEXTS, Constitution, Principle, shares
from cai.linting.findings import Finding, Place
from cai.linting.words import BAD, content, leanings, only_denies, trait, words

MOST_WORDS = 80  # of one text; the longest shipped one has 33, and small models lose long requests
LEAST_SHARE = 1 / 200  # of draws: the shipped file of prompts has 200
ALIKE = 0.4  # Jaccard similarity of the content words of two principles; shipped ones reach 0.18
CONTAINED = 0.7  # share of the smaller set of content words that the other holds; shipped ones reach 0.33
FEWEST_WORDS = 5  # content words that a principle needs to be called like another
FEWEST_SAID = 2  # content words that a text needs to be called foreign to the others

NEAR = 0.5  # cosine of two principles by a model's states; docs/constitutions.md says what that finds

At = Callable[[Principle, str], Place]  # where a field of a principle stands

if TYPE_CHECKING:
    from cai.linting.meaning import Vectors

Similarity = Callable[[Sequence[Principle]], "Vectors"]  # the cosine of any two, as a matrix (cai/linting/meaning.py)


def about_one(principle: Principle, at: At) -> Iterator[Finding]:
    """What may be wrong with a principle by itself."""
    yield from _long_texts(principle, at)
    yield from _disagreement(principle, at)
    yield from _judge(principle, at)
    yield from _framing(principle, at)


def about_all(constitution: Constitution, at: At, similarity: Similarity | None = None) -> Iterator[Finding]:
    """What may be wrong with principles beside each other; by their meaning too, where there is a `similarity`."""
    yield from _starved(constitution, at)
    yield from _alike(constitution, at, similarity)


def _long_texts(principle: Principle, at: At) -> Iterator[Finding]:
    for field in TEXTS:
        if (count := len(words(getattr(principle, field)))) > MOST_WORDS:
            reason = f"{field} has {count} words, more than {MOST_WORDS}: small models lose parts of long requests"
            suggestion = "keep the one thing it asks for, or make two principles of it"
            yield Finding(*at(principle, field), "too-long", "warning", reason, suggestion)


def _disagreement(principle: Principle, at: At) -> Iterator[Finding]:
    said = {field: content(getattr(principle, field)) for field in TEXTS}
    strangers = [
        field
        for field in TEXTS
        if len(said[field]) >= FEWEST_SAID
        and not said[field] & frozenset().union(*(said[f] for f in TEXTS if f != field))
    ]
    if strangers:
        subject = {1: f"{strangers[0]} has", 2: f"{' and '.join(strangers)} have"}.get(
            len(strangers), "critique, revision and judge have"
        )
        others = "with each other" if len(strangers) == 3 else "with the other two texts"
        reason = f"{subject} no word of substance in common {others}: they may ask for different things"
        suggestion = "let all three name the same thing in the same words"
        yield Finding(*at(principle, strangers[-1]), "texts-disagree", "warning", reason, suggestion)

    revision, judge = leanings(principle.revision), leanings(principle.judge)
    opposite = [key for key in judge if revision.get(key) == -judge[key]]
    if judge.get("bad") == 1 and "bad" not in revision and not BAD & said["revision"]:
        opposite.append("bad")  # nothing in the revision asks for harm
    for key in opposite:
        what = {"bad": "harm", "long": "length", "complicat": "complication"}.get(key, f"what is “{key}…”")
        wants = "more" if judge[key] > 0 else "less"
        reason = f"judge prefers {wants} {what}, and revision asks for no such thing: labels would work against it"
        suggestion = "ask which answer does better what the revision asks for"
        yield Finding(*at(principle, "judge"), "opposite", "error", reason, suggestion)

    for field, other in itertools.permutations(TEXTS, 2):
        whole = getattr(principle, other)
        if len(words(whole)) >= FEWEST_WORDS and whole in getattr(principle, field) and field != "critique":
            reason = f"{field} repeats {other} word for word, as an import does for want of a text"
            yield Finding(*at(principle, field), "made-up", "hint", reason, f"write what the {field} is to say")


POSITIONS = re.compile(
    r"\b(?:[Aa]nswer|[Rr]esponse|[Rr]eply|[Oo]ption|[Cc]ompletion|ANSWER|OPTION)\s+\(?"
    r"(?:[A-H]\b|[1-9](?=\)|[.,;:?!]|$|\s+(?:and|or|is|over|than|to)\b))"
    r"|\([AB]\)"
    r"|(?i:\b(?:first|second|1st|2nd|former|latter|last|left|left-hand|right-hand)\s+"
    r"(?:answer|response|reply|option|completion|one)\b)"
    r"|(?i:\bthe\s+(?:former|latter)\b)"
)
ABOUT_ONE = re.compile(r"\s*(?:is|are|was|does|do|did|has|have|can|could|should|would|will|how)\b", re.IGNORECASE)
CHOOSES = re.compile(r"\b(?:choose|pick|select|prefer|compare|favou?r|rank)\b", re.IGNORECASE)


def _judge(principle: Principle, at: At) -> Iterator[Finding]:
    place = at(principle, "judge")
    if found := POSITIONS.search(principle.judge):
        reason = (
            f"judge names a place, “{found[0]}”: every pair is asked in both orders, so no place is always the better"
        )
        yield Finding(*place, "position", "warning", reason, "describe the better answer in place of pointing at one")
    chooses = CHOOSES.search(principle.judge)
    question = re.search("[?\uff1f\u061f\u037e\u055e]", principle.judge)
    if not chooses and (not question or ABOUT_ONE.match(principle.judge)):
        reason = "judge is no question that chooses between two answers, and its reply is read as such a choice"
        suggestion = "begin with “Which answer …” and end with a question mark"
        yield Finding(*place, "no-choice", "warning", reason, suggestion)


def _framing(principle: Principle, at: At) -> Iterator[Finding]:
    for field in TEXTS:
        if found := trait(getattr(principle, field)):
            reason = (
                f"“{found}” names a trait; people agree more with principles that name a behaviour (arXiv:2502.15861)"
            )
            suggestion = "say what the answer does, such as “the answer says what it does not know”"
            yield Finding(*at(principle, field), "trait", "hint", reason, suggestion)
    if only_denies(principle.revision):
        reason = "revision says only what not to do; people agree more with positive principles (arXiv:2502.15861)"
        suggestion = "say what the new answer does in its place"
        yield Finding(*at(principle, "revision"), "negative", "hint", reason, suggestion)


def _starved(constitution: Constitution, at: At) -> Iterator[Finding]:
    share = shares(constitution)
    for principle in constitution.principles:
        if share[principle.id] < LEAST_SHARE:
            often = f"once in {1 / share[principle.id]:.0f} draws" if share[principle.id] > 0 else "never"
            reason = f"with weight {principle.weight:g} it is drawn {often}, less than once in {1 / LEAST_SHARE:.0f}"
            suggestion = "raise its weight, lower those of others, or leave it out"
            yield Finding(*at(principle, "weight"), "starved", "warning", reason, suggestion)


def _alike(constitution: Constitution, at: At, similarity: Similarity | None) -> Iterator[Finding]:
    said = {p.id: content(" ".join(getattr(p, field) for field in TEXTS)) for p in constitution.principles}
    cosine = similarity(constitution.principles) if similarity else None
    for (i, a), (j, b) in itertools.combinations(enumerate(constitution.principles), 2):
        both, either = said[a.id] & said[b.id], said[a.id] | said[b.id]
        smaller = min(len(said[a.id]), len(said[b.id]))
        here, line = at(b, "id"), at(a, "id").line
        suggestion = f"drop one and give the other weight {a.weight + b.weight:g}, or say what sets them apart"
        if a.fingerprint == b.fingerprint:
            reason = f"says word for word what '{a.id}' says (line {line})"
            yield Finding(*here, "near-duplicate", "warning", reason, suggestion)
        elif smaller >= FEWEST_WORDS and (len(both) >= ALIKE * len(either) or len(both) >= CONTAINED * smaller):
            share = 100 * len(both) / smaller
            reason = f"is much like '{a.id}' (line {line}): they share {share:.0f} % of their words of substance"
            yield Finding(*here, "near-duplicate", "warning", reason, suggestion)
        elif cosine is not None and cosine[i, j] >= NEAR:
            reason = f"may ask for the same as '{a.id}' (line {line}): the model reads them alike ({cosine[i, j]:.2f})"
            yield Finding(*here, "same-meaning", "hint", reason, suggestion)
