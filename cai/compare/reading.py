"""A run as a comparison reads it: each row once, its metrics by prompt kept and most of its texts let go."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from cai.compare.record import PositionFlip
from cai.config.errors import CaiError
from cai.constitution.principles import Constitution
from cai.data.jsonl import AnyRow, each_row
from cai.data.manifest import MANIFEST_JSON, read_json
from cai.data.records import BeforeAfter, Judgement, Preference, Prompt, Revision, Skipped, Source
from cai.evaluation.policy_report import COMPARISONS, each_before_after
from cai.feedback.metrics import (
    EVALUATION_METRICS,
    LABEL_METRICS,
    REVISION_METRICS,
    REVISION_PAIR_METRICS,
    ROUND_METRICS,
    PromptMeans,
    revision_better,
)
from cai.feedback.pairs import LabelMass
from cai.runs.folder import RunFolder

KEPT_FLIPS = 5  # of each run
Part = TypeVar("Part")


class Round(NamedTuple):
    """One round of revision: its principle, and the values of ROUND_METRICS by key."""

    principle: str
    values: dict[str, float]


class Revised(NamedTuple):
    """A prompt's rounds of revision, in order, and its last revision."""

    rounds: list[Round]
    text: str


class Labelled(NamedTuple):
    """A labelled pair, and where the label comes from."""

    source: Source
    pair: int  # stands for its two texts, whichever of them was chosen, as long as this process lives
    p: float  # P(the text that sorts first is preferred)


class PairVerdict(NamedTuple):
    """A principle's verdict on a pair of samples that it judged in both orders."""

    prompt_id: str
    position_bias: bool


@dataclass
class Labels:
    """The labels of all pairs and the verdicts on last revisions, by prompt; and those on pairs, by principle."""

    pairs: dict[str, list[Labelled]] = field(default_factory=dict)
    revisions: dict[str, dict[str, float]] = field(default_factory=dict)  # P(better than draft) by principle
    verdicts: dict[str, list[PairVerdict]] = field(default_factory=dict)
    mass: LabelMass = field(default_factory=LabelMass)


class Answered(NamedTuple):
    """A held-out prompt's answers before and after training, and the eval judge's label, if there is a judge."""

    p: float | None
    before: int  # stands for the text, as long as this process lives
    after: str
    tags: list[str]
    judge: str


class PolicyData(NamedTuple):
    """One trained policy on held-out prompts: its answers, and EVALUATION_METRICS by key and prompt."""

    answered: dict[str, Answered]
    metrics: dict[str, dict[str, float]]
    undefined: frozenset[str] = frozenset()  # metrics that its answers, equal to those before, have no value of


@dataclass
class RunData:
    """What a run's folder holds.

    `policies` are the trained ones, more than one where several seeds were; `metrics` have the mean over them. A part
    that is None is not there, or cannot be read; then `unreadable` says why.
    """

    folder: RunFolder
    manifest: dict[str, Any]
    constitution: Constitution | None = None
    prompts: dict[str, Prompt] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by key of RUN_METRICS and prompt
    revised: dict[str, Revised] | None = None
    labels: Labels | None = None
    policies: list[PolicyData] | None = None
    judgements: list[Judgement] = field(default_factory=list)  # of `cai eval`
    evaluated: dict[str, str] = field(default_factory=dict)  # the policies it was about: the content of each by name
    axes: dict[str, Any] = field(default_factory=dict)  # of all evaluations: each constitution's content by axis
    skipped: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)  # by file
    flips: list[PositionFlip] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def answered(self) -> dict[str, Answered] | None:
        """The answers of the first policy."""
        return self.policies[0].answered if self.policies else None

    @property
    def held_out(self) -> frozenset[str]:
        """The ids of the prompts kept from training; empty in a manifest that does not know them."""
        return frozenset(self.manifest.get("held_out") or ())

    def split(self, prompt_ids: Iterable[str]) -> tuple[int, int]:
        """How many of these prompts the run trains on, and how many it holds out."""
        held_out = [i in self.held_out for i in prompt_ids]
        return held_out.count(False), held_out.count(True)

    def setting(self, *at: str) -> Any:
        """A resolved setting, such as ("revise", "rounds"); None in a manifest that does not know it."""
        value: Any = self.manifest.get("config")
        for key in at:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(folder: RunFolder, number: int = 0) -> RunData:
    """Everything a comparison needs of its `number`-th run; why a part cannot be read is in `unreadable`.

    Raises: CaiError when the folder holds no run.
    """
    run = RunData(folder, folder.manifest())
    try:
        run.constitution = folder.constitution()
    except CaiError as error:
        run.unreadable.append(str(error))
    flips = _WidestFlips(number)
    run.prompts = _part(run, "prompts", Prompt, lambda rows: {row.id: row for row in rows}) or {}
    run.labels = _part(run, "preferences", Preference, lambda rows: _labels(run, rows, flips))
    run.revised = _part(run, "revisions", Revision, lambda rows: _revised(run, rows))
    run.policies = _policies(run, flips)
    evaluations = [path for path in folder.evaluations() if (path / COMPARISONS).exists()]
    run.evaluated = _evaluated(folder.eval)[0]
    axes = [_evaluated(path)[1] for path in evaluations] or [{}]
    run.axes = {name: axis for name, axis in axes[0].items() if all(other.get(name) == axis for other in axes)}
    if len(run.evaluated) > 2:  # with other policies than the run's own and its base
        run.judgements = _part(run, "eval/comparisons", Judgement, list) or []
    run.skipped = _part(run, "skipped", Skipped, lambda rows: dict(Counter(row.reason for row in rows))) or {}
    run.flips = flips.widest()
    return run


def shared_prompts(a: RunData, b: RunData) -> list[str]:
    """The ids of prompts that are the same in both, in A's order."""
    return [i for i, prompt in a.prompts.items() if i in b.prompts and b.prompts[i].messages == prompt.messages]


def _evaluated(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The policies of an evaluation and its axes, by name; without any where its manifest does not say."""
    try:
        manifest = read_json(folder / MANIFEST_JSON)
        return {policy["name"]: policy["model"] for policy in manifest["policies"]}, dict(manifest.get("axes") or {})
    except (CaiError, LookupError, TypeError, ValueError):
        return {}, {}


def _part(run: RunData, name: str, model: type[AnyRow], read: Callable[[Iterable[AnyRow]], Part]) -> Part | None:
    path = run.folder.path / f"{name}.jsonl"
    run.rows[name] = None
    return _read(run, name, each_row(path, model), read) if path.exists() else None


def _policies(run: RunData, flips: "_WidestFlips") -> list[PolicyData] | None:
    """Every policy that was trained and evaluated; None where none was, or one cannot be read."""
    run.rows["evaluation"] = None
    folders = [folder for folder in run.folder.evaluations() if (folder / COMPARISONS).exists()]
    policies = [
        _read(run, "evaluation", each_before_after(folder), lambda rows: _policy(rows, flips)) for folder in folders
    ]
    known = [policy for policy in policies if policy is not None]
    if not known or len(known) < len(folders):
        return None
    for key in frozenset.intersection(*(policy.undefined for policy in known)):
        for policy in known:
            policy.metrics[key].clear()
    for key in known[0].metrics:
        values = [policy.metrics[key] for policy in known]
        run.metrics[key] = {i: mean([v[i] for v in values]) for i in values[0] if all(i in v for v in values)}
    return known


def _read(run: RunData, name: str, rows: Iterable[Any], read: Callable[[Iterable[Any]], Part]) -> Part | None:
    """A part of rows, which are counted; None where one of them is damaged, which `unreadable` says."""
    count = 0

    def counted() -> Iterator[Any]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    try:
        part = read(counted())
    except CaiError as error:
        run.unreadable.append(str(error))
        return None
    run.rows[name] = count
    return part


def _revised(run: RunData, rows: Iterable[Revision]) -> dict[str, Revised]:
    revised: dict[str, Revised] = {}
    means = PromptMeans(REVISION_METRICS)
    for row in rows:
        means.add(row)
        values = {metric.key: float(value) for metric in ROUND_METRICS if (value := metric.value(row)) is not None}
        earlier = revised[row.prompt_id].rounds if row.prompt_id in revised else []
        revised[row.prompt_id] = Revised([*earlier, Round(row.principle_id, values)], row.revision)
    run.metrics |= means.all_by_prompt()
    return revised


def labelled(row: Preference) -> Labelled:
    """The label of a pair, in the order in which its texts sort."""
    if row.chosen <= row.rejected:
        return Labelled(row.source, hash((row.chosen, row.rejected)), row.p)
    return Labelled(row.source, hash((row.rejected, row.chosen)), 1 - row.p)


def _labels(run: RunData, rows: Iterable[Preference], flips: "_WidestFlips") -> Labels:
    labels, means, of_revisions = Labels(), PromptMeans(LABEL_METRICS), PromptMeans(REVISION_PAIR_METRICS)
    for row in rows:
        labels.mass.add(row)
        labels.pairs.setdefault(row.prompt_id, []).append(labelled(row))
        if row.from_file:
            continue
        if row.source == "revision":
            of_revisions.add(row)
        if row.source == "revision" and row.verdicts:
            principles = dict.fromkeys(verdict.principle_id for verdict in row.verdicts)  # of a panel, several by one
            labels.revisions[row.prompt_id] = {
                principle: revision_better(row, principle) or 0.0 for principle in principles
            }
        elif row.source == "judge":
            means.add(row)
            for verdict in row.verdicts:
                if verdict.position_bias is not None:
                    of_principle = labels.verdicts.setdefault(verdict.principle_id, [])
                    of_principle.append(PairVerdict(row.prompt_id, verdict.position_bias))
            flips.consider("judged pair", row, row.chosen, row.rejected)
    run.metrics |= means.all_by_prompt() | of_revisions.all_by_prompt()
    return labels


def _policy(rows: Iterable[BeforeAfter], flips: "_WidestFlips") -> PolicyData:
    answered, means = {}, PromptMeans(EVALUATION_METRICS)
    for row in rows:
        means.add(row)
        answered[row.prompt_id] = Answered(row.p, hash(row.before), row.after, row.tags, row.judge)
        flips.consider("evaluation", row, row.after, row.before)
    metrics = {metric.key: means.by_prompt(metric) for metric in EVALUATION_METRICS}
    return PolicyData(answered, metrics, frozenset(m.key for m in EVALUATION_METRICS if not means.defined(m)))


def mean(values: Sequence[float]) -> float:
    """The mean of a few values; fmean's care for rounding costs more than reading a row."""
    return sum(values) / len(values)


class _WidestFlips:
    """The verdicts whose two orders lie widest apart, of those that prefer one position in both."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._heap: list[tuple[float, int, PositionFlip]] = []
        self._seen = 0

    def consider(
        self, what: Literal["judged pair", "evaluation"], row: Preference | BeforeAfter, first: str, second: str
    ) -> None:
        """Keep the widest verdict on a pair if it is among the widest of all; of equal ones the earlier stays."""
        apart = [
            (abs(v.p_forward - v.p_reverse), -number, v.principle_id, v.p_forward, v.p_reverse)
            for number, v in enumerate(row.verdicts)
            if v.p_forward is not None and v.p_reverse is not None and v.position_bias
        ]
        self._seen += 1
        if not apart:
            return
        gap, _, principle, forward, reverse = max(apart)
        if len(self._heap) == KEPT_FLIPS and gap <= self._heap[0][0]:
            return
        flip = PositionFlip(
            run=self._run,
            what=what,
            prompt_id=row.prompt_id,
            messages=row.messages,
            first=first,
            second=second,
            principle_id=principle,
            p_forward=forward,
            p_reverse=reverse,
        )
        push = heapq.heappush if len(self._heap) < KEPT_FLIPS else heapq.heapreplace
        push(self._heap, (gap, -self._seen, flip))

    def widest(self) -> list[PositionFlip]:
        """The widest first."""
        return [flip for _, _, flip in sorted(self._heap, key=lambda item: item[:2], reverse=True)]
