"""Annotated pairs, version 2, of Inverse Constitutional AI and Feedback Forensics (arXiv:2406.06560).

One JSON object, as src/inverse_cai/data/annotated_pairs_format.py of https://github.com/rdnfn/icai writes it:

    {"metadata": {"version": "2.0", "default_annotator": "ba751e7b", …},
     "annotators": {"ba751e7b": {"name", "description", "type"}, …},           type principle, human, unknown …
     "comparisons": [{"id", "prompt", "response_a": {"text", "model"}, "response_b": {…},
                      "annotations": {"ba751e7b": {"pref": "a"}, "…": {"pref": null, "no_pref_reason": "…"}}}, …]}

The default annotator's preference is the label; how sure it is, `metadata.p` says in documents of ours. A prompt is
a text; of several turns, a transcript.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from math import nan
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint, uniform
from cai.config.validation import found
from cai.data.files import Place, RowOfFile
from cai.data.forms import Read, row_prompt, text, transcript, transcript_fault
from cai.data.records import Preference, Verdict

ALSO = ("id", "prompt", "default_annotator")
# Feedback Forensics looks for the label under this id (src/feedback_forensics/data/loader.py), the text's hash.
DEFAULT_ID, DEFAULT = "ba751e7b", "Default annotator from original dataset (from column `preferred_text`)"
METADATA = ("prompt_id", "p", "source", "tags")  # texts, by which its tables can be filtered
MADE = "Preferences with the verdicts of principles, made by cai"  # by this a document of ours is known
KEEPS = {"ids", "tags", "soft labels", "verdicts and principles"}  # of what a pair holds besides


def comparisons(place: Place, value: RowOfFile) -> Iterator[tuple[Place, RowOfFile]]:
    """The comparisons of a document as rows with a place of their own; any other row as it is.

    Raises: CaiError for a document of another version, or without a default annotator.
    """
    if "comparisons" not in value or "annotators" not in value:
        yield place, value
        return
    metadata, annotators, listed = (value.get(key) for key in ("metadata", "annotators", "comparisons"))
    if not isinstance(metadata, dict) or not isinstance(annotators, dict) or not isinstance(listed, list):
        raise CaiError(f"{place}: expected the objects 'metadata' and 'annotators' and the list 'comparisons'")
    if not str(metadata.get("version", "1.0")).startswith("2."):
        raise CaiError(f"{place}: annotated pairs of version {metadata.get('version', '1.0')}; version 2.0 is read")
    default = metadata.get("default_annotator")
    if default not in annotators:
        raise CaiError(f"{place}: metadata.default_annotator: {default} is not among the annotators")
    ours = metadata.get("description") == MADE and default == DEFAULT_ID
    for number, comparison in enumerate(listed, 1):
        inside = Place(place.path, f"comparison {number}")
        if not isinstance(comparison, dict):
            raise CaiError(f"{inside}: expected a JSON object, found {str(comparison)[:60]}")
        kept = {key: field for key, field in comparison.items() if field is not None}
        p = _probability(inside, comparison) if ours else 1.0
        yield inside, {**kept, "default_annotator": {"id": default, **annotators[default], "p": p}}


def _probability(place: Place, comparison: RowOfFile) -> float:
    """That of the likelier answer, as `comparison` below wrote it."""
    written = comparison.get("metadata")
    text = written.get("p") if isinstance(written, dict) else None
    try:
        p = float(str(text))
    except ValueError:
        p = nan
    if not 0 <= p <= 1:
        raise CaiError(f"{place}: metadata.p: expected a number from 0 to 1, found {found(text)}")
    return max(p, 1 - p)


def read_pair(place: Place, value: RowOfFile) -> Read:
    """A comparison as the default annotator decides it."""
    annotator, annotations = value["default_annotator"], value["annotations"]
    given = annotations.get(annotator["id"]) if isinstance(annotations, dict) else None
    if not isinstance(given, dict):
        return f"no annotation by the default annotator, {annotator['id']}"
    preferred = given.get("pref")
    if preferred is None:
        return f"the default annotator has no preference ({given.get('no_pref_reason', 'no reason given')})"
    if preferred not in ("a", "b"):
        raise CaiError(f"{place}: pref: expected a or b, found {preferred}")
    if "prompt" not in value:
        return "no prompt: a pair needs the conversation that its answers answer"
    first, second = (_response(place, value, key) for key in ("response_a", "response_b"))
    chosen, rejected = (first, second) if preferred == "a" else (second, first)
    by_human = annotator.get("type") in ("human", "unknown")  # unknown is what inverse CAI writes of any data set
    return [
        {
            "prompt_id": text(place, value, "id"),
            "messages": row_prompt(place, {"prompt": value["prompt"]}),
            "chosen": chosen,
            "rejected": rejected,
            "p": annotator["p"],
            "source": "human" if by_human else "judge",
            "judge": "" if by_human else str(annotator.get("name", annotator["id"])),
        }
    ]


def _response(place: Place, value: RowOfFile, key: str) -> str:
    found: Any = value[key]
    return text(Place(place.path, f"{place.at}: {key}"), found if isinstance(found, dict) else {}, "text")


def comparison(pair: Preference, number: int) -> dict[str, Any] | str:
    """A pair as a comparison, or why it cannot be one; which answer is `a` is drawn by the hash of the pair.

    The label is the default annotator's, each verdict that of an annotator named after its principle.
    """
    spoken = [turn for turn in pair.messages if turn["role"] != "system"]
    if fault := transcript_fault(spoken):
        return fault
    chosen, rejected = ("a", "b") if uniform("place", pair.prompt_id, number) < 0.5 else ("b", "a")

    def preferred(p: float) -> dict[str, Any]:
        if p == 0.5:
            return {"pref": None, "no_pref_reason": "tie"}
        return {"pref": chosen if p > 0.5 else rejected}

    responses = {
        f"response_{place}": {"text": answer} | ({"model": pair.model} if pair.model else {})
        for place, answer in sorted([(chosen, pair.chosen), (rejected, pair.rejected)])
    }
    by_principle: dict[str, list[Verdict]] = {}
    for verdict in pair.verdicts:
        by_principle.setdefault(verdict.principle_id, []).append(verdict)
    votes = {name: preferred(sum(v.p for v in said) / len(said)) for name, said in by_principle.items()}
    return {
        "id": fingerprint(pair.prompt_id, number),
        "prompt": spoken[0]["content"] if len(spoken) == 1 else transcript(spoken),
        **responses,
        "annotations": {DEFAULT_ID: preferred(pair.p), **votes},
        "metadata": {
            "prompt_id": pair.prompt_id, "p": str(pair.p), "source": pair.source, "tags": ", ".join(pair.tags)
        },
    }  # fmt: skip


def document(listed: Iterable[dict[str, Any]], name: str, principles: Mapping[str, str]) -> dict[str, Any]:
    """Comparisons as a whole document; `principles` are the judge's questions by id, where they are known."""
    compared = list(listed)
    by_human = all(c["metadata"]["source"] == "human" for c in compared)
    asked = dict.fromkeys(i for c in compared for i in c["annotations"] if i != DEFAULT_ID)
    not_asked = {i: {"pref": None, "no_pref_reason": "not_applicable"} for i in asked}
    return {
        "metadata": {
            "version": "2.0",
            "description": MADE,
            "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "dataset_name": name,
            "default_annotator": DEFAULT_ID,
            "available_metadata_keys_per_comparison": list(METADATA),
        },
        "annotators": {
            DEFAULT_ID: {"name": "preferred_text", "description": DEFAULT, "type": "human" if by_human else "ai"},
            **{i: {"name": i, "description": principles.get(i, i), "type": "principle"} for i in asked},
        },
        "comparisons": [{**c, "annotations": not_asked | c["annotations"]} for c in compared],
    }
