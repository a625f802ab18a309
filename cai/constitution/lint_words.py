"""Heuristics on the wording of principles, for the lint rules: content words, what a text wants more or less of,
traits, and negative instructions. English only.

They are rough on purpose: the linter points at a place, and a person decides.
"""

import re
from typing import NamedTuple


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Not content words: function words, and what every principle says about answers.
COMMON = _words(
    """a about all also an and any anything are as at be because been being both but by can could did do does each
    either else even ever every everything for from had has have having how i if in into is it its itself just keep let
    like made make makes making may more most much must my no none nor not of off on one only or other others out over
    own part rather really same should so some someone something such than that the their them then there these they
    thing things this those to too two up use used uses using very was way were what when where whether which while who
    whom whose why will with without words word would you your yours
    add answer answers answered better best choose compare critique critiques explain find give gives given giving
    identify instruction less least list name note one out pick please point points prefer question quote quotes reader
    remove reply replies request response responses revise revision rewrite say says select sentence sentences show
    state take tell text user users write assistant human"""
)
SUFFIXES = (
    *("ations", "ation", "fully", "ness", "ment", "ings", "ing", "ous", "ful", "est", "ers", "ies", "ity", "ty"),
    *("ed", "er", "es", "ly", "al", "y", "s", "e"),
)
UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff]"  # Japanese and Chinese: every character stands for a word
WORD = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})[^\W_])+(?:['’](?:(?!{UNSPACED})[^\W_])+)?")


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())


def content(text: str) -> frozenset[str]:
    """The stems of the content words of a text."""
    return frozenset(stem(word) for word in words(text) if word not in COMMON)


def stem(word: str) -> str:
    """A word without its suffixes, so that safe, safer and safety are equal; for comparing, not for reading."""
    word = re.sub(r"['’].*", "", word)
    for _ in range(2):
        ending = next((s for s in SUFFIXES if word.endswith(s) and len(word) - len(s) >= 3), "")
        word = word.removesuffix(ending)
    return word


BAD = frozenset(
    stem(word)
    for word in _words(
        """abusive bias biased biases careless cruel damage damaging dangerous deceptive discriminatory dishonest error
        errors evil false harm harmful hateful hostile hurtful illegal immoral inaccurate insult insulting insults lies
        manipulative misleading mistake mistakes offensive prejudiced preachy racist reckless risky rude sexist
        threatening toxic toxicity unethical unfair unkind unlawful unsafe untrue vague violent"""
    )
)
GOOD = _words(
    """accurate careful caring considerate correct ethical fair friendly harmless helpful honest kind lawful legal moral
    peaceful polite reliable respectful safe thoughtful true truthful useful wise"""
)
COMPARATIVES = {  # each maps to a stem, and whether it means more (1) or less (-1) of it
    **dict.fromkeys(("longer", "longest", "lengthier"), ("long", 1)),
    **dict.fromkeys(("shorter", "shortest", "briefer", "terser"), ("long", -1)),
    **dict.fromkeys(("simpler", "simplest", "plainer", "plainest", "easier"), ("complicat", -1)),
    **dict.fromkeys(("safer", "safest", "kinder", "kindest", "fairer", "wiser", "friendlier", "politer"), ("bad", -1)),
    **dict.fromkeys(("worse", "worst", "ruder", "crueller", "crueler", "riskier"), ("bad", 1)),
}
QUANTITIES = {"more": 1, "most": 1, "less": -1, "least": -1, "fewer": -1, "fewest": -1}
NEGATION = re.compile(
    r"not|no|never|neither|nor|without|free|cannot|against|\w+n['’]t|(?:avoid|refus|reject|remov|stop|prevent|reduc"
    r"|limit|resist|declin|correct|drop|delet|leav|omit|cut|oppos|warn|protect|guard|catch|flag|fix)\w*"
)
REACH = 4  # words that a negation reaches over: "do not choose the more harmful one"


class Leaning(NamedTuple):
    """Whether a text asks for more of something (1) or less (-1), and the words that do."""

    sign: int
    phrase: str


def leanings(text: str) -> dict[str, Leaning]:
    """What a text asks for more or less of, by stem; `bad` stands for all of BAD and the inverse of GOOD.

    Derived from quantities ("less formal"), comparatives ("shorter") and negated bad words ("remove insults"); a stem
    that is asked for both ways is omitted.
    """
    leaning: dict[str, dict[int, str]] = {}
    tokens = words(text)
    for at, word in enumerate(tokens):
        before = tokens[max(0, at - REACH) : at]
        denials = [place for place, w in enumerate(before) if NEGATION.fullmatch(w)]
        sign = -1 if denials else 1
        near = len(before) - (2 if before and before[-1].endswith("ly") else 1)  # "more clearly false"
        quantity = QUANTITIES.get(before[near], 0) if near >= 0 else 0
        root = stem(word)
        if word in COMPARATIVES:
            root, more = COMPARATIVES[word]
        elif root in BAD and (quantity or sign < 0):
            root, more = "bad", quantity or 1
        elif word in GOOD and quantity:
            root, more = "bad", -quantity
        elif quantity and word not in COMMON:
            more = quantity
        else:
            continue
        start = denials[-1] if denials else near if quantity else len(before)
        leaning.setdefault(root, {}).setdefault(more * sign, " ".join([*before[start:], word]))
    return {root: Leaning(*both.popitem()) for root, both in leaning.items() if len(both) == 1}


def opposed(some: dict[str, Leaning], others: dict[str, Leaning]) -> dict[str, tuple[Leaning, Leaning]]:
    """What two texts ask for in opposite ways, by stem, and how each does."""
    return {
        root: (some[root], others[root]) for root in some if root in others and some[root].sign != others[root].sign
    }


ADJECTIVE = "(?:{})".format(
    "|".join(
        sorted(
            _words(
                """brave caring careful compassionate considerate creative curious empathetic ethical fair friendly good
                harmless helpful honest humble kind loyal moral neutral nice open patient peaceful polite respectful
                responsible safe sincere smart thoughtful trustworthy truthful unbiased virtuous wise"""
            )
        )
    )
)
VIRTUE = (
    "(?:benevolence|compassion|empathy|goodness|helpfulness|honesty|humility|integrity|kindness|politeness|sincerity"
    "|trustworthiness|virtue|wisdom)"
)
TRAIT = re.compile(
    rf"(?:^|[.;:!?]\s+)(?:please\s+)?(?:always\s+)?be\s+(?:more\s+|as\s+|very\s+)?{ADJECTIVE}\b"
    r"|\b(?:AI|assistant|model|chatbot|bot|system|author|writer)\s+"
    rf"(?:is|was|be|seems|sounds|(?:should|must|will|would)(?:\s+always)?\s+be)\s+(?:\w+\s+)?{ADJECTIVE}\b"
    rf"|\byou\s+(?:are|should\s+be|must\s+be)\s+(?:an?\s+)?{ADJECTIVE}\b"
    r"|\b(?:shows?|showing|exhibits?|demonstrates?|displays?|embod(?:y|ies)|has|have)\s+(?:more\s+|greater\s+|true\s+)?"
    rf"{VIRTUE}\b",
    re.IGNORECASE,
)


def trait(text: str) -> str | None:
    """The words that ascribe a trait ("be kind", "the AI is honest"), or None."""
    match = TRAIT.search(text)
    return match[0].strip(" .;:!?\n") if match else None


OBJECT = r"(?:a|the|this|your|its|new|last|assistant['’]s|revised|version|revision|of|answer|response|reply|text|it)"
FRAME = re.compile(  # "Rewrite the answer so that it", which stands before both what to do and what not
    r"\s*(?:(?:and|or|but|then|also|please)\s+)*"
    r"(?:(?:re-?write|re-?phrase|revise|amend|edit|change|write|make|produce|give)\s+"
    rf"(?:{OBJECT}\b\s*)*)?"
    r"(?:(?:so|such)\s+)?(?:as\s+)?(?:that\s+)?(?:to\s+)?(?:(?:it|the\s+answer|the\s+response)\s+)?",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"(?:do(?:es)?|is|are|has|can|must|should|will|may)(?:\s+not\b|n['’]t\b)"
    r"|(?:cannot|not|never|no|without|nothing|nobody)\b"
    r"|(?:contains?|has|have|gives?|uses?|includes?|be|is)\s+(?:no|free\s+of|without|nothing)\b"
    r"|(?:avoid|refrain|remov|delet|drop|omit|eliminat|stop|exclud)\w*\b"
    r"|(?:leav|tak|cut)\w*\s+(?:\w+\s+){0,6}?(?:out|away)\b",
    re.IGNORECASE,
)
CLAUSE_END = re.compile(r"[.;:!?]+(?:\s|$)|,\s+(?:and|but|then)\s+")


def only_denies(text: str) -> bool:
    """Whether every clause of an instruction states what not to do or what to remove, and none what to do."""
    clauses = [FRAME.sub("", clause, count=1) for clause in CLAUSE_END.split(text)]
    instructions = [clause for clause in clauses if clause.strip()]  # "Rewrite the answer." states neither
    return bool(instructions) and all(DENIAL.match(clause) for clause in instructions)
