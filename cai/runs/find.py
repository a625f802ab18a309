"""Finding a policy by name (of a run, of a `cai train` folder, or any model), and a constitution."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cai import __version__
from cai.config.errors import CaiError, without_password
from cai.config.hashing import fingerprint
from cai.config.locate import find_constitution_file, similar_constitution, suggestion
from cai.config.validation import format_location, problems
from cai.data.files import rows as rows_of
from cai.data.manifest import MANIFEST_JSON, read_json
from cai.data.records import Prompt
from cai.evaluation.evaluation_plan import Policy
from cai.inference.chat_template import ChatSettings
from cai.inference.models import check_model, folder_fingerprint, resolve_model
from cai.runs.folder import ITERATION, RunFolder, Training, all_runs, is_run, open_run, runs_meant
from cai.runs.run_file import RunConfig

SAMPLES = "samples.jsonl"  # answers sampled during PPO


class FoundPolicy(NamedTuple):
    """A policy, with its run and the run's settings if it is a run's."""

    policy: Policy
    run: RunFolder | None = None
    config: RunConfig | None = None
    chat: ChatSettings | None = None  # of the chat template that it was trained with, from its base model
    training: Training | None = None  # of the run
    eval: Path | None = None  # the folder of its evaluation by `cai eval`, where it is a run's or was trained alone


def find_policy(name: str, runs: Path) -> FoundPolicy:
    """The policy of a run (its last iteration's; `RUN#2`: its second training's), of a `cai train` folder, or a model.

    Raises: CaiError for none of these, naming similar runs, or for a run without a trained policy.
    """
    for path in (runs / name, Path(name)):
        if is_run(path):
            return _of_run(RunFolder(path))
        if iterations := sorted(
            path.glob(f"{ITERATION}*/{MANIFEST_JSON}"), key=lambda manifest: int(manifest.parent.name.split("-")[-1])
        ):
            return _of_run(RunFolder(iterations[-1].parent))
        if (path / "stage.json").exists():
            return _of_stage(path)
    run_name, _, number = name.rpartition("#")
    for path in (runs / run_name, Path(run_name)) if run_name and number.isdecimal() else ():
        if is_run(path):
            return _of_run(RunFolder(path), int(number))
    try:
        return FoundPolicy(policy_of_model(name))
    except CaiError as error:
        shown = without_password(name)
        raise CaiError(f"'{shown}' is no run in {runs}/ ({runs_meant(name, runs)}), and as a model: {error}") from None


def policy_of_model(name: str) -> Policy:
    """A model by its name; a local one is named after its folder. Raises: CaiError for none."""
    folder = resolve_model(name)
    if not Path(name).is_dir():
        return Policy(name, folder)
    path = folder.resolve()
    return Policy(path.parent.name if path.name == "model" else path.name, folder)  # stages write into `model`


def _of_run(folder: RunFolder, number: int = 1) -> FoundPolicy:
    config, training = run_config(folder), folder.training(number)
    if training not in folder.trainings():
        known = ", ".join(f"#{training.number}" for training in folder.trainings())
        raise CaiError(f"{folder.path}: has no training #{number}; it has {known}")
    stages = [(settings.stage, training.train / f"{n}-{settings.stage}") for n, settings in enumerate(config.train, 1)]
    policies = [path for stage, path in stages if stage != "reward"]
    if not policies:
        why = "has only reward stages" if stages else "is empty"
        raise CaiError(
            f"{folder.path}: the run trains no policy, since `train:` of its run file {why}; add a stage such as "
            f"{{stage: dpo}} and run it again. `cai report {folder.name}` has what it measured, and the model that it "
            f"started from is evaluated by its own name, {config.model}"
        )
    if not (policies[-1] / "model").is_dir():
        raise CaiError(f"{folder.path}: its last policy, {policies[-1].name}, is not trained yet; finish the run first")
    rewards = [path / "model" for stage, path in stages if stage == "reward"]
    check_model(folder.name, policies[-1] / "model")
    samples = policies[-1] / SAMPLES
    held_out = set(folder.manifest()["held_out"])
    targets = [settings.target_kl for settings in config.train if settings.stage == "ppo"]
    policy = Policy(
        name=training.label(folder.name),
        folder=policies[-1] / "model",
        base=config.model,
        training_prompts=[prompt for prompt in folder.prompts() if prompt.id not in held_out],
        reward=_reward_of(policies[-1]) or (rewards[-1] if rewards else None),
        samples=samples if samples.exists() else None,
        labels=folder.preferences_jsonl,
        target_kl=next((target for target in reversed(targets) if target is not None), None),
    )
    return FoundPolicy(policy, folder, config, config.engine.chat, training, training.eval)


def _of_stage(path: Path) -> FoundPolicy:
    stage = _stage(path)
    if stage.get("settings", {}).get("stage") == "reward":
        raise CaiError(f"{path}: a reward model, which generates no answers; expected a policy")
    if not (path / "model").is_dir():
        raise CaiError(f"{path}: its policy is not trained yet; finish `cai train` first")
    check_model(path.name, path / "model")
    samples = path / SAMPLES
    policy = Policy(
        name=path.resolve().name,
        folder=path / "model",
        base=stage.get("model"),
        training_prompts=_learned_prompts(path, stage),
        reward=_reward_of(path),
        samples=samples if samples.exists() else None,
    )
    chat = stage.get("chat")
    return FoundPolicy(policy, chat=ChatSettings.model_validate(chat) if chat else None, eval=path / "eval")


def _learned_prompts(path: Path, stage: dict[str, Any]) -> list[Prompt]:
    """The prompts of what a stage learned from, each once: of its copy of the data, or of the data of its run."""
    copied, data = path / "rows.jsonl", Path(stage.get("data", ""))
    rows = copied if copied.exists() else data
    learned: dict[str, Prompt] = {}
    for place, row in rows_of(rows) if rows.is_file() else ():
        try:
            prompt = Prompt(id=row.get("prompt_id") or row["id"], messages=row["messages"])
        except (LookupError, ValidationError) as error:
            raise CaiError(f"{place}: not a row that a stage learns from: {error!r}") from None
        learned.setdefault(fingerprint(prompt.messages), prompt)
    return list(learned.values())


def _reward_of(stage: Path) -> Path | None:
    folder = _stage(stage).get("reward")
    return Path(folder) if folder else None


def _stage(path: Path) -> dict[str, Any]:
    return read_json(path / "stage.json")


def run_config(folder: RunFolder) -> RunConfig:
    """A run's settings, from its manifest, which also says where its models' servers were.

    Raises: CaiError for settings of another version of cai.
    """
    manifest = folder.manifest()
    wrong = [f"no '{part}'" for part in ("config", "held_out", "model") if part not in manifest]
    try:
        if not wrong:
            config = copy.deepcopy(manifest["config"])
            for section, servers in (manifest.get("where") or {}).items():
                part = config if section == "model" else config[section]
                part["engine"] = (part.get("engine") or {}) | servers
            return RunConfig.model_validate(config)
    except ValidationError as error:
        found = problems(RunConfig, config, error)
        wrong = [f"{format_location(config, problem.at)}: {problem.text()}" for problem in found]
    more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise CaiError(
        f"{folder.manifest_json}: not the settings of a run of this version of cai{other_version(manifest)}: "
        f"{wrong[0]}{more}"
    )


def other_version(manifest: dict[str, Any]) -> str:
    """The version of cai that wrote a manifest where it is another one: `, 0.2.0, but of 0.1.9`; else empty."""
    versions = manifest.get("versions")
    wrote = versions.get("cai") if isinstance(versions, dict) else None
    return f", {__version__}, but of {wrote}" if isinstance(wrote, str) and wrote != __version__ else ""


def check_base(policy: FoundPolicy, reference: Path) -> None:
    """Raises: CaiError if the run's base model, found by name, has other content than when the run started."""
    if policy.run is None or policy.run.path.name.startswith(ITERATION):
        return
    if folder_fingerprint(reference) != policy.run.manifest()["model"]:
        raise CaiError(
            f"{policy.run.path}: the model '{policy.policy.base}' has changed since the run started from it; name the "
            "one to compare with by --reference"
        )


def run_to_compare(folder: RunFolder, runs: Path) -> RunFolder | None:
    """The newest other finished run in a folder of runs that has the same prompts and another constitution, if any."""
    own = folder.manifest()
    for other in all_runs(runs):
        with suppress(CaiError, LookupError, TypeError, AttributeError):  # of another version, or damaged
            found = other.manifest()
            same_principles = found["constitution"]["fingerprint"] == own["constitution"]["fingerprint"]
            if found["prompts"] == own["prompts"] and not same_principles and other.summary() is not None:
                return other
    return None


def find_constitution(name: str, runs: Path | None) -> Path:
    """The file that a path, the name of a shipped constitution (`plain`), or a run's name or folder stands for.

    Raises: CaiError for none, with a similar name if there is one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if runs is not None and any(is_run(folder) for folder in (runs / name, path)):
        return open_run(name, runs).constitution_yaml
    with suppress(CaiError):
        shipped = find_constitution_file("constitution", name, path)
        if shipped.is_file():
            return shipped
    what = "a folder without a run" if path.is_dir() else "no such file"
    known = f", nor a run in {runs}/ ({runs_meant(name, runs)})" if runs else ""
    raise CaiError(f"{without_password(name)}: {what}{known}{similar_constitution(name) or suggestion(name, path)}")
