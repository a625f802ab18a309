"""Folders of reward models: those that `stage: reward` writes, and sequence classifiers of others. Light to import.

A classifier has one label, its score. Its own tokenizer and chat template put conversations to it, so that it need not
share the policy's vocabulary.
"""

import json
import os
from pathlib import Path
from typing import Any

from cai.config.errors import CaiError, exists
from cai.config.locate import find_file, is_hub_id
from cai.data.manifest import MANIFEST_JSON
from cai.inference.models import BASE, REWARD_JSON, folder_fingerprint, resolve_model, similar_model

MOST_PARENTS = 4  # of a stage in a run's folder: seeds/2/train, seeds/2, seeds and the run
USUAL_LABELS = 2  # of a config.json that does not say, as in transformers
EXPECTED = "expected the `model` folder that `cai train reward` writes, or a sequence classifier with one label"


def is_trained_here(folder: Path) -> bool:
    """Whether `stage: reward` wrote a reward model, whose members read the policy's own tokens."""
    return (folder / REWARD_JSON).exists()


def is_reward_model(folder: Path) -> bool:
    """Whether a folder that was a reward model still is one."""
    return is_trained_here(folder) or (folder / "config.json").exists()


def link_base(target: Path, model: Path, folder: Path) -> None:
    """Let `target`/base refer to the model that a reward model is trained from, in the stage of `folder`.

    A link within the stage's run is relative, so that the run can be moved; others name the whole path.
    """
    model, folder = model.resolve(), folder.resolve()
    homes = [parent for parent in folder.parents[:MOST_PARENTS] if (parent / MANIFEST_JSON).exists()]
    inside = bool(homes) and model.is_relative_to(homes[-1])
    (target / BASE).symlink_to(os.path.relpath(model, folder / target.name) if inside else model)


def find_base(folder: Path, fingerprint: str) -> Path:
    """The model that the reward model in `folder` was trained from, of this fingerprint.

    Raises: CaiError where it is gone, or another.
    """
    base = folder / BASE
    place = f"the model that it was trained from, at {base.resolve()}"
    mend = f"put it back there, or copy it to {base}"
    if not (base / "config.json").exists():
        raise CaiError(f"the reward model {folder} lacks {place}: no such model; {mend}")
    if folder_fingerprint(base) != fingerprint:
        raise CaiError(f"the reward model {folder} lacks {place}: another model is there; {mend}")
    return base


def find_reward_model(place: str, name: str) -> Path:
    """The folder of a reward model: one that exists, or a classifier of the Hub, downloaded here.

    `place` is where it is named, for messages.
    Raises: CaiError for none, a model without a score or with several, and a tokenizer without a chat template.
    """
    if exists(Path(name)):
        return _checked(place, Path(name))
    if not is_hub_id(name):
        near = similar_model(name, reward=True)
        raise CaiError(f"{place} {name}: no such folder{near or f'; {EXPECTED}, or its Hub id'}")
    try:
        folder = resolve_model(name, reward=True)
    except CaiError as error:
        raise CaiError(f"{place} {error}") from error
    return _checked(place, folder)


def find_run_reward(field: str, name: str, run_file: Path) -> Path:
    """`find_reward_model` of a run file, from whose folder it may be named as well."""
    place = f"{run_file}: {field}:"
    if is_hub_id(name) and not exists(Path(name)) and not exists(run_file.parent / name):
        return find_reward_model(place, name)
    try:
        return _checked(place, find_file(field, name, run_file))
    except CaiError as error:
        near = "" if "did you mean" in str(error) else similar_model(name, reward=True)
        raise CaiError(f"{error}{near}") from None


def _checked(place: str, folder: Path) -> Path:
    if not is_trained_here(folder):
        _check_classifier(place, folder)
    return folder


def _check_classifier(place: str, folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise CaiError(f"{place} {folder}: not a reward model{similar_model(str(folder), True) or f'; {EXPECTED}'}")
    try:
        resolve_model(str(folder))
    except CaiError as error:
        raise CaiError(f"{place} {error}") from error
    config = _read(place, folder / "config.json")
    kinds = config.get("architectures") or []
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        named = ", ".join(map(str, kinds)) or "no architecture"
        raise CaiError(f"{place} {folder}: not a reward model: config.json names {named}; {EXPECTED}")
    labels = len(config.get("id2label") or {}) or config.get("num_labels") or USUAL_LABELS
    if labels != 1:
        raise CaiError(f"{place} {folder}: has {labels} labels; a reward model has one, its score")
    if not _has_chat_template(place, folder):
        raise CaiError(
            f"{place} {folder}: its tokenizer has no chat template, by which conversations are put to a reward "
            "model; add the chat_template.jinja that it was trained with"
        )


def _has_chat_template(place: str, folder: Path) -> bool:
    """As transformers finds one: a file of its own, or a field of the tokenizer's configuration."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(_read(place, settings).get("chat_template"))


def _read(place: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CaiError(f"{place} {path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CaiError(f"{place} {path}: expected a JSON object")
    return content
