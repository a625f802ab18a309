"""Everything a run will need, read and checked before the first call is made or the first file written."""

import json
import os
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cai.config import locate
from cai.config.errors import CaiError
from cai.config.hashing import fingerprint_of_all, uniform
from cai.config.locate import find_constitution_file, find_file
from cai.config.yaml_files import read_text
from cai.constitution.principles import Constitution, load_constitution, manifest_of
from cai.constitution.templates import Templates, names_for
from cai.data.jsonl import file_fingerprint, write_rows, write_text
from cai.data.manifest import Claim, check, replacement, take, versions
from cai.data.preferences import read_preferences
from cai.data.prompts import read_completions, store_prompts
from cai.data.records import Preference, Prompt, Skipped
from cai.evaluation.evaluation_plan import evaluation_axes
from cai.evaluation.probes import read_probes
from cai.feedback.label import LabelJob, count_work
from cai.inference import models
from cai.inference.engine import EngineConfig
from cai.inference.models import Model, model_fingerprint
from cai.inference.scheduler import deciding_settings
from cai.inference.servers import addresses_of, require_servers
from cai.runs.folder import CACHE_FILES, ITERATION, RUN, SEEDS, RunFolder, Training
from cai.runs.plan_checks import changed_inputs, check_pairs, check_tags, check_value_functions, naming, unmet_tags
from cai.runs.roles import other_models, policy_models, with_template_texts
from cai.runs.run_file import RunConfig, effective_text, load_run_file, templates_needed
from cai.stats.formatting import counted
from cai.training.checks import check_launcher, check_stage
from cai.training.reward_folder import find_run_reward
from cai.training.setting_parts import JUDGE, LAST
from cai.training.settings import Online, TrainStage
from cai.training.stage import MODEL, OUTPUT, worker_python

LONGEST_NAME = 255  # bytes of a folder's name on Linux's file systems


@dataclass(frozen=True)
class Plan:
    """A run file resolved: its settings, the files they name, and the prompts split for training and evaluation."""

    run_file: Path
    overrides: list[str]  # of --set
    config: RunConfig
    constitution_file: Path
    constitution: Constitution
    eval_constitution_file: Path
    eval_constitution: Constitution
    templates: Templates
    training: Sequence[Prompt]
    held_out: Sequence[Prompt]
    prompts_skipped: list[Skipped]
    model: Model  # which is trained: a folder; without training it may be on servers alone
    generator: Model  # which answers the prompts: the same, or the servers that hold it
    reviser: Model  # which criticises and revises
    judge_models: list[Model]
    eval_judge: Model | None
    own_settings: dict[Model, EngineConfig]  # of the models whose engines differ from others of the run
    gate: LabelJob | None  # of the judge_gate's pairs
    before: Model  # what the evaluation compares a trained policy with
    preferences: list[Preference]
    preferences_skipped: list[Skipped]
    train: Sequence[TrainStage]  # with the files they name found
    runs: Path
    folder: RunFolder
    earlier: tuple[RunFolder, ...] = ()  # of earlier iterations, whose labels the reward model learns too
    anchor: Path | None = None  # the policy that the KL is taken from, if not the one that training starts from
    shard: str = ""  # such as 3/16, of a plan with a share of the prompts alone


def make_plan(run_file: Path, overrides: list[str], name: str | None, runs: Path) -> Plan:
    """Read and check everything a run needs. Raises: CaiError naming file, line and field."""
    named = [] if name is None else [f"name={json.dumps(name)}"]  # quoted: a name like 2024 is a text too
    config = with_template_texts(load_run_file(run_file, [*overrides, *named]), run_file)
    constitution_file = find_constitution_file("constitution", config.constitution, run_file)
    eval_constitution_file = find_constitution_file("evaluate.constitution", config.evaluate.constitution, run_file)
    prompts_file = locate.find_data("prompts.source", config.prompts.source, run_file)
    prompts, prompts_skipped = store_prompts(prompts_file, config.prompts.limit, config.prompts.column)
    training, held_out = map(prompts.pick, _split_places(prompts, config.prompts.holdout))
    if not training:
        raise CaiError(f"{run_file}: prompts.holdout: all of the {len(prompts)} prompts are held out; leave some")
    principles, eval_constitution = load_constitution(constitution_file), load_constitution(eval_constitution_file)
    templates = Templates(
        find_file("templates", config.templates, run_file),
        names_for([principles, eval_constitution], templates_needed(config)),
    )
    config.judge.check_templates(templates)
    check_tags(principles, training, run_file)
    preferences, preferences_skipped = _preferences(config, run_file, held_out)
    check_pairs(config, run_file, preferences)
    evaluation_axes(config.evaluate)  # so that an error in them shows now, and in probes
    if config.evaluate.probes:
        read_probes("all")
    gate = _gate(config, run_file, principles, templates)
    train = [_with_files_found(settings, number, run_file) for number, settings in enumerate(config.train)]
    check_value_functions(train, run_file)
    _check_launcher(config, run_file)
    try:
        model, generator = policy_models(config)  # last: a Hub id is downloaded here
    except CaiError as error:
        raise CaiError(f"{run_file}: {error}") from error
    for number, settings in enumerate(train):
        check_stage(settings, model if isinstance(model, Path) else None, f"{run_file}: train[{number}]")
    roles = other_models(config, model, generator)
    return Plan(
        run_file=run_file,
        overrides=overrides,
        config=config,
        constitution_file=constitution_file,
        constitution=principles,
        eval_constitution_file=eval_constitution_file,
        eval_constitution=eval_constitution,
        templates=templates,
        training=training,
        held_out=held_out,
        prompts_skipped=prompts_skipped,
        model=model,
        generator=generator,
        **roles._asdict(),
        gate=replace(gate, judges=roles.judge_models, own_settings=roles.own_settings) if gate else None,
        before=model,
        preferences=preferences,
        preferences_skipped=preferences_skipped,
        train=train,
        runs=runs,
        folder=RunFolder(runs / folder_name(config.name or run_file.stem, f"{run_file}: name", "--name NEW")),
    )


def _check_launcher(config: RunConfig, run_file: Path) -> None:
    """Raises: CaiError for a launcher that is not on this machine, if a stage needs it, and as `check_launcher`."""
    try:
        if config.train:
            worker_python(config.launcher)
        for number, settings in enumerate(config.train):
            check_launcher(settings, config.launcher, f"train[{number}]")
    except CaiError as error:
        raise CaiError(f"{run_file}: {error}") from None


def folder_name(name: str, place: str, remedy: str) -> str:
    """The name of a run's or a sweep's folder, checked.

    Raises: CaiError, which begins with `place`, for one that the cache has, or no file system takes.
    """
    if name.startswith(CACHE_FILES):
        raise CaiError(f"{place}: '{name}' is a name of the cache's files; choose another ({remedy})")
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise CaiError(f"{place}: {size} bytes; expected at most {LONGEST_NAME} ({remedy})")
    return name


def iteration(plan: Plan, number: int, policy: Model) -> Plan:
    """The plan of one iteration, from 1, which starts from `policy`; in a folder of its own if there are several.

    Later ones make no revisions and skip SFT: they sample from the policy, judge, and train on the new labels. The
    judge and what the policy is compared with stay the same. No server has the policy: it answers in this process.
    """
    if plan.config.iterations == 1:
        return plan
    folder = RunFolder(plan.folder.path / f"{ITERATION}{number}")
    if number == 1:
        return replace(plan, folder=folder)
    config = plan.config.model_copy(update={"revise": plan.config.revise.model_copy(update={"rounds": 0})})
    train = [settings for settings in plan.train if settings.stage != "sft"]
    before = tuple(RunFolder(plan.folder.path / f"{ITERATION}{k}") for k in range(1, number))
    return replace(
        plan,
        folder=folder,
        config=config,
        train=train,
        model=policy,
        generator=policy,
        earlier=before if plan.config.iterate.labels == "all" else (),
        anchor=_first_policy(plan, before[0]) if plan.config.iterate.kl_anchor == "first" else None,
    )


def _first_policy(plan: Plan, first: RunFolder) -> Path:
    """The policy with which the first iteration began to learn from labels or rewards: the model, or what SFT made."""
    assert isinstance(plan.before, Path), "a policy was trained from it"
    policy = plan.before
    for position, settings in enumerate(plan.train, start=1):
        if settings.stage not in ("sft", "reward"):
            break
        if settings.stage == "sft":
            policy = first.train / f"{position}-sft" / MODEL
    return policy


def _preferences(
    config: RunConfig, run_file: Path, held_out: Sequence[Prompt]
) -> tuple[list[Preference], list[Skipped]]:
    """The preferences of the run's file, without those whose prompts are held out."""
    if config.preferences is None:
        return [], []
    kept, skipped = read_preferences(locate.find_data("preferences.source", config.preferences.source, run_file))
    of_evaluation = {json.dumps(prompt.messages) for prompt in held_out}
    used = []
    for pair in kept:
        if json.dumps(pair.messages) in of_evaluation:
            reason = "its prompt is held out for evaluation"
            skipped.append(Skipped(prompt_id=pair.prompt_id, stage="preferences", reason=reason))
        else:
            used.append(pair)
    return used, skipped


def _gate(config: RunConfig, run_file: Path, principles: Constitution, templates: Templates) -> LabelJob | None:
    """The labelled pairs of `judge_gate`, read once so that an error in them shows now; without judges yet."""
    gate = config.judge_gate
    if gate is None:
        return None
    data = locate.find_data("judge_gate.data", gate.data, run_file)
    shared = config.engine.shared
    engine = shared if config.judge.engine is None else config.judge.engine.over(shared)
    judge = config.judge.model_copy(update={"engine": engine})
    judging = LabelJob(data, True, gate.limit, [], principles, templates, judge, config.seed)
    try:
        count_work(judging)
    except CaiError as error:
        raise CaiError(f"{run_file}: judge_gate.data: {error}") from error
    return judging


def _with_files_found(settings: TrainStage, number: int, run_file: Path) -> TrainStage:
    files: dict[str, Any] = {}
    for name, file in settings.files.items():
        path = locate.find_data(f"train[{number}].{name}", file, run_file)
        files[name] = str(path)
        try:
            read_completions(path)
        except CaiError as error:
            raise CaiError(f"{run_file}: train[{number}].{name}: {error}") from error
    if isinstance(settings, Online):
        found = {
            key: str(find_run_reward(f"train[{number}].{key}", name, run_file))
            for key, name in _named_models(settings).items()
        }
        if isinstance(settings.reward, list):
            parts = [(f"reward[{place}].model", part) for place, part in enumerate(settings.reward)]
            files["reward"] = [part.model_copy(update={"model": found.get(key, part.model)}) for key, part in parts]
        else:
            files |= found
    return settings.model_copy(update=files)


def _named_models(settings: Online) -> dict[str, str]:
    """The reward models that a stage names by folder or Hub id, each by where it stands in the stage."""
    reward = settings.reward
    if isinstance(reward, list):
        named = {f"reward[{place}].model": part.model for place, part in enumerate(reward)}
    else:
        named = {"reward": reward}
    return {key: name for key, name in named.items() if name is not None and name not in (JUDGE, LAST)}


def split(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out), both in file order; the round(share · n) prompts with the lowest hashes are held out.

    The hash covers the prompt's id alone, so that runs with other seeds and principles hold out the same prompts.
    """
    kept, held = _split_places(prompts, share)
    return [prompts[place] for place in kept], [prompts[place] for place in held]


def _split_places(prompts: Sequence[Prompt], share: float) -> tuple[list[int], list[int]]:
    """`split`, by places."""
    hashes = array("d", (uniform("held out", prompt.id) for prompt in prompts))
    held = set(sorted(range(len(prompts)), key=hashes.__getitem__)[: round(share * len(prompts))])
    return [place for place in range(len(prompts)) if place not in held], sorted(held)


def start_warnings(plan: Plan) -> list[str]:
    """What a run says before its first call.

    Of files that changed since, a hold-out of none, tags under `applies_to` that no prompt has, unusual learning rates.
    """
    missing = unmet_tags(plan.constitution, plan.training)
    return [
        *(f"warning: {change}" for change in _changed_inputs(plan)),
        *filter(None, [holdout_warning(plan)]),
        *(
            f"warning: principle '{i}': applies_to.tags: no training prompt has {', '.join(map(repr, tags))}"
            for i, tags in missing.items()
        ),
        *(
            f"warning: train[{number}] ({settings.stage}): {warning}"
            for number, settings in enumerate(plan.train)
            if (warning := settings.rate_warning())
        ),
    ]


def holdout_warning(plan: Plan) -> str | None:
    """What a run with training and a share to hold out lacks when that share of its prompts rounds to none."""
    share, prompts = plan.config.prompts.holdout, len(plan.training)
    if plan.held_out or not share or not plan.train:
        return None
    return (
        f"warning: prompts.holdout {share:g} of {counted(prompts, 'prompts')} is none: the policy will not be evaluated"
        "; use more prompts or a larger share"
    )


def manifest(plan: Plan) -> dict[str, Any]:
    """The manifest of a run (cai/data/manifest.py)."""
    config = plan.config
    decides_nothing: Any = {
        "name": True,
        "launcher": True,
        "iterations": True,
        "iterate": True,  # as each stage's data and reference have it
        "seeds": True,  # a folder has what each adds, and a training a manifest of its own
        "train": {"__all__": {"report_to", "fsdp"}},
        "evaluate": {"axes", "probes"},  # the evaluation has a manifest of its own
        "judge": {"key_env"},
    }
    settings = config.model_dump(mode="json", exclude=decides_nothing)
    for part, section in (
        (settings, config),
        (settings["revise"], config.revise),
        (settings["judge"], config.judge),
        (settings["evaluate"], config.evaluate),
    ):
        part["engine"] = deciding_settings(section.engine) if section.engine is not None else None
    return {
        "command": RUN,
        "config": settings,
        "constitution": _content_of(plan.constitution),
        "eval_constitution": _content_of(plan.eval_constitution),
        "templates": plan.templates.fingerprint,
        "prompts": fingerprint_of_all(p.model_dump() for p in chain(plan.training, plan.held_out)),
        "held_out": [p.id for p in plan.held_out],
        "judge_gate": _content(plan.gate.data) if plan.gate else None,
        "preferences": fingerprint_of_all(p.model_dump() for p in plan.preferences) if plan.preferences else None,
        "train_files": {
            f"train[{number}].{key}": _content(Path(value))
            for number, settings in enumerate(plan.train)
            for key, value in _files_of(settings).items()
        },
        "model": model_fingerprint(plan.model),
        **({"generator": model_fingerprint(plan.generator)} if plan.generator != plan.model else {}),
        "reviser": model_fingerprint(plan.reviser) if plan.reviser != plan.generator else None,
        "judge_models": [model_fingerprint(judge) for judge in plan.judge_models],
        "where": _servers(config),
        "versions": versions(),
        **({"shard": plan.shard} if plan.shard else {}),
    }


def _files_of(settings: TrainStage) -> dict[str, str]:
    """The files and models that a stage names, each by where it stands in the stage."""
    return settings.files | (_named_models(settings) if isinstance(settings, Online) else {})


def _servers(config: RunConfig) -> dict[str, Any]:
    """The servers of each section's model that has any, without the names of keys; see `run_config`."""
    engines = {
        "model": config.engine,
        "revise": config.revise.engine,
        "judge": config.judge.engine,
        "evaluate": config.evaluate.engine,
    }
    return {
        section: {"endpoints": addresses_of(engine), "served_model_name": engine.served_model_name}
        for section, engine in engines.items()
        if engine is not None and engine.endpoints
    }


def _content(path: Path) -> str:
    return models.folder_fingerprint(path) if path.is_dir() else file_fingerprint(path)


def _content_of(c: Constitution) -> dict[str, Any]:
    return {"name": c.name, "fingerprint": c.fingerprint, "principles": manifest_of(c)}


def claim(plan: Plan) -> Claim:
    """The run's folder with its manifest; a summary finishes it, and the output of its stages is worth keeping."""
    return Claim(
        folder=plan.folder.path,
        manifest=manifest(plan),
        finished=plan.folder.summary_json.name,
        inputs=(plan.run_file, plan.constitution_file, plan.eval_constitution_file, plan.templates.folder),
        elsewhere="--name NEW",
        trained=[f"{home}train/*/{pattern}" for home in ("", f"{SEEDS}/*/") for pattern in OUTPUT],
    )


def start_folder(plan: Plan, replace: bool) -> str:
    """Write the run's inputs and manifest into its folder, which this process holds (`exclusive`).

    Returns: as `take` of cai/data/manifest.py, what it replaced.
    Raises: CaiError as `take` of cai/data/manifest.py; and without `replace` for a folder with more than `seeds`
    trainings, of which the others are removed with it.
    """
    folder, own = plan.folder, claim(plan)
    if own.changes():
        require_servers([plan.model, plan.generator, plan.reviser, *plan.judge_models, plan.eval_judge])
    with naming(_changed_inputs(plan)):
        replaced = take(own, replace)
    if replace:
        folder.costs_jsonl.unlink(missing_ok=True)
    for training in _trainings_too_many(plan, replace):
        shutil.rmtree(training.home)
    name = plan.config.name or plan.run_file.stem
    write_text(folder.run_yaml, effective_text(plan.run_file, plan.overrides, name))
    write_text(folder.constitution_yaml, read_text(plan.constitution_file))
    write_text(folder.eval_constitution_yaml, read_text(plan.eval_constitution_file))
    folder.templates.mkdir(exist_ok=True)
    for name, text in plan.templates.files().items():
        write_text(folder.templates / name, text)
    write_rows(folder.prompts_jsonl, chain(plan.training, plan.held_out))
    return replaced


def check_folder(plan: Plan, replace: bool) -> str:
    """What `start_folder` would replace, for a forecast. Raises: CaiError as `start_folder`; writes nothing."""
    with naming(_changed_inputs(plan)):
        check(claim(plan), replace)
    _trainings_too_many(plan, replace)
    return replacement(claim(plan))


def _changed_inputs(plan: Plan) -> list[str]:
    constitutions = {"constitution": plan.constitution_file, "evaluate.constitution": plan.eval_constitution_file}
    return changed_inputs(plan.run_file, plan.overrides, constitutions, plan.templates)


def _trainings_too_many(plan: Plan, replace: bool) -> list[Training]:
    trainings = plan.folder.trainings()
    more = [training for training in trainings if training.number > plan.config.seeds]
    if more and not replace:
        raise CaiError(
            f"{plan.folder.path}: holds {len(trainings)} trainings, and `seeds` is {plan.config.seeds}; set seeds to "
            f"{trainings[-1].number} or more, choose another folder (--name NEW), or remove the others (--replace)"
        )
    return more
