"""The list of all runs of a folder, as `cai serve` shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from cai.errors import CaiError
from cai.evaluation.statistics import Estimate
from cai.report.html import served_page
from cai.runs.folder import RunFolder


class Listed(NamedTuple):
    """A run on the list; a damaged one has its fault in place of its figures."""

    name: str
    url: str
    started: str
    state: str
    constitution: str = ""
    model: str = ""
    prompts: str = ""
    training: str = ""
    win_rate: str = ""


def list_page(runs: Path, folders: Mapping[str, RunFolder]) -> str:
    """The HTML of the list; `folders` by name."""
    found = [listed(name, folder) for name, folder in folders.items()]
    return served_page("runs.html.jinja", runs=str(runs), listed=found)


def listed(name: str, folder: RunFolder) -> Listed:
    """A run as the list has it."""
    started = folder.started()
    told = started.strftime("%Y-%m-%d %H:%M") if started else ""
    found = Listed(name, f"/report?{urlencode({'run': name})}", told, "unfinished")
    try:
        lock, summary = folder.lock(), folder.summary()
        return _with_figures(found, lock, summary)
    except CaiError as error:
        return found._replace(state=str(error))
    except (LookupError, TypeError, AttributeError):
        return found._replace(state="made by another version of cai")


def _with_figures(found: Listed, lock: dict[str, Any], summary: dict[str, Any] | None) -> Listed:
    config, constitution = lock.get("config") or {}, lock.get("constitution") or {}
    found = found._replace(
        constitution=f"{constitution.get('name', '')} ({len(constitution.get('principles') or {})})",
        model=str(config.get("model", "")),
        training=" ".join(stage.get("stage", "") for stage in config.get("train") or []),
    )
    if summary is None:
        return found
    evaluation = summary.get("evaluation") or {}
    return found._replace(
        state="finished",
        prompts=str(summary["prompts"] + summary["held_out"]),
        win_rate=str(Estimate(**evaluation["win_rate"])) if evaluation else "",
    )
