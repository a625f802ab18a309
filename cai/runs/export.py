"""What a run or a file holds, in formats of others."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cai.formats import alpaca_eval, annotated_pairs, cai_conversation
from cai.formats.completions import iter_completions
from cai.formats.exports import EXPORTS, exported, things
from cai.formats.preferences import iter_preferences
from cai.records import LeftOut, Preference
from cai.runs.folder import RunFolder
from cai.templates import Templates
from cai.training.sft import fit_revisions

OF_RUNS = {"cai-conversation": "revisions", "alpaca-eval": "evaluation"}  # and what of a run they are made of
FORMATS = (*EXPORTS, "annotated-pairs", *OF_RUNS)

Source = RunFolder | Path
Items = Iterator[BaseModel | Mapping[str, Any]]


def table(source: Source, name: str, lost: Counter[str]) -> tuple[type, Items]:
    """The type of a format's rows, and those of a source with what is left out; `lost` counts what has no place."""
    if name == "cai-conversation" and isinstance(source, RunFolder):
        return cai_conversation.Row, _conversations(source, lost)
    of = _preferences if EXPORTS[name].of == "preferences" else _completions
    return EXPORTS[name].row, exported(of(source), name, lost)


def annotated_document(source: Source, lost: Counter[str]) -> tuple[dict[str, Any], list[LeftOut]]:
    """The pairs of a source as annotated pairs, with a run's principles in words; and what is left out."""
    listed, left_out = list[dict[str, Any]](), list[LeftOut]()
    for number, pair in enumerate(_preferences(source)):
        made = pair if isinstance(pair, LeftOut) else annotated_pairs.comparison(pair, number)
        if isinstance(made, LeftOut):
            left_out.append(made)
        elif isinstance(made, str):
            left_out.append(LeftOut(prompt_id=pair.prompt_id, stage="annotated-pairs", reason=made))
        else:
            listed.append(made)
            lost.update(set(things(pair)) - annotated_pairs.KEEPS)  # type: ignore[arg-type]
    listed_principles = source.constitution().principles if isinstance(source, RunFolder) else []
    principles = {p.id: p.judge for p in listed_principles}
    return annotated_pairs.document(listed, source.name, principles), left_out


def alpaca_files(run: RunFolder) -> tuple[dict[str, list[dict[str, Any]]], list[LeftOut]]:
    """A run's evaluation as AlpacaEval's files, by name; and what is left out."""
    files: dict[str, list[dict[str, Any]]] = {"model_outputs": [], "reference_outputs": [], "annotations": []}
    left_out = []
    before = str(run.lock()["config"]["model"])
    for comparison in run.evaluation():
        made = alpaca_eval.entries(comparison, before, run.name, f"referee of {run.name}")
        if isinstance(made, str):
            left_out.append(LeftOut(prompt_id=comparison.prompt_id, stage="evaluation", reason=made))
        else:
            for entries, entry in zip(files.values(), made, strict=True):
                entries.append(entry)
    return {f"{name}.json": entries for name, entries in files.items()}, left_out


def _preferences(source: Source) -> Iterable[Preference | LeftOut]:
    return source.preferences() if isinstance(source, RunFolder) else iter_preferences(source)


def _completions(source: Source) -> Iterator[BaseModel]:
    """The answers to learn of a run, which are the revisions that hygiene finds fit, or of a file."""
    if not isinstance(source, RunFolder):
        yield from iter_completions(source)
        return
    for revision in source.revisions():
        if revision.flags:
            yield _unfit(revision.prompt_id, revision.round, f"revision {revision.flags[0].replace('_', ' ')}")
        else:
            yield from fit_revisions([revision], "all")


def _conversations(run: RunFolder, lost: Counter[str]) -> Items:
    constitution, templates = run.constitution(), Templates(run.templates)
    for revision in run.revisions():
        made = cai_conversation.row(revision, constitution, templates)
        if isinstance(made, str):
            yield _unfit(revision.prompt_id, revision.round, made)
        else:
            lost.update(["ids", "verdicts and principles", *(["tags"] if revision.tags else [])])
            yield from made


def _unfit(prompt_id: str, round: int, reason: str) -> LeftOut:
    return LeftOut(prompt_id=prompt_id, stage=f"round {round}", reason=reason)
