"""Finding a policy by name: of a run, of a `cai train` folder, or any model."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from cai.config.errors import CaiError
from cai.data.jsonl import read_rows
from cai.data.manifest import read_json
from cai.data.records import Prompt
from cai.evaluation.policy import Policy
from cai.inference.models import folder_fingerprint, resolve_model
from cai.runs.folder import ITERATION, RunFolder, is_run, runs_meant
from cai.runs.run_file import RunConfig

SAMPLES = "samples.jsonl"  # what PPO sampled on its way


class FoundPolicy(NamedTuple):
    """A policy, with the run and the settings it came from where it is that of a run."""

    policy: Policy
    run: RunFolder | None = None
    config: RunConfig | None = None


def find_policy(name: str, runs: Path) -> FoundPolicy:
    """The policy of a run (of its last iteration), of a folder of `cai train`, or a model.

    Raises: CaiError saying what there is, for none of these or one without a trained policy.
    """
    for path in (runs / name, Path(name)):
        if is_run(path):
            return _of_run(RunFolder(path))
        if found := sorted(
            path.glob(f"{ITERATION}*/manifest.json"), key=lambda manifest: int(manifest.parent.name.split("-")[-1])
        ):
            return _of_run(RunFolder(found[-1].parent))
        if (path / "stage.json").exists():
            return _of_stage(path)
    try:
        return FoundPolicy(policy_of_model(name))
    except CaiError as error:
        meant = runs_meant(name, runs)
        raise CaiError(f"'{name}' is no run in {runs}/ ({meant}), and as a model: {error}") from None


def policy_of_model(name: str) -> Policy:
    """A model by its name; one in a folder is called as the folder is. Raises: CaiError when there is none."""
    folder = resolve_model(name)
    if not Path(name).is_dir():
        return Policy(name, folder)
    path = folder.resolve()
    return Policy(path.parent.name if path.name == "model" else path.name, folder)  # stages write into `model`


def _of_run(folder: RunFolder) -> FoundPolicy:
    config = run_config(folder)
    stages = [(settings.stage, folder.train / f"{n}-{settings.stage}") for n, settings in enumerate(config.train, 1)]
    policies = [path for stage, path in stages if stage != "reward"]
    if not policies:
        raise CaiError(f"{folder.path}: the run trains no policy (`train:` has no stage that makes one)")
    if not (policies[-1] / "model").is_dir():
        raise CaiError(f"{folder.path}: its last policy, {policies[-1].name}, is not trained; run it to its end first")
    rewards = [path / "model" for stage, path in stages if stage == "reward"]
    samples = policies[-1] / SAMPLES
    held_out = set(folder.manifest()["held_out"])
    targets = [settings.target_kl for settings in config.train if settings.stage == "ppo"]
    policy = Policy(
        name=folder.name,
        folder=policies[-1] / "model",
        base=config.model,
        training_prompts=[prompt for prompt in folder.prompts() if prompt.id not in held_out],
        reward=rewards[-1] if rewards else _reward_of(policies[-1]),
        samples=samples if samples.exists() else None,
        labels=folder.preferences_jsonl,
        target_kl=next((target for target in reversed(targets) if target is not None), None),
    )
    return FoundPolicy(policy, folder, config)


def _of_stage(path: Path) -> FoundPolicy:
    about = _stage(path)
    if about.get("settings", {}).get("stage") == "reward":
        raise CaiError(f"{path} is a reward model: it gives scores, no answers")
    if not (path / "model").is_dir():
        raise CaiError(f"{path}: its policy is not trained yet; run `cai train` to its end first")
    samples, data = path / SAMPLES, Path(about.get("data", ""))
    policy = Policy(
        name=path.resolve().name,
        folder=path / "model",
        base=about.get("model"),
        training_prompts=read_rows(data, Prompt) if samples.exists() and data.is_file() else [],
        reward=_reward_of(path),
        samples=samples if samples.exists() else None,
    )
    return FoundPolicy(policy)


def _reward_of(stage: Path) -> Path | None:
    named = _stage(stage).get("reward")
    return Path(named) if named else None


def _stage(path: Path) -> dict[str, Any]:
    return read_json(path / "stage.json")


def run_config(folder: RunFolder) -> RunConfig:
    """The settings a run was made with, from its manifest; raises CaiError for those of another version of cai."""
    manifest = folder.manifest()
    lacks = [f"no '{part}'" for part in ("config", "held_out", "model") if part not in manifest]
    try:
        if not lacks:
            return RunConfig.model_validate(manifest["config"])
    except ValidationError as error:
        lacks = [error.errors()[0]["msg"]]
    raise CaiError(f"{folder.manifest_json}: not the settings of a run of this version of cai: {lacks[0]}")


def check_base(found: FoundPolicy, reference: Path) -> None:
    """Raises: CaiError where the model by the name that a run started from is no longer the one it started from."""
    if found.run is None or found.run.path.name.startswith(ITERATION):
        return
    if folder_fingerprint(reference) != found.run.manifest()["model"]:
        raise CaiError(
            f"{found.run.path}: the model '{found.policy.base}' has changed since the run started from it; name the "
            "one to compare with by --reference"
        )
