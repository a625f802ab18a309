"""Targets beside those of inputs.py: every shipped file of probes, every kind of row, and the reports that cai writes.

An example of a model has a value in every field, made from its schema.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from cai.config.yaml_files import load_yaml
from cai.data import records
from cai.data.jsonl import read_rows
from cai.evaluation import probes
from cai.evaluation.injection import Injection
from cai.evaluation.judge_report import JudgeReport, read_judge_report
from cai.evaluation.policy_report import PolicyReport, read_report
from cai.runs.sweep import SweepIndex, read_index
from tests.conftest import ROOT
from tests.faults.inputs import Target, put, written, yaml_or_json

PROBES: dict[str, type[BaseModel]] = {
    "questions": probes.Questions,
    "over_refusal": probes.OverRefusal,
    "sycophancy": probes.Sycophancy,
    "red_team": probes.RedTeam,
    "phrases": probes.Phrases,
    "injection": Injection,
}
ROWS: list[type[records.Row]] = [
    records.Prompt, records.Demonstration, records.Applicability, records.Revision, records.Verdict, records.Preference,
    records.Ranking, records.BeforeAfter, records.Answer, records.Judgement, records.Reply, records.Attacked,
    records.Sampled, records.Scored, records.Skipped,
]  # fmt: skip


def example(model: type[BaseModel]) -> Any:
    """A valid value of a model, as JSON has it, with something in every list and mapping."""
    schema = model.model_json_schema()
    return _example(schema, schema.get("$defs", {}))


def _example(schema: dict[str, Any], models: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _example(models[schema["$ref"].rpartition("/")[2]], models)
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], models)
    for key in ("const", "enum"):
        if key in schema:
            return schema[key] if key == "const" else schema[key][0]
    kind = schema.get("type")
    if kind == "object":
        inner = schema.get("additionalProperties")
        named = {name: _example(field, models) for name, field in schema.get("properties", {}).items()}
        return named or {"k": _example(inner, models) if isinstance(inner, dict) else 1}
    if kind == "array":
        if "prefixItems" in schema:
            return [_example(item, models) for item in schema["prefixItems"]]
        return [_example(schema.get("items", {}), models) for _ in range(schema.get("minItems", 1))]
    return {"string": "x", "integer": 1, "number": 0.5, "boolean": True, "null": None}.get(str(kind), "x")


def examples_of_row(model: type[records.Row]) -> list[Any]:
    """Two lines of a file of rows."""
    row = example(model)
    if model is records.Ranking:
        row["strengths"] = [0.5] * len(row["responses"])
    return [row, row]


REPORTS: dict[str, tuple[str, type[BaseModel], Callable[[Path], object]]] = {
    "evaluation.json": ("evaluation.json", PolicyReport, read_report),
    "judge.json": ("judge.json", JudgeReport, read_judge_report),
    "sweep.json": ("sweep.json", SweepIndex, lambda path: read_index(path.parent)),
}
"""What a report is called, its model, and what reads it."""


def report_example(name: str) -> Any:
    """A report as cai writes it, with its number of format."""
    model = REPORTS[name][1]
    format = {"format": model.model_fields["format"].default} if "format" in model.model_fields else {}
    return example(model) | format


def probe_example(name: str) -> Any:
    """A shipped file of probes."""
    return yaml.safe_load((ROOT / f"probes/{name}.yaml").read_text(encoding="utf-8"))


def _report(name: str) -> Target:
    file, _, read = REPORTS[name]
    return Target(written([report_example(name)], ("json",)), lambda content, folder: read(put(folder, file, content)))


def _drawn(by_name: dict[str, st.SearchStrategy[bytes]]) -> st.SearchStrategy[tuple[str, bytes]]:
    return st.sampled_from(sorted(by_name)).flatmap(lambda name: st.tuples(st.just(name), by_name[name]))


def _read_probes(drawn: tuple[str, bytes], folder: Path) -> object:
    return load_yaml(put(folder, "probes.yaml", drawn[1]), PROBES[drawn[0]])


def _read_rows(drawn: tuple[str, bytes], folder: Path) -> object:
    return read_rows(put(folder, "rows.jsonl", drawn[1]), getattr(records, drawn[0]))


TARGETS: dict[str, Target] = {
    "probes": Target(
        _drawn({name: written([probe_example(name)], yaml_or_json) for name in PROBES}), _read_probes, share=2
    ),
    "rows": Target(
        _drawn({model.__name__: written([examples_of_row(model)], ("jsonl", "json")) for model in ROWS}), _read_rows
    ),
    **{name: _report(name) for name in REPORTS},
}
