"""`cai judge`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import RenderableType
from rich.text import Text

from cai.cli.console import Grid, command, end_with_failures, ending, heading, line, listed, resumable, show
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_SEED,
    DEFAULT_TEMPLATES,
    ConstitutionName,
    Data,
    JudgeNames,
    KeyEnv,
    Limit,
    Replace,
    RunsFolder,
    Seed,
    Settings,
    TemplatesFolder,
)
from cai.config.characters import Terminal
from cai.config.errors import CaiError, reading
from cai.config.locate import find_file, local_file
from cai.config.yaml_files import YamlSource, apply_overrides, validate
from cai.constitution.principles import load_constitution
from cai.constitution.templates import OF_RUNS, Templates, names_for
from cai.data.manifest import Output
from cai.feedback.judge import JudgeConfig
from cai.feedback.label import JUDGE_JSON, LabelJob, label_file
from cai.feedback.metrics import JUDGE_METRICS
from cai.inference.chat import control_warnings
from cai.inference.chat_template import check_chat, with_template_text
from cai.inference.endpoints import bounded_warnings
from cai.inference.reporter import Reporter
from cai.inference.servers import resolve_judges
from cai.inference.vllm_settings import check_arguments
from cai.runs.find import find_constitution
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted, duration
from cai.stats.intervals import Estimate

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]


class JudgeOptions(NamedTuple):
    """The options that `cai judge` and `cai judge-eval` share."""

    data: Path
    judges: list[str]
    constitution: str
    key_env: str | None
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
    key_env: KeyEnv = None,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    limit: Limit = None,
    seed: Seed = DEFAULT_SEED,
    replace: Replace = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Label responses with an AI judge.

    Compares responses in pairs, in both orders, and writes soft preference labels. --set takes settings of
    `judge:` in a run file, such as principles=all or engine.max_model_len=4096. After an interrupt, the same command
    resumes. Exit status 1: the judge could not answer some rows, or every row was skipped.
    """
    options = JudgeOptions(data, judges, constitution, key_env, templates, settings or [], limit, seed, runs)
    job = label_job(options, ranked=False)
    console = Terminal()
    reporter = Reporter(console)
    with resumable(console, reporter):
        labelling = label_file(job, Output(out, replace), runs / CACHE_FILE, reporter)
    for part in _parts(labelling):
        show(console, part)
    files = ", ".join(name for name in ("preferences.jsonl", "rankings.jsonl") if (out / name).exists())
    line(console, f"  {files}, skipped.jsonl and {JUDGE_JSON} are in {out}/")
    if labelling["pairs"]:
        train = command("train", "reward", "--data", out / "preferences.jsonl", "--model", "MODEL")
        for part in ending([], [(train, "a reward model of these labels")]):
            show(console, part)
    end_with_failures(out)


def _parts(labelling: dict[str, Any]) -> Iterator[RenderableType | Grid]:
    """What `cai judge` did, from its judge.json: counts and metrics, then warnings."""
    cost, skipped = labelling["cost"], labelling["skipped"]
    ranked = f", {counted(labelling['rankings'], 'rankings')}" if labelling["rankings"] else ""
    yield heading(f"{counted(labelling['pairs'], 'pairs')} labelled{ranked} in {duration(cost['seconds'])}")
    yield Text(f"  {counted(cost['cache_misses'], 'new calls')}, {counted(cost['cache_hits'], 'cache hits')}")
    grid = Grid(["", "", ""], optional=[2], last_left=True)
    estimates = {
        metric: Estimate(**e) for metric in JUDGE_METRICS if (e := labelling["metrics"][metric.key]) is not None
    }
    for metric, estimate in estimates.items():
        grid.add(metric.name, metric.shown(estimate), Text(metric.meaning, style="dim"))
    yield grid
    high = [f"{m.name} is {m.shown(e)}: {m.meaning}" for m, e in estimates.items() if m.warns(e.mean)]
    reasons = [f"skipped: {count:,} × {reason}" for reason, count in skipped["reasons"].items()]
    failed = [f"{counted(skipped['failed'], 'rows')} failed; skipped.jsonl says why"] if skipped["failed"] else []
    if warnings := [
        *high,
        *control_warnings(labelling),
        *bounded_warnings(labelling.get("bounded", 0)),
        *reasons,
        *failed,
    ]:
        yield heading("Warnings")
        yield listed("!", warnings, "yellow")
    yield Text("")


def label_job(options: JudgeOptions, ranked: bool) -> LabelJob:
    """The job that the options describe, checked before anything is written; with `ranked`, pairs need labels.

    Settings may be prefixed with `judge.`, as in a run file. Raises: CaiError naming the option, what was found and
    what was expected.
    """
    data = local_file(str(options.data))  # its rows are read last
    with reading(data), data.open("rb"):
        pass
    source = YamlSource(Path("cai judge"), {"model": options.judges, "key_env": options.key_env}, {})
    overrides = [override.removeprefix("judge.") for override in options.settings]
    settings = validate(apply_overrides(source, overrides), JudgeConfig)
    if "samples" in settings.model_fields_set:
        raise CaiError("--set samples: `cai judge` samples no responses; it judges those in --data")
    try:
        constitution_file = find_constitution(options.constitution, options.runs)
    except CaiError as error:
        raise CaiError(f"--constitution {error}") from error
    constitution = load_constitution(constitution_file)
    needed = names_for([constitution], (*OF_RUNS, *settings.templates_needed))
    templates = Templates(find_file("--templates", options.templates, source.path), needed)
    settings.check_templates(templates)
    names = [settings.model] if isinstance(settings.model, str) else settings.model or []
    judges = resolve_judges(names, settings.key_env, settings.engine)  # last: a Hub id is downloaded here
    if settings.engine is not None:
        engine = with_template_text(settings.engine, "--set engine", source.path)
        settings = settings.model_copy(update={"engine": engine})
    job = LabelJob(data, ranked, options.limit, judges, constitution, templates, settings, options.seed)
    check_arguments(job.engine, "--set engine")
    for judge in judges:
        check_chat(judge, job.engine.chat, "--set engine")
    return job
