"""The comparison as one self-contained HTML page. Model text is escaped by the template engine, always."""

import difflib

from markupsafe import Markup, escape

from cai.runs.compare import RunComparison
from cai.runs.page import page


def comparison_page(comparison: RunComparison) -> str:
    """The HTML of a comparison: no network, no scripts."""
    return page("comparison.html.jinja", {"words": marked_words}, c=comparison, principles=_principles(comparison))


def marked_words(text: str, other: str, tag: str) -> Markup:
    """`text`, escaped, with the words that `other` lacks inside <tag>."""
    assert tag in ("ins", "del")
    ours, theirs = text.split(" "), other.split(" ")
    parts = []
    for kind, start, end, _, _ in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        words = escape(" ".join(ours[start:end]))
        if start < end:
            parts.append(words if kind == "equal" else Markup("<{0}>{1}</{0}>").format(Markup(tag), words))
    return Markup(" ").join(parts)


def _principles(comparison: RunComparison) -> list[dict[str, str]]:
    """Each principle that differs: its id, what happened to it, and its three texts before and after."""
    before, after = ({p.id: p for p in c.principles} for c in comparison.constitutions)
    rows = []
    kinds = {
        "added": comparison.principles.added,
        "removed": comparison.principles.removed,
        "reworded": comparison.principles.reworded,
        "reweighted": comparison.principles.reweighted,
    }
    for kind, ids in kinds.items():
        for i in ids:
            texts = [
                "\n".join((p.critique, p.revision, p.judge, f"weight {p.weight:g}")) if p else ""
                for p in (before.get(i), after.get(i))
            ]
            rows.append({"id": i, "kind": kind, "before": texts[0], "after": texts[1]})
    return rows
