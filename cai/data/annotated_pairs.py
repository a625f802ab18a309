"""Annotated pairs, version 2, of Inverse Constitutional AI and Feedback Forensics (arXiv:2406.06560).

One JSON object, as src/inverse_cai/data/annotated_pairs_format.py of https://github.com/rdnfn/icai writes it:

    {"metadata": {"version": "2.0", "default_annotator": "ba751e7b", …},
     "annotators": {"ba751e7b": {"name", "description", "type"}, …},           type principle, human, unknown …
     "comparisons": [{"id", "prompt", "response_a": {"text", "model"}, "response_b": {…},
                      "annotations": {"ba751e7b": {"pref": "a"}, "…": {"pref": null, "no_pref_reason": "…"}}}, …]}

The default annotator's preference is the label; documents written by cai add its probability as `metadata.p`. A prompt
is a text, or a transcript if it has several turns.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from math import nan
from typing import Any

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint, uniform
from cai.config.validation import describe
from cai.data.files import Place, RawRow
from cai.data.formats import RowFields, row_prompt, skipped, text
from cai.data.records import Preference, Skipped, Verdict
from cai.data.transcripts import transcript, transcript_problem

FIELDS = ("id", "prompt", "default_annotator")
# Feedback Forensics looks for the label under this id (src/feedback_forensics/data/loader.py), the text's hash.
DEFAULT_ID, DEFAULT = "ba751e7b", "Default annotator from original dataset (from column `preferred_text`)"
METADATA = ("prompt_id", "p", "source", "tags")  # texts that Feedback Forensics can filter its tables by
MADE = "Preferences with the verdicts of principles, made by cai"  # identifies a document written by cai
KEEPS = {"ids", "tags", "soft labels", "verdicts and principles"}  # of cai/data/exports.py's EXTRAS


def comparisons(place: Place, value: RawRow) -> Iterator[tuple[Place, RawRow]]:
    """The comparisons of a document as rows with their own places; any other row unchanged.

    Raises: CaiError for a document of another version, or without a default annotator.
    """
    if "comparisons" not in value or "annotators" not in value:
        yield place, value
        return
    metadata, annotators, listed = (value.get(key) for key in ("metadata", "annotators", "comparisons"))
    if not isinstance(metadata, dict) or not isinstance(annotators, dict) or not isinstance(listed, list):
        raise CaiError(f"{place}: expected the objects 'metadata' and 'annotators' and the list 'comparisons'")
    if not str(metadata.get("version", "1.0")).startswith("2."):
        raise CaiError(f"{place}: annotated pairs of version {metadata.get('version', '1.0')}; expected version 2.0")
    default = metadata.get("default_annotator")
    if default not in annotators:
        raise CaiError(f"{place}: metadata.default_annotator: {default} is not among the annotators")
    written_by_cai = metadata.get("description") == MADE and default == DEFAULT_ID
    for number, comparison in enumerate(listed, 1):
        inside = Place(place.path, f"comparison {number}")
        if not isinstance(comparison, dict):
            raise CaiError(f"{inside}: expected a JSON object, found {str(comparison)[:60]}")
        present = {key: field for key, field in comparison.items() if field is not None}
        p = _probability(inside, comparison) if written_by_cai else 1.0
        yield inside, {**present, "default_annotator": {"id": default, **annotators[default], "p": p}}


def _probability(place: Place, comparison: RawRow) -> float:
    """P(the likelier answer is better) of a comparison that `to_comparison` wrote."""
    metadata = comparison.get("metadata")
    text = metadata.get("p") if isinstance(metadata, dict) else None
    try:
        p = float(str(text))
    except ValueError:
        p = nan
    if not 0 <= p <= 1:
        raise CaiError(f"{place}: metadata.p: expected a number from 0 to 1, found {describe(text)}")
    return max(p, 1 - p)


def read_pair(place: Place, value: RawRow) -> RowFields:
    """A comparison with the default annotator's label."""
    annotator, annotations = value["default_annotator"], value["annotations"]
    annotation = annotations.get(annotator["id"]) if isinstance(annotations, dict) else None
    if not isinstance(annotation, dict):
        return skipped(place, value, f"no annotation by the default annotator, {annotator['id']}")
    preferred = annotation.get("pref")
    if preferred is None:
        reason = annotation.get("no_pref_reason", "no reason stated")
        return skipped(place, value, f"the default annotator has no preference ({reason})")
    if preferred not in ("a", "b"):
        raise CaiError(f"{place}: pref: expected a or b, found {preferred}")
    if "prompt" not in value:
        return skipped(place, value, "no prompt: a pair needs the conversation that it answers")
    first, second = (_response(place, value, key) for key in ("response_a", "response_b"))
    chosen, rejected = (first, second) if preferred == "a" else (second, first)
    by_human = annotator.get("type") in ("human", "unknown")  # Inverse CAI writes `unknown` for any data set
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


def _response(place: Place, value: RawRow, key: str) -> str:
    response: Any = value[key]
    return text(Place(place.path, f"{place.at}: {key}"), response if isinstance(response, dict) else {}, "text")


def to_comparison(pair: Preference, number: int) -> dict[str, Any] | Skipped:
    """A pair as a comparison; the hash of the pair decides which answer is `a`.

    The pair's label becomes the default annotator's, each verdict that of an annotator named after its principle.
    """
    prompt = [turn for turn in pair.messages if turn["role"] != "system"]
    if problem := transcript_problem(prompt):
        return Skipped(prompt_id=pair.prompt_id, stage="annotated-pairs", reason=problem)
    chosen, rejected = ("a", "b") if uniform("place", pair.prompt_id, number) < 0.5 else ("b", "a")

    def annotation(p: float) -> dict[str, Any]:
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
    votes = {
        name: annotation(sum(verdict.p for verdict in verdicts) / len(verdicts))
        for name, verdicts in by_principle.items()
    }
    return {
        "id": fingerprint(pair.prompt_id, number),
        "prompt": prompt[0]["content"] if len(prompt) == 1 else transcript(prompt),
        **responses,
        "annotations": {DEFAULT_ID: annotation(pair.p), **votes},
        "metadata": {
            "prompt_id": pair.prompt_id, "p": str(pair.p), "source": pair.source, "tags": ", ".join(pair.tags)
        },
    }  # fmt: skip


def document(rows: Iterable[dict[str, Any]], name: str, principles: Mapping[str, str]) -> dict[str, Any]:
    """A whole document; `principles` are the judge's questions by id, as far as they are known."""
    comparisons = list(rows)
    by_human = all(c["metadata"]["source"] == "human" for c in comparisons)
    principle_ids = dict.fromkeys(i for c in comparisons for i in c["annotations"] if i != DEFAULT_ID)
    not_applicable = {i: {"pref": None, "no_pref_reason": "not_applicable"} for i in principle_ids}
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
            **{i: {"name": i, "description": principles.get(i, i), "type": "principle"} for i in principle_ids},
        },
        "comparisons": [{**c, "annotations": not_applicable | c["annotations"]} for c in comparisons],
    }
