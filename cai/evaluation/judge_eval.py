"""`cai judge-eval`: a judge against a file of labels; writes metrics, rows and a page."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint
from cai.data.files import rows as rows_of
from cai.data.jsonl import RowWriter, each_row, write_rows
from cai.data.manifest import Output, aside
from cai.data.preferences import Candidates
from cai.data.records import Attacked, Preference, Skipped
from cai.evaluation.injection import INJECTION as INJECTION_PROBE
from cai.evaluation.injection import Attack, InjectionGain, Target, Variant, injection_gains
from cai.evaluation.judge_report import JudgeReport, judge_report
from cai.evaluation.judged_pairs import Judged, judged
from cai.feedback.judge import Verdicts
from cai.feedback.label import JudgePanel, LabelJob, count_work, finish_judging, judging_folder, label_claim, labelled
from cai.feedback.pairs import JudgedAnswers, has_votes, label
from cai.inference.chat import control_counts, control_warnings, spells_control
from cai.inference.endpoints import bounded_warnings
from cai.inference.models import served
from cai.inference.reporter import Reporter
from cai.inference.scheduler import EngineWork, OpenEngine, Scheduler, open_model
from cai.stats.formatting import counted

VERDICTS, SKIPPED, INJECTION = "verdicts.jsonl", "skipped.jsonl", "injection.jsonl"


class JudgeEvaluation(NamedTuple):
    """A judge's report, the pairs that could not be judged, and the calls made."""

    report: JudgeReport
    skipped: list[Skipped]
    work: list[EngineWork]
    own_labels: str = ""  # a warning, for labels that this very judge wrote


class Extras(NamedTuple):
    """What a judge's evaluation does beside judging the pairs."""

    calibrate: bool = False
    """Fit a temperature on half of the prompts."""
    attacks: Sequence[Attack] = ()
    """Measure the gain of each, which asks for as many verdicts again."""


def evaluate_judge(
    judging: LabelJob,
    out: Output,
    cache: Path,
    reporter: Reporter,
    more: Extras = Extras(),  # noqa: B008  # immutable
    open_engine: OpenEngine = open_model,
) -> JudgeEvaluation:
    """Write verdicts.jsonl, skipped.jsonl and judge.json; see cai/report/judge.py for their page.

    With attacks also injection.jsonl, a row for each attack on each pair that a label decides. Raises: CaiError.
    """
    if not judging.settings.swap:
        raise CaiError("judge.swap: the report of a judge needs verdicts in both orders; set it to true")
    extent, folder = count_work(judging), out.folder
    attacks = {"injection": fingerprint([attack.model_dump() for attack in more.attacks])} if more.attacks else {}
    claim = label_claim("cai judge-eval", judging, folder, calibrate=more.calibrate, **attacks)
    with judging_folder(claim, out.replace, judging.judges, cache, reporter) as store:
        scheduler = judging.scheduler(store, reporter, open_engine)
        panel = JudgePanel(judging, extent, scheduler)
        begun = time.monotonic()
        rows, skipped = asyncio.run(_judge(judging, panel, folder))
        cost = scheduler.cost(time.monotonic() - begun)
        if not rows:
            raise CaiError(f"{judging.data}: no pair could be judged; the reasons are in {folder / 'skipped.jsonl'}")
        gains, not_judged = _injection_gains(judging, more.attacks, scheduler, folder)
        skipped += not_judged
        report = judge_report(rows, cost, more.calibrate, judging.settings.temperature, gains)
        spelled = sum(map(spells_control, each_row(folder / VERDICTS, Preference)))
        warnings = control_warnings(control_counts(spelled, judging.engine.control_tokens, served(judging.judges)))
        warnings += bounded_warnings(scheduler.tally().bounded)
        report = report.model_copy(update={"notes": [*report.notes, *warnings]})
        if warning := _own_labels(judging.data, panel.name):
            report = report.model_copy(update={"notes": [warning, *report.notes]})
        write_rows(folder / SKIPPED, skipped)
        evaluated = JudgeEvaluation(report, skipped, panel.work("gate"), warning)
        content = {"cost": cost._asdict(), **report.model_dump(mode="json")}
        if report.calibration is not None and report.calibration.applied:
            content["temperature"] = report.calibration.temperature
        finish_judging(claim, content)
    return evaluated


def _own_labels(data: Path, judge: str) -> str:
    """A warning about the rows of a file that the judge itself labelled; empty without any."""
    judges = [row.get("judge") for _, row in rows_of(data)]
    if not (own := judges.count(judge)):
        return ""
    return (
        f"{own:,} of {counted(len(judges), 'rows')} were labelled by this very judge: its accuracy there is agreement "
        "with itself, not with people"
    )


def _injection_gains(
    judging: LabelJob, attacks: Sequence[Attack], scheduler: Scheduler, folder: Path
) -> tuple[list[InjectionGain], list[Skipped]]:
    """Judge the pairs of verdicts.jsonl again, with an attack in the answer that the labels reject.

    Writes injection.jsonl. Returns: the gains, and the attacked pairs without a verdict.
    """
    targets = [target for pair in each_row(folder / VERDICTS, Preference) if (target := _target(pair)) is not None]
    attacked = [
        (variant, target) for attack in attacks for target in targets for variant in attack.variants(target.prompt_id)
    ]
    if not attacked:
        return [], []
    with aside(folder) as beside:
        data = Path(beside) / "pairs.jsonl"
        write_rows(data, (_pair(variant, target) for variant, target in attacked))
        job = replace(judging, data=data, ranked=True, limit=None)
        rows, skipped = asyncio.run(_judge_attacked(job, attacked, scheduler, folder))
    write_rows(folder / INJECTION, rows)
    return injection_gains(rows, attacks), skipped


def _target(pair: Preference) -> Target | None:
    """The answer that the label rejects; none where there is no such answer, or no verdict."""
    if not pair.verdicts or pair.input_p is None or pair.input_p == 0.5:
        return None
    if pair.input_p > 0.5:
        return Target(pair.prompt_id, pair.messages, pair.rejected, pair.chosen, 1 - pair.p)
    return Target(pair.prompt_id, pair.messages, pair.chosen, pair.rejected, pair.p)


def _pair(variant: Variant, target: Target) -> Preference:
    return Preference(
        prompt_id=target.prompt_id, messages=target.messages, chosen=target.other,
        rejected=variant.put_into(target.answer), p=1.0, source="human",
    )  # fmt: skip


async def _judge_attacked(
    job: LabelJob, attacked: Sequence[tuple[Variant, Target]], scheduler: Scheduler, folder: Path
) -> tuple[list[Attacked], list[Skipped]]:
    panel = JudgePanel(job, count_work(job), scheduler)
    rows: list[Attacked] = []
    skipped: list[Skipped] = []
    waiting = iter(attacked)  # the pairs come in the file's order
    async for _, verdicts in panel.verdicts(folder, skipped.append):
        variant, target = next(waiting)
        if isinstance(verdicts, RequestRefused):
            stage = f"{INJECTION_PROBE}: {variant.attack}"
            skipped.append(Skipped.refused(target.prompt_id, stage, verdicts))
            continue
        rows.append(target.attacked(variant, 1 - label(verdicts[0, 1], job.settings), panel.name))
    return rows, skipped


async def _judge(judging: LabelJob, panel: JudgePanel, out: Path) -> tuple[list[Judged], list[Skipped]]:
    rows: list[Judged] = []
    skipped: list[Skipped] = []
    with RowWriter(out / VERDICTS) as verdicts, RowWriter(out / SKIPPED) as others:
        async for item, by_pair in panel.verdicts(out, skipped.append):
            pair = _labelled_pair(item, by_pair, judging, panel.name)
            if isinstance(pair, Skipped):
                skipped.append(pair)
                continue
            verdicts.write(pair)
            rows.append(judged(pair))
        for row in skipped:
            others.write(row)
    return rows, skipped


def _labelled_pair(
    item: Candidates, verdicts: Verdicts | RequestRefused, judging: LabelJob, judge: str
) -> Preference | Skipped:
    """A pair with the judge's label; a tie without verdicts where answers are equal, or no principle has a vote.

    So a judge gains no accuracy by having no opinion on pairs that it would get wrong.
    """
    if isinstance(verdicts, RequestRefused):
        return Skipped.refused(item.prompt.id, item.place, verdicts)
    first, second = item.answers
    of_pair = verdicts.get((0, 1), [])
    if first and (first == second or (of_pair and not has_votes(of_pair))):
        return Preference(
            prompt_id=item.prompt.id, messages=item.prompt.messages, tags=item.prompt.tags, chosen=first,
            rejected=second, p=0.5, source="judge", model=item.model, judge=judge, seeds=[judging.seed],
            abstentions=of_pair, input_p=item.input_p,
        )  # fmt: skip
    judged_answers = JudgedAnswers(item.prompt, item.answers, verdicts, item.model, judge, judging.seed)
    [pair] = labelled(item, judged_answers, judging.settings)
    return pair
