"""`cai judge-eval`: a judge against a file of labels; writes metrics, rows and a page."""

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.data.jsonl import RowWriter, each_row
from cai.data.manifest import Output, claimed
from cai.data.preferences import Candidates
from cai.data.records import Preference, Skipped
from cai.evaluation.judge_report import Judged, JudgeReport, judge_report, judged
from cai.feedback.judge import JudgedAnswers, Verdicts
from cai.feedback.label import JudgePanel, LabelJob, count_work, label_claim, labelled, write_judge_json
from cai.inference.cache import Cache
from cai.inference.chat import server_warning, spells_control
from cai.inference.engine import EngineConfig
from cai.inference.models import served
from cai.inference.scheduler import EngineWork, OpenEngine, Reporter, Scheduler, open_model


class JudgeEvaluation(NamedTuple):
    """A judge's report, the pairs that could not be judged, and the calls made."""

    report: JudgeReport
    skipped: list[Skipped]
    work: list[EngineWork]


def evaluate_judge(
    judging: LabelJob,
    out: Output,
    cache: Path,
    reporter: Reporter,
    calibrate: bool = False,
    open_engine: OpenEngine = open_model,
) -> JudgeEvaluation:
    """Write verdicts.jsonl, skipped.jsonl and judge.json; see cai/report/judge.py for their page. Raises: CaiError."""
    if not judging.settings.swap:
        raise CaiError("judge.swap: the report of a judge needs verdicts in both orders; set it to true")
    extent, folder = count_work(judging), out.folder
    claim = label_claim("cai judge-eval", judging, folder, calibrate=calibrate)
    with claimed(claim, out.replace), reporter.logging_to(folder / "log.txt"), closing(Cache(cache)) as store:
        scheduler = Scheduler(EngineConfig(), store, reporter, open_engine)
        panel = JudgePanel(judging, extent, scheduler)
        begun = time.monotonic()
        rows, skipped = asyncio.run(_judge(judging, panel, folder))
        cost = scheduler.cost(time.monotonic() - begun)
        if not rows:
            raise CaiError(f"{judging.data}: no pair could be judged; the reasons are in {folder / 'skipped.jsonl'}")
        report = judge_report(rows, cost, calibrate, judging.settings.temperature)
        if served(judging.judges):
            spelled = sum(map(spells_control, each_row(folder / "verdicts.jsonl", Preference)))
            report = report.model_copy(update={"notes": [*report.notes, *server_warning(spelled)]})
        evaluated = JudgeEvaluation(report, skipped, panel.work("gate"))
        content = {"cost": cost._asdict(), **report.model_dump(mode="json")}
        if report.calibration is not None:
            content["temperature"] = report.calibration.temperature
        write_judge_json(folder, content)
    return evaluated


async def _judge(judging: LabelJob, panel: JudgePanel, out: Path) -> tuple[list[Judged], list[Skipped]]:
    rows: list[Judged] = []
    skipped: list[Skipped] = []
    with RowWriter(out / "verdicts.jsonl") as verdicts, RowWriter(out / "skipped.jsonl") as others:
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
    """A pair with the judge's label; equal answers are a tie without verdicts."""
    if isinstance(verdicts, RequestRefused):
        return Skipped(prompt_id=item.prompt.id, stage=item.place, reason=str(verdicts), failed=True)
    first, second = item.answers
    if first and first == second:
        return Preference(
            prompt_id=item.prompt.id, messages=item.prompt.messages, tags=item.prompt.tags, chosen=first,
            rejected=second, p=0.5, source="judge", model=item.model, judge=judge, seeds=[judging.seed],
            input_p=item.input_p,
        )  # fmt: skip
    judged_answers = JudgedAnswers(item.prompt, item.answers, verdicts, item.model, judge, judging.seed)
    [pair] = labelled(item, judged_answers, judging.settings)
    return pair
