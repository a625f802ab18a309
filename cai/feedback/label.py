"""What a file of answers holds for a judge: read whole before anything is paid for or written."""

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cai.config.errors import CaiError, RequestRefused
from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data.jsonl import RowWriter, file_fingerprint, write_text
from cai.data.manifest import Claim, Output, claimed, versions
from cai.data.preferences import Candidates, read_candidates
from cai.data.records import Preference, Row, Skipped, Verdict
from cai.evaluation.judge_report import Cost, hit
from cai.feedback.judge import JudgeConfig, Verdicts, calls, joined, judge_answers, judged_preferences, label, ranking
from cai.feedback.metrics import LABEL_METRICS, Metric, PromptMeans
from cai.inference.cache import AnyCache, Cache, CachedEngine, Tally
from cai.inference.engine import EngineConfig
from cai.inference.models import Model, model_fingerprint
from cai.inference.progress import Reporter
from cai.inference.scheduler import Amount, EngineWork, OpenEngine, cached_engine, each_with_progress, open_model


@dataclass(frozen=True)
class LabelJob:
    """What a file is judged by; several model folders are a panel."""

    data: Path
    ranked: bool  # how rows of `responses` are read, see cai/data/preferences.py
    limit: int | None  # of sets of candidates
    judges: list[Model]
    constitution: Constitution
    templates: Templates
    settings: JudgeConfig
    seed: int


class Extent(NamedTuple):
    """What a file holds: sets of candidates, pairs of them, the most answers in a set, and calls for each judge."""

    sets: int
    pairs: int
    most: int
    calls: int


def candidates(judging: LabelJob, skip: Callable[[Skipped], None]) -> Iterator[Candidates]:
    """The candidates of the file up to the limit; what it holds besides goes to `skip` on the way."""
    count = 0
    for item in read_candidates(judging.data, judging.ranked):
        if isinstance(item, Skipped):
            skip(item)
        elif judging.limit is None or count < judging.limit:
            count += 1
            yield item
        else:
            return


def count_work(judging: LabelJob) -> Extent:
    """Read the whole file once, before anything is paid for.

    Raises: CaiError for a row that is not of a known form, with its line, or a file with nothing to judge.
    """
    reasons: Counter[str] = Counter()
    sets = pairs = most = asked = 0
    for item in candidates(judging, lambda row: reasons.update([row.reason])):
        different = len({answer for answer in item.answers if answer})
        sets += 1
        pairs += len(item.answers) * (len(item.answers) - 1) // 2
        most = max(most, len(item.answers))
        asked += calls(judging.settings, len(judging.constitution.principles), different)
    if not sets:
        why = ", ".join(f"{n} × {reason}" for reason, n in reasons.items())
        raise CaiError(f"{judging.data}: nothing to judge in this file" + (f": {why}" if why else ""))
    return Extent(sets, pairs, most, asked)


# A file of answers judged outside a run: row by row, over the same cache, by one judge after another.
#
# Nothing of a row is kept once it is written, so that a file of any length fits in memory. There is no resume code:
# judging again asks the same questions, and the cache answers those that were paid for.


JUDGE_JSON = "judge.json"  # metrics; written last


class JudgePanel:
    """The judges of a file, of which one at a time is in memory."""

    def __init__(self, judging: LabelJob, extent: Extent, cache: AnyCache, reporter: Reporter, open_engine: OpenEngine):
        self._judging, self._extent, self._reporter = judging, extent, reporter
        self._engine_settings = EngineConfig()
        self.engines = [cached_engine(folder, self._engine_settings, cache, open_engine) for folder in judging.judges]

    @property
    def name(self) -> str:
        """The judges' fingerprints, as a row's `judge` has them."""
        return "+".join(engine.fingerprint for engine in self.engines)

    async def verdicts(
        self, folder: Path, skip: Callable[[Skipped], None]
    ) -> AsyncIterator[tuple[Candidates, Verdicts | RequestRefused]]:
        """All candidates with what all judges say of them, in the file's order; refused where one judge refuses.

        What earlier judges say waits in a file in `folder` for the last one.
        """
        *earlier, last = self.engines
        with tempfile.TemporaryDirectory(prefix=".panel-", dir=folder) as aside, ExitStack() as open_files:
            waiting = [Path(aside) / f"{number}.jsonl" for number in range(len(earlier))]
            for engine, path in zip(earlier, waiting, strict=True):
                with RowWriter(path) as writer:
                    async for _, said in self._one(engine, lambda _: None):
                        writer.write(_Said.of(said))
            lines = [open_files.enter_context(path.open(encoding="utf-8")) for path in waiting]
            async for item, said in self._one(last, skip):
                parts = [*(_Said.model_validate_json(next(file)).back() for file in lines), said]
                refused = next((part for part in parts if isinstance(part, RequestRefused)), None)
                names = [engine.fingerprint for engine in self.engines]
                agreed = [(name, part) for name, part in zip(names, parts, strict=True) if isinstance(part, dict)]
                yield item, refused or joined(agreed)

    async def _one(
        self, engine: CachedEngine, skip: Callable[[Skipped], None]
    ) -> AsyncIterator[tuple[Candidates, Verdicts | RequestRefused]]:
        j, number = self._judging, self.engines.index(engine)

        async def ask(item: Candidates) -> Verdicts:
            return await judge_answers(
                item.prompt, item.answers, j.constitution, j.templates, engine, j.settings, j.seed
            )

        name = "judging" if len(self.engines) == 1 else f"judging, {number + 1} of {len(self.engines)}"
        amount, limit = Amount(self._extent.sets, "rows", self._extent.calls), self._engine_settings.concurrency
        try:
            async for found in each_with_progress(
                name, candidates(j, skip), amount, ask, engine, limit, self._reporter
            ):
                yield found
        finally:
            await engine.close()

    def work(self, stage: str) -> list[EngineWork]:
        """What the judges did so far, under the name of a run's stage."""
        done = ((engine.fingerprint, work) for engine in self.engines for work in engine.work)
        return [EngineWork(fingerprint, replace(work, stage=stage)) for fingerprint, work in done]

    def cost(self, seconds: float) -> Cost:
        """What all judges together were asked and wrote."""
        tally = sum((engine.tally for engine in self.engines), Tally())
        return Cost(tally.cache_misses, tally.cache_hits, tally.tokens, seconds)


class _Said(Row):
    """What one judge says of a set of candidates, on its way through a file."""

    refused: str | None = None
    pairs: list[tuple[int, int, list[Verdict]]] = []

    @classmethod
    def of(cls, said: Verdicts | RequestRefused) -> "_Said":
        if isinstance(said, RequestRefused):
            return cls(refused=str(said))
        return cls(pairs=[(i, j, verdicts) for (i, j), verdicts in said.items()])

    def back(self) -> Verdicts | RequestRefused:
        if self.refused is not None:
            return RequestRefused(self.refused)
        return {(i, j): verdicts for i, j, verdicts in self.pairs}


def label_claim(command: str, job: LabelJob, folder: Path, **options: Any) -> Claim:
    """The folder of a command that judges a file, with its manifest; `options` are the command's own. judge.json
    finishes it."""
    manifest = {
        "command": command,
        "data": {"content": file_fingerprint(job.data), "limit": job.limit},
        "judges": [model_fingerprint(judge) for judge in job.judges],
        "constitution": {
            "name": job.constitution.name,
            "principles": {p.id: {"text": p.fingerprint, "weight": p.weight} for p in job.constitution.principles},
        },
        "templates": job.templates.fingerprint,
        "settings": job.settings.model_dump(mode="json", exclude={"samples", "model"}),
        "seed": job.seed,
        **options,
        "where": {"data": str(job.data), "judges": [str(judge) for judge in job.judges]},
        "versions": versions(),
    }
    return Claim(folder, manifest, JUDGE_JSON, inputs=(job.data, job.templates.folder))


def write_judge_json(folder: Path, content: dict[str, Any]) -> None:
    """Write judge.json, which finishes the folder of `cai judge` or `cai judge-eval`."""
    write_text(folder / JUDGE_JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# `cai judge`: a file of answers labelled by a judge, pair by pair, and ranked where there are more than two.


AGREEMENT = Metric[Preference](
    "agreement", "agreement with the input labels", "same winner; ties count one half", "share",
    lambda pair: None if pair.input_p is None else hit(pair.p, pair.input_p),
)  # fmt: skip
JUDGE_METRICS = (*LABEL_METRICS, AGREEMENT)


@dataclass
class Totals:
    """Running sums over the pairs that were labelled, so that none needs to be kept."""

    pairs: int = 0
    metrics: PromptMeans[Preference] = field(default_factory=lambda: PromptMeans(JUDGE_METRICS))
    rankings: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def count(totals: Totals, pair: Preference) -> None:
    """Add one pair."""
    totals.pairs += 1
    totals.metrics.add(pair)


def figures(totals: Totals) -> dict[str, Any]:
    """Counts, and metrics by key, each as in summary.json; None where nothing was counted."""
    return {
        "pairs": totals.pairs,
        "rankings": totals.rankings,
        "skipped": {"reasons": dict(totals.reasons.most_common()), "failed": totals.failed},
        "metrics": {key: estimate and estimate._asdict() for key, estimate in totals.metrics.estimates().items()},
    }


def label_file(
    job: LabelJob, out: Output, cache: Path, reporter: Reporter, open_engine: OpenEngine = open_model
) -> dict[str, Any]:
    """Write preferences.jsonl, skipped.jsonl, judge.json and, of sets of more than two, rankings.jsonl.

    Raises: CaiError. Returns: the content of judge.json.
    """
    extent, folder = count_work(job), out.folder
    with (
        claimed(label_claim("cai judge", job, folder), out.replace),
        reporter.logging_to(folder / "log.txt"),
        closing(Cache(cache)) as store,
    ):
        panel = JudgePanel(job, extent, store, reporter, open_engine)
        begun, totals = time.monotonic(), Totals()
        asyncio.run(_label(job, panel, folder, extent.most > 2, totals))
        content = figures(totals) | {"cost": panel.cost(time.monotonic() - begun)._asdict()}
        write_judge_json(folder, content)
    return content


async def _label(judging: LabelJob, panel: JudgePanel, out: Path, ranks: bool, totals: Totals) -> None:
    with ExitStack() as files:
        preferences, skipped = (files.enter_context(RowWriter(out / f"{n}.jsonl")) for n in ("preferences", "skipped"))
        rankings = files.enter_context(RowWriter(out / "rankings.jsonl")) if ranks else None

        def skip(row: Skipped) -> None:
            skipped.write(row)
            totals.failed += row.failed
            if not row.failed:
                totals.reasons[row.reason] += 1

        async for item, said in panel.verdicts(out, skip):
            if isinstance(said, RequestRefused):
                skip(Skipped(prompt_id=item.prompt.id, stage=item.place, reason=str(said), failed=True))
                continue
            for pair in labelled(item, said, judging, panel.name):
                if isinstance(pair, Preference):
                    preferences.write(pair)
                    count(totals, pair)
                else:
                    skip(Skipped(prompt_id=item.prompt.id, stage=item.place, reason=pair))
            if rankings is not None and len(item.answers) > 2 and said:
                labels = {pair: label(verdicts, judging.settings) for pair, verdicts in said.items()}
                rankings.write(ranking(item.prompt, item.answers, labels, item.model, panel.name, judging.seed))
                totals.rankings += 1


def labelled(item: Candidates, said: Verdicts, judging: LabelJob, judge: str) -> list[Preference | str]:
    """Each pair of a set as a preference, with the label it came with beside the judge's, or why there is none."""
    pairs = judged_preferences(item.prompt, item.answers, said, item.model, judge, judging.settings, judging.seed)
    if item.input_p is None:
        return pairs
    return [
        pair.model_copy(update={"input_p": item.input_p if pair.chosen == item.answers[0] else 1 - item.input_p})
        if isinstance(pair, Preference)
        else pair
        for pair in pairs
    ]
