"""Two runs' answers against each other: who wins, and which answers lie far apart."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from cai.compare.reading import RunData
from cai.compare.record import Example, HeadToHead
from cai.constitution.difference import word_distance
from cai.data.records import Judgement
from cai.evaluation.evaluation_plan import HELPFUL, OVERALL, SAFE
from cai.feedback.metrics import AXIS_METRICS, EVAL_JUDGE_METRICS, Metric
from cai.inference.models import folder_fingerprint
from cai.stats.trainings import wins_between_policies
from cai.stats.win_rate import win

Texts = Mapping[str, str]  # by prompt
WinsByTag = dict[tuple[str, str | None], list[dict[str, float]]]
"""By axis and tag: for each pair of trainings, the wins by prompt."""


def head_to_head(a: RunData, b: RunData, shared: Sequence[str]) -> list[HeadToHead]:
    """B against A, on all prompts and by tag: by `cai eval` of both policies, or else by the evaluations of both runs.

    The latter is indirect, on held-out prompts whose answer before training is the same in both: the eval judge
    compared either answer with that one. Of several trainings, the first of A meets the first of B, and so on. Effects
    are not corrected yet. [] where the runs have different eval judges.
    """
    values = _judged_directly(a, b)
    directly = bool(values)
    if not values:
        values = {("overall", tag): wins for tag, wins in indirect_wins(a, b, shared).items()}
    effects = {key: wins_between_policies(of_pairs) for key, of_pairs in values.items()}
    order = sorted(effects, key=lambda key: (key[0], key[1] is not None, -effects[key].n, key[1]))
    return [
        HeadToHead(
            axis=axis,
            tag=tag,
            directly=directly,
            win_rate=0.5 + effects[axis, tag].mean,
            effect=effects[axis, tag],
        )
        for axis, tag in order
    ]


def win_heading(row: HeadToHead, b: str) -> str:
    """What a head-to-head is of: only answers that met have a winner."""
    if row.directly:
        return f"Win rate of {b} against A, judged side by side"
    return f"Held-out prompts on which {b} gains more than A over the answer before training; ties count one half"


def indirect_wins(a: RunData, b: RunData, shared: Sequence[str]) -> dict[str | None, list[dict[str, float]]]:
    """By tag (None: all prompts), for each pair of trainings: B's wins by prompt; {} without a common eval judge.

    Only prompts that every policy answered, with the same answer before training.
    """
    pairs = [(x.answered, y.answered) for x, y in zip(a.policies or [], b.policies or [], strict=False)]
    if not pairs or not same_eval_judge(a, b):
        return {}
    wins: dict[str | None, list[dict[str, float]]] = {}
    for i in shared:
        rows = [(x[i], y[i]) for x, y in pairs if i in x and i in y]
        if len(rows) < len(pairs) or len({row.before for pair in rows for row in pair}) > 1:
            continue
        labels = [(x.p, y.p) for x, y in rows]
        for tag in (None, *dict.fromkeys(rows[0][0].tags)):
            of_pairs = wins.setdefault(tag, [{} for _ in pairs])
            for by_prompt, (p, q) in zip(of_pairs, labels, strict=True):
                if p is not None and q is not None:  # as all or none, of one judge
                    by_prompt[i] = win(0.5 + (q - p) / 2)
    return wins


def _judged_directly(a: RunData, b: RunData) -> WinsByTag:
    """B's wins where a judge saw answers of both policies, in the evaluation of either run."""
    values: WinsByTag = {}
    for run in (a, b):
        for row in judged_together(run, a, b) if not outdated(run, a, b) else ():
            for tag in (None, *dict.fromkeys(row.tags)):
                [by_prompt] = values.setdefault((row.axis, tag), [{}])
                by_prompt[row.prompt_id] = win(row.p if row.policy == b.name else 1 - row.p)
        if values:
            break  # the other run's folder may hold the same evaluation
    return values


def judged_together(run: RunData, a: RunData, b: RunData) -> list[Judgement]:
    """What the evaluation of `run` says of answers of both policies."""
    both = ((a.name, b.name), (b.name, a.name)) if a.name != b.name else ()
    return [row for row in run.judgements if (row.policy, row.against) in both]


def outdated(run: RunData, a: RunData, b: RunData) -> bool:
    """Whether a policy was trained anew since the evaluation of `run`, as far as the models are there to tell."""
    known = [(run.evaluated.get(side.name), side.folder.policy()) for side in (a, b)]
    return any(content and model and folder_fingerprint(model) != content for content, model in known)


def same_eval_judge(a: RunData, b: RunData) -> bool:
    """Whether both runs' held-out answers were compared by the same model under the same constitution."""
    constitutions = [_eval_principles(run) for run in (a, b)]
    return constitutions[0] == constitutions[1] and constitutions[0] is not None and _same_judge_model(a, b)


def _same_judge_model(a: RunData, b: RunData) -> bool:
    """Whether one model compared the answers of all policies; `cai eval --judge` may have replaced some evaluations."""
    judges = [{row.judge for policy in run.policies or [] for row in policy.answered.values()} for run in (a, b)]
    return judges[0] == judges[1] and len(judges[0]) <= 1


def _eval_principles(run: RunData) -> Any:
    """The content of each principle by which the run's answers were compared; None where no file says.

    `cai eval --constitution` may have replaced the run's own evaluation, so the evaluation's manifest decides.
    """
    axis = run.axes.get(OVERALL)
    return axis.get("principles") if isinstance(axis, dict) else None


def same_axes(a: RunData, b: RunData) -> bool:
    """Whether the same model compared both runs' held-out answers on the same two axes."""
    axes = [[run.axes.get(name) for name in (HELPFUL, SAFE)] for run in (a, b)]
    return _same_judge_model(a, b) and None not in axes[0] and axes[0] == axes[1]


def comparable(metrics: Iterable[Metric[Any]], a: RunData, b: RunData) -> Iterator[Metric[Any]]:
    """The metrics that mean the same in both runs: those of the eval judge only where its questions are the same."""
    asked = {**dict.fromkeys(EVAL_JUDGE_METRICS, same_eval_judge(a, b)), **dict.fromkeys(AXIS_METRICS, same_axes(a, b))}
    return (metric for metric in metrics if asked.get(metric, True))


def examples(a: RunData, b: RunData, shared: Sequence[str], count: int) -> list[Example]:
    """The shared prompts whose answers have least in common: `count` of the trained policies, and of last revisions.

    Ranked by the words they do not share, in any order, a hundred times as fast as their edit distance.
    """

    def most(what: Literal["trained policy", "last revision"], of_a: Texts, of_b: Texts) -> list[Example]:
        both = (i for i in shared if i in of_a and i in of_b and of_a[i] != of_b[i])
        apart = ((_unlike(of_a[i], of_b[i]), i) for i in both)
        return [
            Example(
                prompt_id=i,
                messages=a.prompts[i].messages,
                what=what,
                principles_a=_principles(a, i),
                principles_b=_principles(b, i),
                a=of_a[i],
                b=of_b[i],
                change=word_distance(of_a[i], of_b[i]),
            )
            for _, i in heapq.nsmallest(count, apart, key=lambda pair: (-pair[0], pair[1]))
        ]

    answers = ({i: row.after for i, row in (run.answered or {}).items()} for run in (a, b))
    revisions = ({i: row.text for i, row in (run.revised or {}).items()} for run in (a, b))
    return [*most("trained policy", *answers), *most("last revision", *revisions)]


def _unlike(a: str, b: str) -> float:
    """The share of the different words of two texts that only one of them has."""
    words_a, words_b = set(a.split()), set(b.split())
    return len(words_a ^ words_b) / len(words_a | words_b) if words_a or words_b else 0.0


def _principles(run: RunData, prompt_id: str) -> list[str]:
    row = (run.revised or {}).get(prompt_id)
    return [one_round.principle for one_round in row.rounds] if row else []
