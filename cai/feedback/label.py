"""`cai judge`: the answers in a file labelled by one or several judges, pair by pair, and ranked.

The file is read whole before the first call, and then row by row over the same cache as runs, by one judge after
another. Nothing of a row is kept once it is written, so that a file of any length fits in memory. There is no resume
code: judging again makes the same requests, and the cache answers those that were made.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.constitution.principles import Constitution, manifest_of, questions
from cai.constitution.templates import Templates
from cai.data.jsonl import RowWriter, file_fingerprint, write_text
from cai.data.manifest import Claim, Output, aside, claimed, record_files, versions
from cai.data.preferences import Candidates, read_candidates
from cai.data.records import Preference, Row, Skipped, Verdict
from cai.feedback.judge import Judge, JudgeConfig, Verdicts, calls_for_answers
from cai.feedback.metrics import JUDGE_METRICS, PromptMeans
from cai.feedback.pairs import JudgedAnswers, judged_preferences, panel_verdicts, rank_judged
from cai.feedback.yes_no import ask_applying
from cai.inference.cache import AnyCache, Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.chat import control_counts, spells_control
from cai.inference.engine import EngineConfig
from cai.inference.models import Model, model_fingerprint, served
from cai.inference.reporter import Reporter
from cai.inference.scheduler import EngineWork, OpenEngine, Scheduler, Stage, deciding_settings, open_model
from cai.inference.servers import require_servers

JUDGE_JSON = "judge.json"  # metrics; written last


@dataclass(frozen=True)
class LabelJob:
    """A file of answers and what judges it; several models are a panel."""

    data: Path
    ranked: bool  # how rows of `responses` are read, see cai/data/preferences.py
    limit: int | None  # of sets of candidates
    judges: list[Model]
    constitution: Constitution
    templates: Templates
    settings: JudgeConfig
    seed: int
    own_settings: Mapping[Model, EngineConfig] = field(default_factory=dict)  # of judges with other engine settings

    @property
    def engine(self) -> EngineConfig:
        """The settings of every other judge's engine."""
        return self.settings.engine or EngineConfig()

    def scheduler(
        self, cache: AnyCache, reporter: Reporter | None = None, open_engine: OpenEngine = open_model
    ) -> Scheduler:
        """The judges over a cache."""
        return Scheduler(self.engine, cache, reporter, open_engine, self.own_settings)


class Extent(NamedTuple):
    """The content of a file: sets of candidates, pairs of them, the most answers in a set, and calls for each judge."""

    sets: int
    pairs: int
    most: int
    calls: int


def candidates(job: LabelJob, skip: Callable[[Skipped], None]) -> Iterator[Candidates]:
    """The candidates of the file up to the limit; its other rows go to `skip` on the way."""
    count = 0
    for item in read_candidates(job.data, job.ranked):
        if isinstance(item, Skipped):
            skip(item)
        elif job.limit is None or count < job.limit:
            count += 1
            yield item
        else:
            return


def count_work(job: LabelJob) -> Extent:
    """Read the whole file once, before the first call.

    Raises: CaiError for a row of an unknown form, with its line, or a file with nothing to judge.
    """
    reasons: Counter[str] = Counter()
    sets = pairs = most = calls = 0
    asked = len(questions(job.constitution))
    for item in candidates(job, lambda row: reasons.update([row.reason])):
        different = len({answer for answer in item.answers if answer})
        sets += 1
        pairs += len(item.answers) * (len(item.answers) - 1) // 2
        most = max(most, len(item.answers))
        calls += asked + calls_for_answers(job.settings, len(job.constitution.principles), different)
    if not sets:
        why = ", ".join(f"{n} × {reason}" for reason, n in reasons.items())
        raise CaiError(f"{job.data}: nothing to judge in this file" + (f": {why}" if why else ""))
    return Extent(sets, pairs, most, calls)


class JudgePanel:
    """The judges of a file, of which one at a time is in memory."""

    def __init__(self, job: LabelJob, extent: Extent, scheduler: Scheduler) -> None:
        self._job, self._extent, self._scheduler = job, extent, scheduler
        self._engines = [scheduler.engine(model) for model in job.judges]

    @property
    def name(self) -> str:
        """The judges' fingerprints, as a row's `judge` has them."""
        return "+".join(engine.fingerprint for engine in self._engines)

    async def verdicts(
        self, folder: Path, skip: Callable[[Skipped], None]
    ) -> AsyncIterator[tuple[Candidates, Verdicts | RequestRefused]]:
        """All candidates with all judges' verdicts, in the file's order; refused where one judge refuses.

        Verdicts of earlier judges wait in files in `folder` for the last one.
        """
        *earlier, last = self._engines
        with aside(folder) as beside, ExitStack() as open_files:
            waiting = [Path(beside) / f"{number}.jsonl" for number in range(len(earlier))]
            for engine, path in zip(earlier, waiting, strict=True):
                with RowWriter(path) as writer:
                    async for _, verdicts in self._of_judge(engine, lambda _: None):
                        writer.write(_StoredVerdicts.of(verdicts))
            files = [open_files.enter_context(path.open(encoding="utf-8")) for path in waiting]
            async for item, verdicts in self._of_judge(last, skip):
                stored = [_StoredVerdicts.model_validate_json(next(file)).restored() for file in files]
                yield item, self._joined([*stored, verdicts])

    def work(self, stage: str) -> list[EngineWork]:
        """What the judges did so far, under the name of a run's stage."""
        return [done._replace(work=replace(done.work, stage=stage)) for done in self._scheduler.work]

    async def _of_judge(
        self, engine: CachedEngine, skip: Callable[[Skipped], None]
    ) -> AsyncIterator[tuple[Candidates, Verdicts | RequestRefused]]:
        job, number, of = self._job, self._engines.index(engine) + 1, len(self._engines)
        judge = Judge(job.templates, engine, job.settings, job.seed)

        async def ask(item: Candidates) -> Verdicts:
            constitution = await ask_applying(job.constitution, item.prompt, job.templates, engine)
            return await judge.judge_answers(item.prompt, item.answers, constitution)

        name = "judging" if of == 1 else f"judging, {number} of {of}"
        stage = Stage(name, [engine], self._extent.sets, self._extent.calls, "rows")
        try:
            async for item, verdicts in self._scheduler.run(stage, candidates(job, skip), ask):
                yield item, verdicts
        finally:
            await engine.close()

    def _joined(self, parts: list[Verdicts | RequestRefused]) -> Verdicts | RequestRefused:
        by_judge: list[tuple[str, Verdicts]] = []
        for engine, part in zip(self._engines, parts, strict=True):
            if isinstance(part, RequestRefused):
                return part
            by_judge.append((engine.fingerprint, part))
        return panel_verdicts(by_judge)


class _StoredVerdicts(Row):
    """One judge's verdicts on a set of candidates, on their way through a file."""

    refused: str | None = None
    retryable: bool = True
    pairs: list[tuple[int, int, list[Verdict]]] = []

    @classmethod
    def of(cls, verdicts: Verdicts | RequestRefused) -> "_StoredVerdicts":
        if isinstance(verdicts, RequestRefused):
            return cls(refused=str(verdicts), retryable=verdicts.retryable)
        return cls(pairs=[(i, j, of_pair) for (i, j), of_pair in verdicts.items()])

    def restored(self) -> Verdicts | RequestRefused:
        if self.refused is not None:
            return RequestRefused(self.refused, self.retryable)
        return {(i, j): verdicts for i, j, verdicts in self.pairs}


def label_claim(command: str, job: LabelJob, folder: Path, **options: Any) -> Claim:
    """The folder of a command that judges a file, with its manifest; judge.json finishes it.

    `options` are the command's own.
    """
    manifest = {
        "command": command,
        "data": {"content": file_fingerprint(job.data), "limit": job.limit},
        "judges": [model_fingerprint(judge) for judge in job.judges],
        "constitution": {
            "name": job.constitution.name,
            "principles": manifest_of(job.constitution),
        },
        "templates": job.templates.fingerprint,
        "settings": job.settings.model_dump(mode="json", exclude={"samples", "model", "key_env", "engine"}),
        "seed": job.seed,
        **deciding_settings(job.engine),
        **options,
        "where": {"data": str(job.data), "judges": [str(judge) for judge in job.judges]},
        "versions": versions(),
    }
    return Claim(folder, manifest, JUDGE_JSON, inputs=(job.data, job.templates.folder))


def finish_judging(claim: Claim, content: dict[str, Any]) -> None:
    """Write judge.json, which finishes the folder of `cai judge` or `cai judge-eval`, and record the results."""
    write_text(claim.folder / JUDGE_JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    record_files(claim)


@dataclass
class Totals:
    """Running sums over the labelled pairs, so that none needs to be kept."""

    pairs: int = 0
    metrics: PromptMeans[Preference] = field(default_factory=lambda: PromptMeans(JUDGE_METRICS))
    rankings: int = 0
    spelling: int = 0  # pairs whose texts spell control tokens
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add_pair(self, pair: Preference) -> None:
        """Count one labelled pair."""
        self.pairs += 1
        self.metrics.add(pair)
        self.spelling += spells_control(pair)

    def add_skipped(self, row: Skipped) -> None:
        """Count one row that was not used."""
        self.failed += row.failed
        if not row.failed:
            self.reasons[row.reason] += 1

    def summary(self) -> dict[str, Any]:
        """Counts, and metrics by key, each as in summary.json; None where nothing was counted."""
        return {
            "pairs": self.pairs,
            "rankings": self.rankings,
            "skipped": {"reasons": dict(self.reasons.most_common()), "failed": self.failed},
            "metrics": {key: estimate and estimate._asdict() for key, estimate in self.metrics.estimates().items()},
        }


@contextmanager
def judging_folder(
    claim: Claim, replace: bool, judges: Sequence[Model], cache: Path, reporter: Reporter
) -> Iterator[Cache]:
    """Hold the folder of judged rows, say what is replaced there, and log into it; yields the open cache."""
    if claim.changes():
        require_servers(judges)
    with (
        claimed(claim, replace) as replaced,
        reporter.logging_to(claim.folder / "log.txt"),
        closing(Cache(cache)) as store,
    ):
        if replaced:
            reporter.say(replaced)
        yield store


def label_file(
    job: LabelJob, out: Output, cache: Path, reporter: Reporter, open_engine: OpenEngine = open_model
) -> dict[str, Any]:
    """Write preferences.jsonl, skipped.jsonl, judge.json and, of sets of more than two, rankings.jsonl.

    Raises: CaiError. Returns: the content of judge.json.
    """
    extent, folder = count_work(job), out.folder
    claim = label_claim("cai judge", job, folder)
    with judging_folder(claim, out.replace, job.judges, cache, reporter) as store:
        scheduler = job.scheduler(store, reporter, open_engine)
        begun, totals = time.monotonic(), Totals()
        asyncio.run(label_rows(job, JudgePanel(job, extent, scheduler), folder, extent.most > 2, totals))
        spelling = control_counts(totals.spelling, job.engine.control_tokens, served(job.judges))
        cost = scheduler.cost(time.monotonic() - begun)._asdict()
        content = totals.summary() | spelling | {"bounded": scheduler.tally().bounded, "cost": cost}
        finish_judging(claim, content)
    return content


async def label_rows(job: LabelJob, panel: JudgePanel, out: Path, ranks: bool, totals: Totals) -> None:
    """Write preferences.jsonl, skipped.jsonl and, if `ranks`, rankings.jsonl into the folder `out`."""
    with ExitStack() as files:
        preferences, skipped = (files.enter_context(RowWriter(out / f"{n}.jsonl")) for n in ("preferences", "skipped"))
        rankings = files.enter_context(RowWriter(out / "rankings.jsonl")) if ranks else None

        def skip(row: Skipped) -> None:
            skipped.write(row)
            totals.add_skipped(row)

        async for item, verdicts in panel.verdicts(out, skip):
            if isinstance(verdicts, RequestRefused):
                skip(Skipped.refused(item.prompt.id, item.place, verdicts))
                continue
            judged = JudgedAnswers(item.prompt, item.answers, verdicts, item.model, panel.name, job.seed)
            for pair in labelled(item, judged, job.settings):
                if isinstance(pair, Preference):
                    preferences.write(pair)
                    totals.add_pair(pair)
                else:
                    skip(pair)
            ranking = rank_judged(judged, job.settings) if rankings is not None and len(item.answers) > 2 else None
            if rankings is not None and ranking is not None:
                rankings.write(ranking)
                totals.rankings += 1


def labelled(item: Candidates, judged: JudgedAnswers, settings: JudgeConfig) -> list[Preference | Skipped]:
    """Each pair of a set as a preference, with the input label beside the judge's, or why there is none."""
    pairs = judged_preferences(judged, settings, item.place)
    if item.input_p is None:
        return pairs
    return [
        pair.model_copy(update={"input_p": item.input_p if pair.chosen == item.answers[0] else 1 - item.input_p})
        if isinstance(pair, Preference)
        else pair
        for pair in pairs
    ]
