"""The page of a folder of `cai train`, in `cai serve`: what training came to, its curves, and its evaluation."""

from pathlib import Path
from typing import Any

from cai.config.yaml_files import as_yaml
from cai.data.jsonl import read_rows
from cai.data.records import Skipped
from cai.evaluation.policy_report import REPORT, read_report
from cai.report.html import Content, render_report
from cai.report.run import evaluation_grids, evaluation_plots, stage_plots
from cai.runs.folder import stage_settings
from cai.runs.metrics import stage_results, training_lines
from cai.runs.trust import training_trust


def training_report(name: str, folder: Path, url: str) -> str:
    """The HTML of a training's page. Raises: CaiError for a file that cannot be read."""
    results = stage_results(folder)
    skipped = folder / "skipped.jsonl"
    trust = training_trust(folder, read_rows(skipped, Skipped) if skipped.exists() else [])
    stage = stage_settings(folder).get("stage", "")
    bins = (results["held_out"] or {}).get("reliability")
    drawn = stage_plots(stage, folder, bins)
    evaluation = folder / "eval" / REPORT
    evaluated = read_report(evaluation) if evaluation.exists() else None
    of_evaluation = evaluation_plots(evaluated) if evaluated else []
    values: dict[str, Any] = {
        "name": name,
        "stage": stage,
        "finished": (folder / "model").exists(),
        "lines": training_lines(results),
        "trust": trust,
        "settings": as_yaml(stage_settings(folder)),
        "training_plots": list(range(len(drawn))),
        "evaluated": evaluation_grids(evaluated) if evaluated else [],
        "evaluated_notes": evaluated.notes if evaluated else [],
        "evaluated_plots": list(range(len(drawn), len(drawn) + len(of_evaluation))),
    }
    return render_report("training.html.jinja", Content(None, [*drawn, *of_evaluation]), url, **values)
