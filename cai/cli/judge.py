"""`cai judge`."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from cai.cli.console import line, resumable
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_SEED,
    DEFAULT_TEMPLATES,
    ConstitutionName,
    Data,
    JudgeNames,
    Limit,
    Replace,
    RunsFolder,
    Seed,
    Settings,
    TemplatesFolder,
    find_constitution,
)
from cai.config.errors import CaiError, reading
from cai.config.locate import find_file, local_file
from cai.config.yaml_files import YamlSource, apply_overrides, validate
from cai.constitution.principles import load_constitution
from cai.constitution.templates import Templates
from cai.data.manifest import Output
from cai.feedback.judge import JudgeConfig
from cai.feedback.label import JUDGE_JSON, JUDGE_METRICS, LabelJob, label_file
from cai.inference.endpoints import resolve_judges
from cai.inference.progress import Reporter
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted
from cai.stats.intervals import Estimate

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]


class JudgeOptions(NamedTuple):
    """The options that `cai judge` and `cai judge-eval` share."""

    data: Path
    judges: list[str]
    constitution: str
    templates: str
    settings: list[str]
    limit: int | None
    seed: int
    runs: Path


def judge(
    data: Data,
    judges: JudgeNames,
    constitution: ConstitutionName,
    out: Out,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    limit: Limit = None,
    seed: Seed = DEFAULT_SEED,
    replace: Replace = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Label responses with an AI judge.

    Compares responses in pairs, in both orders, and writes soft preference labels. --set takes settings of
    `judge:` in a run file, such as principles=all. After an interrupt, the same command resumes.
    """
    options = JudgeOptions(data, judges, constitution, templates, settings or [], limit, seed, runs)
    job = label_job(options, ranked=False)
    console = Console()
    with resumable(console):
        totals = label_file(job, Output(out, replace), runs / CACHE_FILE, Reporter(console))
    for text in labelling_lines(totals):
        line(console, f"  {text}")
    files = ", ".join(name for name in ("preferences.jsonl", "rankings.jsonl") if (out / name).exists())
    line(console, f"  {files}, skipped.jsonl and {JUDGE_JSON} are in {out}/")


def labelling_lines(totals: dict[str, Any]) -> list[str]:
    """What `cai judge` did, as its judge.json has it."""
    cost, skipped = totals["cost"], totals["skipped"]
    ranked = f", {counted(totals['rankings'], 'rankings')}" if totals["rankings"] else ""
    lines = [
        f"{counted(totals['pairs'], 'pairs')} labelled{ranked} in {cost['seconds']:.1f} s; "
        f"{counted(cost['cache_misses'], 'new calls')}, "
        f"{counted(cost['cache_hits'], 'cache hits')}",
    ]
    for metric in JUDGE_METRICS:
        if (estimate := totals["metrics"][metric.key]) is not None:
            lines.append(f"{metric.name} {metric.shown(Estimate(**estimate))}")
    lines += [f"skipped: {n} × {reason}" for reason, n in skipped["reasons"].items()]
    return lines + ([f"{counted(skipped['failed'], 'rows')} failed"] if skipped["failed"] else [])


def label_job(options: JudgeOptions, ranked: bool) -> LabelJob:
    """The job that the options describe, checked before anything is written; with `ranked`, pairs need labels.

    Settings may be prefixed with `judge.`, as in a run file. Raises: CaiError naming the option, what was found and
    what was expected.
    """
    data = local_file(str(options.data))  # its rows are read last
    with reading(data), data.open("rb"):
        pass
    source = YamlSource(Path("cai judge"), {"model": options.judges}, {})
    overrides = [override.removeprefix("judge.") for override in options.settings]
    settings = validate(apply_overrides(source, overrides), JudgeConfig)
    if "samples" in settings.model_fields_set:
        raise CaiError("--set samples: `cai judge` samples no responses; it judges those in --data")
    try:
        constitution_file = find_constitution(options.constitution, options.runs)
    except CaiError as error:
        raise CaiError(f"--constitution {error}") from error
    constitution = load_constitution(constitution_file)
    templates = Templates(find_file("--templates", options.templates, source.path))
    names = [settings.model] if isinstance(settings.model, str) else settings.model or []
    judges = resolve_judges(names)  # last: a Hub id is downloaded here
    return LabelJob(data, ranked, options.limit, judges, constitution, templates, settings, options.seed)
