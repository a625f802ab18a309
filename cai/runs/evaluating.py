"""What `cai eval` is asked for, found and checked before the first call is made."""

import difflib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cai import __version__
from cai.config import locate, yaml_files
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint
from cai.config.locate import find_file
from cai.config.yaml_files import YamlSource, load_yaml
from cai.constitution.principles import Constitution, load_constitution
from cai.constitution.templates import Templates
from cai.data.prompts import read_prompts
from cai.data.records import Prompt, Skipped
from cai.evaluation.monitors import Phrases
from cai.evaluation.policy import EvaluateConfig
from cai.evaluation.probes import OVER_REFUSAL, RED_TEAM, SYCOPHANCY, OverRefusal, Questions, RedTeam, Sycophancy
from cai.inference.endpoints import resolve_judges
from cai.inference.engine import EngineConfig
from cai.inference.models import Model, folder_fingerprint, model_fingerprint
from cai.runs.find import Policy, check_base, find_policy, policy_of_model

PROBES = (OVER_REFUSAL, SYCOPHANCY, RED_TEAM)
OVERALL, HELPFUL, SAFE = "overall", "helpful", "safe"
COMMAND = Path("cai eval")  # where options come from, for messages


class Probes(NamedTuple):
    """The files in `probes/`; a set that is not asked for is None."""

    phrases: Phrases
    questions: Questions
    over_refusal: OverRefusal | None
    sycophancy: Sycophancy | None
    red_team: RedTeam | None


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation, resolved."""

    contenders: list[Policy]  # the first is the reference
    prompts: list[Prompt]
    prompts_skipped: list[Skipped]
    axes: dict[str, Constitution]
    templates: Templates
    judge: Model
    settings: EvaluateConfig
    probes: Probes
    limit: int | None  # of the items of each set of probes
    seed: int
    engine: EngineConfig
    notes: list[str]

    @property
    def reference(self) -> Policy:
        """What the others are compared with."""
        return self.contenders[0]


class Options(NamedTuple):
    """The options of `cai eval`; None takes what the run was made with."""

    policy: str
    against: Sequence[str] = ()
    reference: str | None = None
    prompts: Path | None = None
    constitution: str | None = None
    judge: str | None = None
    probes: str = "all"
    limit: int | None = None
    settings: Sequence[str] = ()


def plan_evaluation(options: Options, runs: Path) -> EvaluationPlan:
    """Read and check everything; raises CaiError naming the option to mend."""
    first = find_policy(options.policy, runs)
    settings = _settings(options, first)
    probes = read_probes(options.probes)
    others = [find_policy(name, runs) for name in options.against]
    prompts, skipped = _prompts(options, first)
    eval_constitution = _eval_constitution(options, settings, first)
    templates = Templates(first.run.templates if first.run is not None else _found("prompts/default"))
    reference = _reference(options, first)
    contenders = [reference, first, *others]
    _refuse_twins(contenders)
    named = [options.judge] if options.judge is not None else _judges(first)
    return EvaluationPlan(
        contenders=contenders,
        prompts=prompts,
        prompts_skipped=skipped,
        axes={OVERALL: eval_constitution, **shipped_axes()},
        templates=templates,
        judge=resolve_judges(named)[0] if named else reference.folder,
        settings=settings,
        probes=probes,
        limit=options.limit,
        seed=first.config.seed if first.config is not None else 0,
        engine=first.config.engine if first.config is not None else EngineConfig(),
        notes=_trained_on(contenders, prompts),
    )


def shipped_axes() -> dict[str, Constitution]:
    """The two axes of Bai et al. 2022, fig. 2, each a constitution of its own."""
    return {name: load_constitution(_found(f"constitutions/{name}.yaml")) for name in (HELPFUL, SAFE)}


def read_probes(wanted: str) -> Probes:
    """The probes by name: `all`, `none`, or names with commas between them; found from here, or as shipped."""
    names = {"all": list(PROBES), "none": []}.get(wanted, [name.strip() for name in wanted.split(",")])
    for name in names:
        if name not in PROBES:
            near = difflib.get_close_matches(name, PROBES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected all, none, or some of {', '.join(PROBES)}"
            raise CaiError(f"--probes {wanted}: unknown set '{name}'; {hint}")

    def load(name: str, model: type[yaml_files.AnySection]) -> yaml_files.AnySection:
        return load_yaml(_found(f"probes/{name}.yaml"), model)

    return Probes(
        phrases=load("phrases", Phrases),
        questions=load("questions", Questions),
        over_refusal=load(OVER_REFUSAL, OverRefusal) if OVER_REFUSAL in names else None,
        sycophancy=load(SYCOPHANCY, Sycophancy) if SYCOPHANCY in names else None,
        red_team=load(RED_TEAM, RedTeam) if RED_TEAM in names else None,
    )


def _found(name: str) -> Path:
    return find_file("files", name, COMMAND)


def _settings(options: Options, first: Policy) -> EvaluateConfig:
    """Those of the run, with the `--set` options laid over them."""
    given = [setting.removeprefix("evaluate.") for setting in options.settings]
    base = first.config.evaluate if first.config is not None else EvaluateConfig()
    source = YamlSource(COMMAND, base.model_dump(exclude={"probes"}), {})
    return yaml_files.validate(yaml_files.apply_overrides(source, given), EvaluateConfig)


def _prompts(options: Options, first: Policy) -> tuple[list[Prompt], list[Skipped]]:
    if options.prompts is not None:
        return read_prompts(locate.find_data("--prompts", str(options.prompts), COMMAND), options.limit)
    if first.run is None:
        raise CaiError(f"--prompts: '{first.name}' is no run, and has no prompts held out; name a file of prompts")
    held_out = set(first.run.manifest()["held_out"])
    found = [prompt for prompt in first.run.prompts() if prompt.id in held_out]
    if not found:
        raise CaiError(f"--prompts: {first.run.path} holds out no prompts (prompts.holdout: 0); name a file of prompts")
    return found[: options.limit], []


def _eval_constitution(options: Options, settings: EvaluateConfig, first: Policy) -> Constitution:
    if options.constitution is not None:
        return load_constitution(find_file("--constitution", options.constitution, COMMAND))
    same = first.config is not None and settings.constitution == first.config.evaluate.constitution
    if first.run is not None and same:
        return load_constitution(first.run.eval_constitution_yaml)
    return load_constitution(find_file("--set constitution", settings.constitution, COMMAND))


def _reference(options: Options, first: Policy) -> Policy:
    if options.reference is not None:
        return policy_of_model(options.reference)
    if first.base is None:
        raise CaiError(f"--reference: what '{first.name}' was trained from is not known; name a model to compare with")
    found = policy_of_model(first.base)
    check_base(first, found.folder)
    return found


def _judges(first: Policy) -> list[str]:
    """The judges of its run; the first judges here, as in the run's own evaluation."""
    named = first.config.judge.model if first.config is not None else None
    return [named] if isinstance(named, str) else list(named or [])


def _refuse_twins(contenders: Sequence[Policy]) -> None:
    names: dict[str, Path] = {}
    contents: dict[str, str] = {}
    for contender in contenders:
        content = folder_fingerprint(contender.folder)
        if content in contents:
            raise CaiError(f"'{contents[content]}' and '{contender.name}' are the same model: nothing to compare")
        if contender.name in names:
            where = f"{names[contender.name]} and {contender.folder}"
            raise CaiError(f"--against: two policies would be called '{contender.name}': {where}")
        names[contender.name] = contender.folder
        contents[content] = contender.name


def _trained_on(contenders: Sequence[Policy], prompts: Sequence[Prompt]) -> list[str]:
    """A note for each policy that was trained on some of the prompts."""
    asked = [fingerprint(prompt.messages) for prompt in prompts]
    counts = {c.name: sum(name in c.learned for name in asked) for c in contenders}
    return [f"{name} was trained on {n} of these {len(asked)} prompts" for name, n in counts.items() if n]


def made_from(evaluating: EvaluationPlan) -> dict[str, Any]:
    """What decides the rows of an evaluation, by content."""
    e = evaluating
    return {
        "command": "cai eval",
        "policies": [{"name": c.name, "model": folder_fingerprint(c.folder)} for c in e.contenders],
        "prompts": fingerprint([prompt.model_dump() for prompt in e.prompts]),
        "axes": {
            name: {"name": axis.name, "principles": {p.id: p.fingerprint for p in axis.principles}}
            for name, axis in e.axes.items()
        },
        "templates": e.templates.fingerprint,
        "judge": {"where": str(e.judge), "model": model_fingerprint(e.judge)},
        "settings": {"max_tokens": e.settings.max_tokens, "temperature": e.settings.temperature},
        "probes": {name: part and fingerprint(part.model_dump()) for name, part in e.probes._asdict().items()},
        "limit": e.limit,
        "seed": e.seed,
        "versions": {"python": platform.python_version(), "cai": __version__},
    }
