"""Exporting a run or a file to external formats, and publishing a run as a dataset with a card.

The dataset has Parquet splits that `datasets` loads, the constitutions, and a card (cai/runs/card.py).
"""

import glob
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from cai.config.errors import CaiError
from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data import evaluation_formats
from cai.data.chat_formats import EXPORTS, ConversationRow, assistant_turn, exported, extras
from cai.data.evaluation_formats import alpaca_entries
from cai.data.files import table_writer
from cai.data.jsonl import file_fingerprint, is_abandoned, read_rows
from cai.data.preferences import iter_preferences
from cai.data.prompts import iter_completions
from cai.data.records import BeforeAfter, Demonstration, Preference, Prompt, Ranking, Revision, Skipped
from cai.feedback.revise import NOTHING_TO_REVISE
from cai.runs.card import File, card
from cai.runs.folder import RunFolder
from cai.training.sft import fit_revisions

RUN_FORMATS = {"cai-conversation": "revisions", "alpaca-eval": "evaluation"}  # made from these rows of a run only
FORMATS = (*EXPORTS, "annotated-pairs", *RUN_FORMATS)
Source = RunFolder | Path
Items = Iterator[BaseModel | Mapping[str, Any]]


def table(source: Source, name: str, lost: Counter[str]) -> tuple[type, Items]:
    """The type of a format's rows, and the rows of a source with the skipped; `lost` counts what has no field there."""
    if name == "cai-conversation" and isinstance(source, RunFolder):
        return ConversationRow, _conversations(source, lost)
    rows = _preferences(source) if EXPORTS[name].source == "preferences" else _completions(source)
    return EXPORTS[name].row, exported(rows, name, lost)


def annotated_document(source: Source, lost: Counter[str]) -> tuple[dict[str, Any], list[Skipped]]:
    """The pairs of a source as a document of annotated pairs, with a run's principles in words; and the skipped."""
    comparisons, skipped = list[dict[str, Any]](), list[Skipped]()
    for position, pair in enumerate(_preferences(source)):
        if isinstance(pair, Skipped):
            skipped.append(pair)
            continue
        comparison = evaluation_formats.to_annotated_comparison(pair, position)
        if isinstance(comparison, Skipped):
            skipped.append(comparison)
        else:
            comparisons.append(comparison)
            lost.update(set(extras(pair)) - evaluation_formats.ANNOTATED_KEEPS)
    principles = source.constitution().principles if isinstance(source, RunFolder) else []
    return evaluation_formats.annotated_document(comparisons, source.name, {p.id: p.judge for p in principles}), skipped


def alpaca_files(run: RunFolder) -> tuple[dict[str, list[dict[str, Any]]], list[Skipped]]:
    """A run's evaluation as AlpacaEval's files, by file name; and the skipped."""
    files: dict[str, list[dict[str, Any]]] = {"model_outputs": [], "reference_outputs": [], "annotations": []}
    skipped = []
    before = str(run.manifest()["config"]["model"])
    for comparison in run.evaluation():
        entries = alpaca_entries(comparison, before, run.name, f"eval judge of {run.name}")
        if isinstance(entries, Skipped):
            skipped.append(entries)
            continue
        for listed, entry in zip(files.values(), entries, strict=True):
            listed.append(entry)
    return {f"{name}.json": entries for name, entries in files.items()}, skipped


def _preferences(source: Source) -> Iterable[Preference | Skipped]:
    return source.preferences() if isinstance(source, RunFolder) else iter_preferences(source)


def _completions(source: Source) -> Iterator[Demonstration | Skipped]:
    """The completions of a file, or of a run: its revisions that pass the filters."""
    if not isinstance(source, RunFolder):
        yield from iter_completions(source)
        return
    for revision in source.revisions():
        if revision.flags:
            yield _flagged(revision)
        else:
            yield from fit_revisions([revision], "all")


def _conversations(run: RunFolder, lost: Counter[str]) -> Items:
    constitution, templates = run.constitution(), Templates(run.templates)
    for revision in run.revisions():
        if revision.flags:
            yield _flagged(revision)
        elif revision.stays:
            yield Skipped(prompt_id=revision.prompt_id, stage=f"round {revision.round}", reason=NOTHING_TO_REVISE)
        else:
            lost.update(["ids", "verdicts and principles", *(["tags"] if revision.tags else [])])
            yield conversation_row(revision, constitution, templates)


def conversation_row(revision: Revision, constitution: Constitution, templates: Templates) -> ConversationRow:
    """A round of a run in the columns of Hugging Face's cai-conversation, with the requests the model received.

    The texts hold the last user turn alone; earlier turns are in `messages`, `chosen` and `rejected`.
    """
    [principle] = [p for p in constitution.principles if p.id == revision.principle_id]
    request = revision.messages[-1]["content"]
    critique_request = templates.critique(principle, revision.round, request) if revision.critique is not None else None
    conversation = [*revision.messages, *assistant_turn(revision.revision)]
    return ConversationRow(
        init_prompt=request,
        init_response=revision.before,
        critic_prompt=critique_request,
        critic_response=revision.critique,
        revision_prompt=templates.revise(principle, revision.round, request, revision.critique),
        revision_response=revision.revision,
        prompt=request,
        messages=conversation,
        chosen=conversation,
        rejected=[*revision.messages, *assistant_turn(revision.before)],
    )


def _flagged(revision: Revision) -> Skipped:
    reason = f"revision {revision.flags[0].replace('_', ' ')}"
    return Skipped(prompt_id=revision.prompt_id, stage=f"round {revision.round}", reason=reason)


HUB = "hub:"  # prefix of a dataset's name on the Hub


class Split(NamedTuple):
    """Rows of one kind; `test` is held out from training."""

    config: str
    split: str
    row: type[BaseModel]
    rows: Sequence[BaseModel]

    @property
    def file(self) -> str:
        """Its path in the dataset."""
        return f"{self.config}/{self.split}.parquet"


def write_dataset(run: RunFolder, folder: Path, licence: str) -> list[Split]:
    """Write a run as a new folder that `datasets.load_dataset` loads; returns its splits.

    Raises: CaiError for a folder that exists, or a run without rows.
    """
    if folder.exists():
        raise CaiError(f"{folder}: exists already; choose another name, or remove it first")
    nonempty = [split for split in splits(run) if split.rows]
    if not any(split.config != "prompts" for split in nonempty):
        raise CaiError(f"{run.path}: this run has no revisions, preferences or evaluation yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}-*.part"):
        if is_abandoned(left):
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(f".{os.getpid()}.part", f".{folder.name}-", folder.parent) as temporary:
        dataset = Path(temporary) / folder.name
        for split in nonempty:
            with table_writer(dataset / split.file, split.row) as write:
                for row in split.rows:
                    write(row)
        shutil.copy(run.constitution_yaml, dataset / run.constitution_yaml.name)
        if any(isinstance(row, BeforeAfter) and row.p is not None for split in nonempty for row in split.rows):
            shutil.copy(run.eval_constitution_yaml, dataset / run.eval_constitution_yaml.name)
        files = [
            File(split.config, split.split, split.file, len(split.rows), file_fingerprint(dataset / split.file))
            for split in nonempty
        ]
        (dataset / "README.md").write_text(card(run, files, licence), encoding="utf-8")
        dataset.rename(folder)
    return nonempty


def splits(run: RunFolder) -> list[Split]:
    """All rows of a run by kind; the first is the dataset's default."""
    held_out, prompts = set(run.manifest()["held_out"]), run.prompts()
    rankings = read_rows(run.rankings_jsonl, Ranking) if run.rankings_jsonl.exists() else []
    return [
        Split("preferences", "train", Preference, run.preferences()),
        Split("revisions", "train", Revision, run.revisions()),
        Split("rankings", "train", Ranking, rankings),
        Split("evaluation", "test", BeforeAfter, run.evaluation()),
        Split("prompts", "train", Prompt, [prompt for prompt in prompts if prompt.id not in held_out]),
        Split("prompts", "test", Prompt, [prompt for prompt in prompts if prompt.id in held_out]),
    ]


def publish(run: RunFolder, repo: str, licence: str) -> str:
    """Upload a run as a dataset of the Hub, private if it is new; returns its URL.

    Raises: CaiError if the upload fails, as it does without a token (`hf auth login`).
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "dataset"
        write_dataset(run, folder, licence)
        try:
            address = HfApi().create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset")
        except Exception as error:  # the Hub's client raises many kinds, offline ones of several libraries
            first = [*str(error).strip().splitlines(), type(error).__name__][0]
            raise CaiError(f"--to {HUB}{repo}: the upload failed (`hf auth login` sets a token): {first}") from error
    return str(address)
