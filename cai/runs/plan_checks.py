"""What of a run file can be seen to fail before anything is paid for: tags, pairs, value functions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cai.config.errors import CaiError
from cai.config.yaml_files import read_text
from cai.constitution.principles import Constitution
from cai.constitution.templates import Templates
from cai.data.records import Preference, Prompt, Source
from cai.runs.folder import RunFolder
from cai.runs.run_file import RunConfig
from cai.training.reward_folder import is_trained_here
from cai.training.setting_parts import LAST, models_of
from cai.training.settings import (
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SFTConfig,
    TrainStage,
    weighs_pairs,
)

Pairs = set[tuple[Source, float]]
"""The sources of a run's pairs, each with the weights that its pairs have."""


def changed_inputs(
    run_file: Path, overrides: Sequence[str], constitutions: Mapping[str, Path], templates: Templates
) -> list[str]:
    """Of a run file in a run's folder, which names the files that the run read: those that changed since.

    Each with the option that reads the folder's copy in its place; without those that an override names.
    """
    folder = RunFolder(run_file.parent)
    if run_file.name != folder.run_yaml.name or not folder.manifest_json.exists():
        return []
    copies = {"constitution": folder.constitution_yaml, "evaluate.constitution": folder.eval_constitution_yaml}
    changed = [
        (field, file, copies[field])
        for field, file in constitutions.items()
        if copies[field].exists() and read_text(file) != read_text(copies[field])
    ]
    kept = {name: folder.templates / name for name in templates.files() if (folder.templates / name).exists()}
    if any(read_text(path) != templates.files()[name] for name, path in kept.items()):
        changed.append(("templates", templates.folder, folder.templates))
    named = {override.partition("=")[0].strip() for override in overrides}
    return [
        f"{run_file}: {field}: {file} has changed since this run; --set {field}={copy} reads the run's copy"
        for field, file, copy in changed
        if field not in named
    ]


@contextmanager
def naming(changes: Sequence[str]) -> Iterator[None]:
    """An error of the block ends with these lines."""
    try:
        yield
    except CaiError as error:
        raise CaiError("\n".join([str(error), *changes])) from error


def unmet_tags(constitution: Constitution, prompts: Iterable[Prompt]) -> dict[str, list[str]]:
    """The tags under `applies_to` that none of the prompts has, by principle; the prompts are read only if need be."""
    wanted = {p.id: p.applies_to.tags for p in constitution.principles if p.applies_to and p.applies_to.tags}
    known = {tag for prompt in prompts for tag in prompt.tags} if wanted else set()
    missing = {i: [tag for tag in tags if tag not in known] for i, tags in wanted.items()}
    return {i: tags for i, tags in missing.items() if tags}


def check_tags(constitution: Constitution, prompts: Iterable[Prompt], run_file: Path) -> None:
    """Raises: CaiError where no principle can apply to any prompt, for want of tags."""
    missing = unmet_tags(constitution, prompts)
    tags_of = {p.id: p.applies_to.tags if p.applies_to else [] for p in constitution.principles}
    if all(tags and missing.get(i) == tags for i, tags in tags_of.items()):
        tags = ", ".join(dict.fromkeys(tag for tags in missing.values() for tag in tags))
        raise CaiError(
            f"{run_file}: constitution: no principle applies to any prompt: no training prompt has one of the tags "
            f"that applies_to names: {tags}"
        )


def check_pairs(config: RunConfig, run_file: Path, preferences: Sequence[Preference]) -> None:
    """Raises: CaiError for a stage with nothing to learn from, or whose loss counts pairs alike that differ in weight.

    By the settings alone: whether answers make a pair is known once there are answers.
    """
    later: Pairs = {(pair.source, pair.weight) for pair in preferences}
    if config.judge.samples > 1:
        later.add(("judge", 1.0))
    revised: Pairs = {("revision", 1.0)} if config.revise.rounds and config.revise.label != "off" else set()
    for number, settings in enumerate(config.train):
        place = f"{run_file}: train[{number}]"
        if isinstance(settings, SFTConfig) and not config.revise.rounds:
            raise CaiError(f"{place}: sft learns from revisions, and revise.rounds is 0; set it to 1 or more")
        if not isinstance(settings, PreferenceConfig):
            continue
        weights = settings.data.by_source
        all_labels = settings.stage == "reward" and config.iterate.labels == "all"
        by_iteration = (later | revised, later | revised if all_labels else later)[: config.iterations]
        for iteration, pairs in enumerate(by_iteration, start=1):
            if not any(weights[source] for source, _ in pairs):
                raise CaiError(f"{place}: {settings.stage} {_nothing_to_learn(config, weights, iteration)}")
        if not weighs_pairs(settings):
            _check_weights(later | revised, weights, place, settings.stage)


def check_value_functions(stages: Sequence[TrainStage], run_file: Path) -> None:
    """Raises: CaiError for a value function that is to start as a reward model whose weights do not fit."""
    for number, settings in enumerate(stages):
        if not (isinstance(settings, PPOConfig) and settings.value_init == "reward"):
            continue
        place = f"{run_file}: train[{number}]: value_init"
        names = models_of(settings.reward)
        if not names:
            raise CaiError(f"{place}: the judge is no reward model; a value function starts as one that cai trained")
        if names[0] != LAST:
            if not is_trained_here(Path(names[0])):
                raise CaiError(f"{place}: {names[0]} is a reward model of others; expected one that cai trained")
            continue
        trained = [stage for stage in stages[:number] if isinstance(stage, RewardConfig)]
        if trained and (trained[-1].lora_r is None) != (settings.lora_r is None):
            raise CaiError(f"{place}: of the reward stage and this one, one has a LoRA and one has none (lora_r)")
        if trained and stages[number - 1] is not trained[-1]:
            raise CaiError(
                f"{place}: `{stages[number - 1].stage}` trains the policy after the reward model, whose LoRA then fits "
                "no more; put `reward` right before this stage"
            )


def _nothing_to_learn(config: RunConfig, weights: Mapping[Source, float], iteration: int) -> str:
    rounds = "revise.rounds is 0" if not config.revise.rounds else "revise.label is off"
    lacking: dict[Source, str] = {
        "revision": rounds if iteration == 1 else "iterations after the first make no revisions",
        "judge": f"judge.samples is {config.judge.samples}",
        "human": "there are no pairs in `preferences`",
    }
    reasons = ", ".join(reason if weights[source] else f"data.{source} is 0" for source, reason in lacking.items())
    return f"has no pairs to learn from: {reasons}; change one of them"


def _check_weights(pairs: Pairs, by_source: Mapping[Source, float], place: str, stage: str) -> None:
    weights = {weight * by_source[source] for source, weight in pairs} - {0.0}
    if len(weights) > 1:
        raise CaiError(
            f"{place}: its pairs weigh from {min(weights):g} to {max(weights):g}, by `data` or the file of "
            f"preferences, and the stage '{stage}' counts all alike; reward, or dpo with the loss sigmoid, "
            "ipo or robust, weighs them"
        )
