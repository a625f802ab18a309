"""What is watched in compared runs, side by side: rates of their summaries, and what `cai eval` found."""

from collections.abc import Sequence
from typing import NamedTuple

from cai.errors import CaiError
from cai.evaluation.policy_report import Monitor, PolicyReport, bound_told
from cai.models import folder_fingerprint
from cai.report.run_facts import told_of
from cai.runs.folder import RunFolder
from cai.runs.judge_page import estimate

NONE = "–"


class Watched(NamedTuple):
    """A figure, from where to look, its value in every run, and the runs in which it is past that."""

    name: str
    bound: str
    values: list[str]
    look: list[bool]


def rates(folders: Sequence[RunFolder]) -> list[Watched]:
    """The rates that a run's own report watches."""
    of_runs = [{m.name: m for m in told_of(folder, []).monitors} for folder in folders]
    first = {name: m for of_run in reversed(of_runs) for name, m in of_run.items()}
    return [
        Watched(
            name,
            first[name].bound,
            [of_run[name].value if name in of_run else NONE for of_run in of_runs],
            [name in of_run and of_run[name].look for of_run in of_runs],
        )
        for name in dict.fromkeys(name for of_run in of_runs for name in of_run)
    ]


def signs(folders: Sequence[RunFolder], names: Sequence[str]) -> list[Watched]:
    """The signs of reward hacking in each run's policy, by the evaluation in its own folder, or else in another's."""
    reports = [_report(folder) for folder in folders]
    of_runs = [
        _monitors(folder, name, [report, *(other for other in reports if other is not report)])
        for folder, name, report in zip(folders, names, reports, strict=True)
    ]
    bounds: dict[str, dict[str, None]] = {}  # the bound may lie on either side
    for monitor in (m for of_run in of_runs for m in of_run.values() if m.value is not None):
        bounds.setdefault(monitor.name, {})[bound_told(monitor)] = None
    return [
        Watched(
            name,
            " or ".join(told),
            [_value(of_run.get(name)) for of_run in of_runs],
            [name in of_run and of_run[name].state == "warns" for of_run in of_runs],
        )
        for name, told in bounds.items()
    ]


def _report(folder: RunFolder) -> PolicyReport | None:
    try:
        return folder.policy_report()
    except CaiError:  # the run's own page names it
        return None


def _monitors(folder: RunFolder, name: str, reports: Sequence[PolicyReport | None]) -> dict[str, Monitor]:
    """Of the policy as it is now, where its model is there to tell."""
    model = folder.policy()
    content = folder_fingerprint(model) if model else None
    for report in filter(None, reports):
        policy = next((p for p in report.policies[1:] if p.name == name), None)
        if policy and content in (None, policy.model):
            return {m.name: m for m in report.monitors if m.policy == name}
    return {}


def _value(monitor: Monitor | None) -> str:
    return NONE if monitor is None or monitor.value is None else f"{estimate(monitor.value)} {monitor.state}"
