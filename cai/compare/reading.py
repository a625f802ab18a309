"""A run as a comparison reads it: each row once, its figures kept and most of its texts let go."""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from cai.compare.record import Doubt
from cai.config.errors import CaiError
from cai.constitution.principles import Constitution
from cai.data.jsonl import AnyRow, each_row
from cai.data.manifest import MANIFEST_JSON, read_json
from cai.data.records import Comparison, Judgement, Preference, Prompt, Revision, Skipped
from cai.feedback.metrics import words
from cai.runs.folder import RunFolder
from cai.stats.edits import distance

KEPT_DOUBTS = 5  # of each run
Part = TypeVar("Part")


class Round(NamedTuple):
    """One round of revision; `changed`, `edit`, `words` and `truncated` as OUTCOMES has them."""

    principle: str
    changed: bool
    edit: float
    words: int
    flags: list[str]
    truncated: bool


class Revised(NamedTuple):
    """A prompt's rounds of revision, in order, and its last revision."""

    rounds: list[Round]
    draft_words: int
    text: str
    text_words: int
    edit: float  # from the draft to the last revision


class Labelled(NamedTuple):
    """A pair that the judge labelled."""

    pair: int  # stands for its two texts, whichever of them was chosen, as long as this process lives
    p: float  # P(the text that sorts first is preferred)
    position_bias: float | None  # share of its verdicts; None where only one order was asked
    non_option_mass: float


class Labels(NamedTuple):
    """What the judge said of pairs and of the last revision, by prompt; and how its verdicts hold up, by principle."""

    pairs: dict[str, list[Labelled]]
    revisions: dict[str, dict[str, float]]  # P(last revision better than draft) by each principle of its rounds
    asked: Counter[str]  # verdicts on pairs in both orders
    position_bias: Counter[str]  # of these, how many prefer the same position in both


class Answered(NamedTuple):
    """A held-out prompt's answers before and after training, and the eval judge's label."""

    p: float
    before: int  # stands for the text, as long as this process lives
    before_words: int
    after: str
    after_words: int
    truncated: bool
    position_bias: float | None  # share of its verdicts; None of equal answers, of which nobody was asked
    tags: list[str]
    judge: str


@dataclass
class RunData:
    """What a run's folder holds. A part that is None is not there, or cannot be read; then `unreadable` says why."""

    folder: RunFolder
    manifest: dict[str, Any]
    constitution: Constitution | None = None
    prompts: dict[str, Prompt] = field(default_factory=dict)
    revised: dict[str, Revised] | None = None
    labels: Labels | None = None
    answered: dict[str, Answered] | None = None
    judgements: list[Judgement] = field(default_factory=list)  # of `cai eval`
    evaluated: dict[str, str] = field(default_factory=dict)  # the policies it was about: the content of each by name
    skipped: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)  # by file
    doubts: list[Doubt] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    def setting(self, *at: str) -> Any:
        """A resolved setting, such as ("revise", "rounds"); None in a manifest that does not know it."""
        value: Any = self.manifest.get("config")
        for key in at:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_run(folder: RunFolder, number: int = 0) -> RunData:
    """Everything a comparison needs of its `number`-th run; a part that cannot be read is told in `unreadable`.

    Raises: CaiError when the folder holds no run.
    """
    run = RunData(folder, folder.manifest())
    try:
        run.constitution = folder.constitution()
    except CaiError as error:
        run.unreadable.append(str(error))
    doubts = _Widest(number)
    run.prompts = _part(run, "prompts", Prompt, lambda rows: {row.id: row for row in rows}) or {}
    run.labels = _part(run, "preferences", Preference, lambda rows: _labels(rows, doubts))
    run.revised = _part(run, "revisions", Revision, _revised)
    run.answered = _part(run, "evaluation", Comparison, lambda rows: _answered(rows, doubts))
    if judgements := _part(run, "eval/comparisons", Judgement, list):
        run.judgements, run.evaluated = judgements, _evaluated(folder)
    run.skipped = _part(run, "skipped", Skipped, lambda rows: dict(Counter(row.reason for row in rows))) or {}
    run.doubts = doubts.found()
    return run


def _evaluated(folder: RunFolder) -> dict[str, str]:
    try:
        policies = read_json(folder.eval / MANIFEST_JSON)["policies"]
        return {policy["name"]: policy["model"] for policy in policies}
    except (CaiError, LookupError, TypeError):
        return {}


def _part(run: RunData, name: str, model: type[AnyRow], make: Callable[[Iterable[AnyRow]], Part]) -> Part | None:
    path, count = run.folder.path / f"{name}.jsonl", 0

    def counted() -> Iterator[AnyRow]:
        nonlocal count
        for row in each_row(path, model):
            count += 1
            yield row

    run.rows[name] = None
    if not path.exists():
        return None
    try:
        made = make(counted())
    except CaiError as error:
        run.unreadable.append(str(error))
        return None
    run.rows[name] = count
    return made


def _revised(rows: Iterable[Revision]) -> dict[str, Revised]:
    found: dict[str, Revised] = {}
    for row in rows:
        before, revision = row.before.split(), row.revision.split()
        draft = before if row.draft == row.before else row.draft.split()
        edit = distance(before, revision)
        this = Round(
            principle=row.principle_id,
            changed=edit > 0,
            edit=edit,
            words=len(revision) - len(before),
            flags=row.flags,
            truncated="revision" in row.truncated,
        )
        found[row.prompt_id] = Revised(
            rounds=[*found[row.prompt_id].rounds, this] if row.prompt_id in found else [this],
            draft_words=len(draft),
            text=row.revision,
            text_words=len(revision),
            edit=edit if draft is before else distance(draft, revision),
        )
    return found


def _labels(rows: Iterable[Preference], doubts: "_Widest") -> Labels:
    labels = Labels({}, {}, Counter(), Counter())
    for row in rows:
        if not row.verdicts:
            continue
        if row.source == "revision":
            said: dict[str, list[float]] = {}
            for verdict in row.verdicts:  # of a panel there are several by one principle
                said.setdefault(verdict.principle_id, []).append(verdict.p)
            labels.revisions[row.prompt_id] = {principle: mean(p) for principle, p in said.items()}
        elif row.source == "judge":
            chosen_first = row.chosen <= row.rejected
            texts = (row.chosen, row.rejected) if chosen_first else (row.rejected, row.chosen)
            followed = [(v.principle_id, v.position_bias) for v in row.verdicts if v.position_bias is not None]
            labels.asked.update(principle for principle, _ in followed)
            labels.position_bias.update(principle for principle, same in followed if same)
            label = Labelled(
                pair=hash(texts),
                p=row.p if chosen_first else 1 - row.p,
                position_bias=mean([same for _, same in followed]) if followed else None,
                non_option_mass=mean([v.non_option_mass for v in row.verdicts]),
            )
            labels.pairs.setdefault(row.prompt_id, []).append(label)
            doubts.consider("judged pair", row, row.chosen, row.rejected)
    return labels


def _answered(rows: Iterable[Comparison], doubts: "_Widest") -> dict[str, Answered]:
    found = {}
    for row in rows:
        followed = [v.position_bias for v in row.verdicts if v.position_bias is not None]
        found[row.prompt_id] = Answered(
            p=row.p,
            before=hash(row.before),
            before_words=words(row.before),
            after=row.after,
            after_words=words(row.after),
            truncated="after" in row.truncated,
            position_bias=mean(followed) if followed else None,
            tags=row.tags,
            judge=row.judge,
        )
        doubts.consider("evaluation", row, row.after, row.before)
    return found


def mean(values: Sequence[float]) -> float:
    """The mean of a few values; fmean's care for rounding costs more than reading a row."""
    return sum(values) / len(values)


class _Widest:
    """The verdicts whose two orders lie widest apart, of those that prefer one position in both."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._heap: list[tuple[float, int, Doubt]] = []
        self._seen = 0

    def consider(
        self, what: Literal["judged pair", "evaluation"], row: Preference | Comparison, first: str, second: str
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
        if len(self._heap) == KEPT_DOUBTS and gap <= self._heap[0][0]:
            return
        doubt = Doubt(
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
        push = heapq.heappush if len(self._heap) < KEPT_DOUBTS else heapq.heapreplace
        push(self._heap, (gap, -self._seen, doubt))

    def found(self) -> list[Doubt]:
        """The widest first."""
        return [doubt for _, _, doubt in sorted(self._heap, key=lambda item: item[:2], reverse=True)]
