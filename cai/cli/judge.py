"""`cai judge` and `cai judge-eval`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cai.cli.console import going_on, line
from cai.cli.figures import judge_report_tables, labelling_lines
from cai.cli.principles import find_constitution
from cai.config.errors import CaiError, reading
from cai.config.locate import find_file, local_file
from cai.config.yaml_files import YamlSource, apply_overrides, validate
from cai.constitution.principles import load_constitution
from cai.constitution.templates import Templates
from cai.evaluation.judge_eval import evaluate_judge
from cai.feedback.judge import JudgeConfig
from cai.feedback.label import JUDGE_JSON, LabelJob, label_file
from cai.inference.endpoints import resolve_judges
from cai.inference.progress import Reporter
from cai.runs.folder import CACHE_FILE


def label_and_print(judging: LabelJob, out: Path, runs: Path) -> None:
    """Label a file and print the totals; an interrupt says how to go on."""
    console = Console()
    with going_on(console):
        found = label_file(judging, out, runs / CACHE_FILE, Reporter(console))
    for text in labelling_lines(found):
        line(console, f"  {text}")
    files = ", ".join(name for name in ("preferences.jsonl", "rankings.jsonl") if (out / name).exists())
    line(console, f"  {files}, skipped.jsonl and {JUDGE_JSON} are in {out}/")


def evaluate_and_print(judging: LabelJob, out: Path, runs: Path, calibrate: bool) -> None:
    """Set a judge against labels and print its report; an interrupt says how to go on."""
    console = Console()
    with going_on(console):
        evaluated = evaluate_judge(judging, out, runs / CACHE_FILE, Reporter(console), calibrate)
    for part in judge_report_tables(evaluated.report, evaluated.skipped):
        console.print(part)
    line(console, f"  the page is {out / 'judge.html'}; figures and rows: {JUDGE_JSON}, verdicts.jsonl")


def make_judging(
    data: Path,
    names: Sequence[str],
    constitution_name: str,
    templates: str,
    overrides: Sequence[str],
    seed: int,
    ranked: bool,
    limit: int | None,
    runs: Path,
) -> LabelJob:
    """What the options say, checked before anything is written; `judge.` may stand before a setting, as in a run file.

    Raises: CaiError naming the option, what was found and what was expected.
    """
    data = local_file(str(data))  # its rows are read once everything else is
    with reading(data), data.open("rb"):
        pass
    source = YamlSource(Path("cai judge"), {"model": list(names)}, {})
    given = [override.removeprefix("judge.") for override in overrides]
    settings = validate(apply_overrides(source, given), JudgeConfig)
    if "samples" in settings.model_fields_set:
        raise CaiError("--set samples: no answers are sampled here; those of the file are judged")
    try:
        constitution_file = find_constitution(constitution_name, runs)
    except CaiError as error:
        raise CaiError(f"--constitution {error}") from error
    principles = load_constitution(constitution_file)
    found = Templates(find_file("--templates", templates, source.path))
    judges = [settings.model] if isinstance(settings.model, str) else settings.model or []
    folders = resolve_judges(judges)  # last: a Hub id is downloaded here
    return LabelJob(data, ranked, limit, folders, principles, found, settings, seed)
