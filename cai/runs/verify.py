"""`cai verify`: whether a run's folder is what its manifest says, and what follows from it alone.

Files are compared by content with the fingerprints of the manifests and of summary.json; labels, rankings and metrics
are computed again from the stored verdicts and rows. No model is called.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.constitution.principles import applying, assign, load_constitution
from cai.constitution.templates import Templates, names_for
from cai.data.jsonl import each_row, file_fingerprint, read_rows
from cai.data.manifest import FILES, MANIFEST_JSON, read_json, result_files
from cai.data.records import Answer, Judgement, Preference, Ranking, Verdict
from cai.evaluation.evaluation_plan import HELD_OUT
from cai.evaluation.judge_report import read_judge_report
from cai.evaluation.policy_report import ANSWERS, COMPARISONS, REPORT, read_report
from cai.evaluation.win_rates import compare_policies, tags_to_report
from cai.feedback.judge import JudgeConfig, principles_met
from cai.feedback.label import JUDGE_JSON
from cai.feedback.pairs import label, soft_label
from cai.inference.models import SERVER_SCHEMES, folder_fingerprint, resolve_model
from cai.runs.find import other_version, run_config
from cai.runs.folder import ITERATION, RunFolder, Training, stage_settings
from cai.runs.metrics import summarise
from cai.runs.plan import split
from cai.runs.run_file import RunConfig, templates_needed
from cai.stats.formatting import counted
from cai.stats.logistic import bradley_terry
from cai.training.stage import MODEL, STAGES

CLOSE = 1e-9  # between a number in a file and the same one computed again, on another machine perhaps
FITTED = 1e-4  # the same for what an iteration fits: strengths, length-controlled win rates
EARLIER = "by an earlier version"
MOST_FIELDS = 4  # that differ, named for one part

State = Literal["matches", "differs", "absent", "not recorded"]


class Check(NamedTuple):
    """One part of a run: whether it is as recorded or as computed again, absent here, and a note of a few words.

    `not recorded`: an earlier version finished it, which kept no hash of it.
    """

    part: str
    state: State
    note: str = ""


class Claim(NamedTuple):
    """Something a third party may want to do again: what it takes, and how exactly it comes out."""

    part: str
    needs: str
    result: str


@dataclass(frozen=True)
class _Run:
    """A run's folder with what several checks need of it."""

    folder: RunFolder
    manifest: dict[str, Any]
    config: RunConfig


def verify_run(folder: RunFolder) -> list[Check]:
    """Every check that applies to the run; a file that cannot be read is a part that differs.

    Raises: CaiError for a folder whose manifest cannot be read.
    """
    run = _Run(folder, folder.manifest(), run_config(folder))
    checks: list[Check] = []
    for part, check in _CHECKS.items():
        try:
            checks += check(run)
        except CaiError as error:
            checks.append(Check(part, "differs", str(error)))
        except KeyError as key:
            written = other_version(run.manifest) or ", by another version of cai"
            checks.append(Check(part, "differs", f"{MANIFEST_JSON}{written}: no {key}"))
    return checks


def reproducible(folder: RunFolder) -> list[Claim]:
    """What a third party with a copy of the folder can do again, and what not."""
    config = run_config(folder)
    named = config.judge.model if isinstance(config.judge.model, list) else [config.judge.model or config.model]
    served = any(name.startswith(SERVER_SCHEMES) for name in named)
    evaluated = any((path / REPORT).exists() for path in folder.evaluations())
    claims = [
        Claim("labels, metrics", "this folder", "exactly"),
        Claim("sampled principles, requests", "this folder", "exactly"),
        *([Claim("win rates", "this folder", "exactly, by the verdicts")] if evaluated else []),
        Claim("texts, verdicts", "and its cache", "exactly"),
        Claim("texts, verdicts, asked again", "and model, vLLM build", "nearly: rounding"),
    ]
    if evaluated:
        claims.append(Claim("probes, monitors", "and model, vLLM build", "nearly; here by hash"))
        claims.append(Claim("that a policy is better", "other judge, prompts", "no: one judge's view"))
    if served:
        claims.append(Claim("verdicts of the server", "its model", "no: known by name"))
    if config.train:
        claims.append(Claim("training", "and package versions", "nearly: rounding"))
    return claims


def _compared(part: str, recorded: Any, actual: Any, note: str = "") -> Check:
    return Check(part, "matches" if recorded == actual else "differs", note)


def _constitutions(run: _Run) -> Iterator[Check]:
    for key, path in (
        ("constitution", run.folder.constitution_yaml),
        ("eval_constitution", run.folder.eval_constitution_yaml),
    ):
        recorded, constitution = run.manifest[key], load_constitution(path)
        content = (constitution.name, constitution.fingerprint)
        yield _compared(path.name, (recorded.get("name"), recorded.get("fingerprint")), content)


def _templates(run: _Run) -> Iterator[Check]:
    constitutions = run.folder.constitution(), load_constitution(run.folder.eval_constitution_yaml)
    templates = Templates(run.folder.templates, names_for(constitutions, templates_needed(run.config)))
    yield _compared("templates/", run.manifest["templates"], templates.fingerprint)


def _prompts(run: _Run) -> Iterator[Check]:
    prompts = run.folder.prompts()
    yield _compared("prompts", run.manifest["prompts"], fingerprint([p.model_dump() for p in prompts]))
    held_out = {prompt.id for prompt in split(prompts, run.config.prompts.holdout)[1]}
    yield _compared("held-out prompts", set(run.manifest["held_out"]), held_out, f"{len(held_out):,} drawn again")


def _base_model(run: _Run) -> Iterator[Check]:
    folder, name = _start(run)
    if folder is None:
        yield Check("base model", "absent", name)
    else:
        yield _compared("base model", run.manifest["model"], folder_fingerprint(folder, read_again=True), name)


def _start(run: _Run) -> tuple[Path | None, str]:
    """The folder of the model that the run starts from, if it is here, and its name: in later iterations a policy."""
    number = run.folder.path.name.removeprefix(ITERATION)
    if number.isdecimal() and int(number) > 1:
        before = RunFolder(run.folder.path.with_name(f"{ITERATION}{int(number) - 1}"))
        policies = [stage / MODEL for stage in before.training(1).stages() if not stage.name.endswith("-reward")]
        return policies[-1] if policies and policies[-1].is_dir() else None, f"policy of {before.path.name}"
    name = run.config.model
    if Path(name).is_dir():
        return Path(name), Path(name).name
    try:
        return resolve_model(name) if "/" not in name else None, name  # a Hub id would be downloaded
    except CaiError:
        return None, Path(name).name


def _row_files(run: _Run) -> Iterator[Check]:
    summary = run.folder.summary()
    if summary is None:
        return
    recorded = summary.get("files", {})
    for name, content in recorded.items():
        path = run.folder.path / name
        yield _compared(name, content, file_fingerprint(path)) if path.exists() else Check(name, "differs", "missing")
    for path in run.folder.hashed_files():
        if path.exists() and path.name not in recorded:
            yield Check(path.name, "not recorded", EARLIER)


def _result_files(run: _Run) -> Iterator[Check]:
    """The files of each training stage, evaluation and judge gate, by the manifest of its folder."""
    for folder in (run.folder.judge, *_stage_folders(run), *run.folder.evaluations()):
        if not (folder / MANIFEST_JSON).exists():
            continue
        part, recorded = f"{folder.relative_to(run.folder.path)}/", read_json(folder / MANIFEST_JSON).get(FILES)
        if recorded is None:
            finished = run.folder.summary() is not None
            yield Check(part, "not recorded" if finished else "absent", EARLIER if finished else "not finished")
            continue
        actual = result_files(folder)
        wrong = sorted(name for name, content in recorded.items() if name != MODEL and actual.get(name) != content)
        note = ", ".join(wrong) or counted(len(recorded.keys() - {MODEL}), "files")
        yield Check(part, "differs" if wrong else "matches", note)


def _stage_folders(run: _Run) -> list[Path]:
    return [stage for training in run.folder.trainings() for stage in training.stages()]


def _win_rates(run: _Run) -> Iterator[Check]:
    """The win rates of evaluation.json, by tag too, from the stored verdicts and answers."""
    for folder in run.folder.evaluations():
        if not (folder / REPORT).exists() or FILES not in read_json(folder / MANIFEST_JSON):
            continue
        report = read_report(folder / REPORT)
        texts = {(a.policy, a.prompt_id): a.text for a in each_row(folder / ANSWERS, Answer) if a.prompts == HELD_OUT}
        judged, tags = read_rows(folder / COMPARISONS, Judgement), tags_to_report(report.tags, report.prompts)
        try:
            computed = compare_policies(judged, texts, tags, [policy.name for policy in report.policies[1:]])
        except KeyError as key:
            raise CaiError(f"{folder / ANSWERS}: lacks the answer {key}") from None
        same = _close([row.model_dump() for row in report.comparisons], [row.model_dump() for row in computed], FITTED)
        note = f"{counted(len(computed), 'rows')} computed again" if same else "not as computed again"
        yield Check(f"{folder.relative_to(run.folder.path)}: win rates", "matches" if same else "differs", note)


def _own_pairs(run: _Run) -> Iterator[Preference]:
    """The pairs that the run labelled: those of its `preferences:` follow from the settings of others."""
    return (row for row in run.folder.preferences() if not row.from_file)


def _principles_of_rows(run: _Run) -> Iterator[Check]:
    known = {p.id: p.fingerprint for p in run.folder.constitution().principles}
    used = {(row.principle_id, row.principle_hash) for row in run.folder.revisions()}
    used |= {(v.principle_id, v.principle_hash) for row in _own_pairs(run) for v in row.all_verdicts}
    if used:
        unknown = sorted(id for id, content in used if known.get(id) != content)
        note = f"not the constitution's: {', '.join(unknown)}" if unknown else f"{len(used)} used"
        yield Check("principles of rows", "differs" if unknown else "matches", note)


def _draws(run: _Run) -> Iterator[Check]:
    """The principles of rounds and of judged pairs, drawn again among those that apply to the prompt."""
    constitution, seed, answers = run.folder.constitution(), run.config.seed, run.folder.answers()
    drawn, wrong = 0, 0

    @lru_cache(maxsize=4096)
    def judges(prompt_id: str, tags: tuple[str, ...]) -> frozenset[str]:
        found = applying(constitution, tags, answers.get(prompt_id, {}))
        return frozenset(p.id for p in principles_met(found, seed, prompt_id, run.config.judge))

    try:
        for row in run.folder.revisions():
            found = applying(constitution, row.tags, answers.get(row.prompt_id, {}))
            first = [p.id for p in assign(found, seed, row.prompt_id, f"round {row.round}")[:1]]
            drawn, wrong = drawn + 1, wrong + (first != [row.principle_id])
        for pair in _own_pairs(run):
            if pair.source == "judge" and pair.verdicts:
                ids = {verdict.principle_id for verdict in pair.all_verdicts}
                drawn, wrong = drawn + 1, wrong + (ids != judges(pair.prompt_id, tuple(pair.tags)))
    except KeyError as question:
        yield Check("sampled principles", "differs", f"{run.folder.applicability_jsonl.name} lacks {question}")
        return
    if drawn:
        note = f"{wrong:,} of {drawn:,} differ" if wrong else f"{drawn:,} drawn again"
        yield Check("sampled principles", "differs" if wrong else "matches", note)


def _judge_settings(run: _Run) -> JudgeConfig:
    """Those that made the labels: with the temperature that the run's judge gate fitted, if it was applied."""
    report = run.folder.judge / JUDGE_JSON
    if run.config.judge_gate is None or not run.config.judge_gate.calibrate or not report.exists():
        return run.config.judge
    fitted = read_judge_report(report).calibration
    if fitted is None or not fitted.applied:
        return run.config.judge
    return run.config.judge.model_copy(update={"temperature": fitted.temperature})


def _labels(run: _Run) -> Iterator[Check]:
    settings, by_judge = _judge_settings(run), {"judge"}
    if run.config.revise.label == "judge":
        by_judge.add("revision")
    rows = (row for row in _own_pairs(run) if row.source in by_judge and row.verdicts)
    pairs = [(row.p, label(row.verdicts, settings)) for row in rows]
    if pairs:
        yield _recomputed("labels (preferences.jsonl)", pairs)


def _rankings(run: _Run) -> Iterator[Check]:
    if not run.folder.rankings_jsonl.exists():
        return
    by_prompt: defaultdict[str, list[Preference]] = defaultdict(list)
    for row in _own_pairs(run):
        if row.source == "judge":
            by_prompt[row.prompt_id].append(row)
    pairs: list[tuple[float, float]] = []
    for ranking in read_rows(run.folder.rankings_jsonl, Ranking):
        number = {response: i for i, response in enumerate(ranking.responses)}
        labels = {
            (number[row.chosen], number[row.rejected]): row.p
            for row in by_prompt[ranking.prompt_id]
            if row.chosen in number and row.rejected in number
        }
        strengths = bradley_terry(labels) if labels else {}
        pairs += [(recorded, strengths.get(i, math.nan)) for i, recorded in enumerate(ranking.strengths)]
    if pairs:
        yield _recomputed("strengths (rankings.jsonl)", pairs, FITTED)


def _comparisons(run: _Run) -> Iterator[Check]:
    for path in (folder / COMPARISONS for folder in run.folder.evaluations()):
        if path.exists():
            labels = [(row.p, _label_of_tie(row.verdicts)) for row in each_row(path, Judgement)]
            yield _recomputed(f"labels ({path.relative_to(run.folder.path)})", labels)


def _label_of_tie(verdicts: list[Verdict]) -> float:
    return soft_label(verdicts) if verdicts else 0.5


def _recomputed(part: str, pairs: list[tuple[float, float]], tolerance: float = CLOSE) -> Check:
    wrong = sum(not abs(recorded - computed) <= tolerance for recorded, computed in pairs)
    note = f"{wrong:,} of {len(pairs):,} differ" if wrong else f"{len(pairs):,} computed again"
    return Check(part, "differs" if wrong else "matches", note)


def _metrics(run: _Run) -> Iterator[Check]:
    recorded = run.folder.summary()
    if recorded is None:
        yield Check("summary.json", "absent", "the run is not finished")
        return
    computed = json.loads(json.dumps(summarise(run.folder)))
    wrong = [name for key in computed for name in _differing(recorded.get(key), computed[key], key)]
    more = f" and {len(wrong) - MOST_FIELDS} more" if len(wrong) > MOST_FIELDS else ""
    note = f"not as computed again: {', '.join(wrong[:MOST_FIELDS])}{more}" if wrong else "computed again"
    yield Check("summary.json", "differs" if wrong else "matches", note)


def _differing(a: Any, b: Any, at: str) -> list[str]:
    """The dotted names of the values in which two JSON values differ by more than rounding."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if _close(a, b) else [at]
    lacking = [f"{at}.{key}" for key in a.keys() ^ b.keys()]
    shared = [key for key in b if key in a]
    return sorted(lacking) + [name for key in shared for name in _differing(a[key], b[key], f"{at}.{key}")]


def _close(a: Any, b: Any, tolerance: float = CLOSE) -> bool:
    """Whether two JSON values are equal up to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_close(*pair, tolerance) for pair in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    return bool(a == b)


def _stages(run: _Run) -> Iterator[Check]:
    """The stages of every training."""
    for training in run.folder.trainings():
        yield from _stages_of(run, training)


def _stages_of(run: _Run, training: Training) -> Iterator[Check]:
    """Each stage's data by content, and its models where they are in the folder."""
    manifests = [path for stage in training.stages() if (path := stage / MANIFEST_JSON).exists()]
    policy, reward = run.manifest["model"], None
    labels_so_far = run.folder.train / "preferences.jsonl"  # of all iterations up to this one
    for path in manifests:
        manifest, stage = read_json(path), path.parent
        name = str(stage.relative_to(run.folder.path))
        data = {"sft": run.folder.revisions_jsonl}.get(manifest["settings"]["stage"], run.folder.preferences_jsonl)
        prompts, kind = run.folder.train / "prompts.jsonl", STAGES.get(manifest["settings"]["stage"])
        if prompts.exists() and kind is not None and kind.learns_from == "prompts":
            data = prompts
        if name.endswith("-reward") and labels_so_far.exists():
            data = labels_so_far
        if training.number > 1:
            seed = training.seed(run.config.seed)
            yield _compared(f"{name}: seed", manifest.get("seed"), seed, f"{seed}, from the run's")
        yield _compared(f"{name}: data", manifest.get("data"), file_fingerprint(data), data.name)
        if policy is not None:
            yield _compared(f"{name}: model", manifest.get("model"), policy)
        if reward is not None and manifest.get("reward") and stage_settings(stage).get("reward") is None:
            yield _compared(f"{name}: reward", manifest["reward"], reward)
        model = stage / MODEL
        content = folder_fingerprint(model, read_again=True) if model.is_dir() else None
        if content is None:
            yield Check(f"{name}/{MODEL}", "absent")
        elif MODEL in (recorded := manifest.get(FILES, {})):
            yield _compared(f"{name}/{MODEL}", recorded[MODEL], content)
        if stage.name.endswith("-reward"):
            reward = content
        else:
            policy = content
    path = training.eval / MANIFEST_JSON
    if manifests and path.exists() and policy is not None:
        contents = {found["model"] for found in read_json(path).get("policies", [])}
        yield Check(
            f"{training.eval.relative_to(run.folder.path)}: policy",
            "matches" if policy in contents else "differs",
            "the last stage's",
        )


_CHECKS: dict[str, Callable[[_Run], Iterator[Check]]] = {
    "constitutions": _constitutions,
    "templates/": _templates,
    "prompts": _prompts,
    "base model": _base_model,
    "files": _row_files,
    "files of results": _result_files,
    "principles of rows": _principles_of_rows,
    "sampled principles": _draws,
    "labels": _labels,
    "strengths": _rankings,
    "comparisons": _comparisons,
    "win rates": _win_rates,
    "summary.json": _metrics,
    "train/": _stages,
}
