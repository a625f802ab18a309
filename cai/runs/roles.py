"""The models that a run file names, each for its part of a run, and the settings of their engines."""

from pathlib import Path
from typing import Any, NamedTuple

from cai.config.errors import CaiError, without_password
from cai.evaluation.evaluation_plan import OFF
from cai.inference.chat_template import check_chat, with_template_text
from cai.inference.engine import EngineConfig
from cai.inference.models import Model, resolve_model
from cai.inference.servers import addresses_of, check_address, is_address, resolve_judges
from cai.inference.vllm_settings import check_arguments
from cai.runs.run_file import RunConfig


def with_template_texts(config: RunConfig, run_file: Path) -> RunConfig:
    """The settings with the texts of the chat templates that they name."""
    update: dict[str, Any] = {"engine": with_template_text(config.engine, "engine", run_file)}
    for name in ("revise", "judge", "evaluate"):
        section = getattr(config, name)
        if section.engine is not None:
            engine = with_template_text(section.engine, f"{name}.engine", run_file)
            update[name] = section.model_copy(update={"engine": engine})
    return config.model_copy(update=update)


def check_addresses(config: RunConfig) -> None:
    """Raises: CaiError for the address of a model or server that holds a password, before its name is used anywhere."""
    judges = config.judge.model if isinstance(config.judge.model, list) else [config.judge.model]
    names = [config.model, config.revise.model, *judges, config.evaluate.judge]
    engines = [config.engine, config.revise.engine, config.judge.engine, config.evaluate.engine]
    addresses = [name for name in names if name is not None and is_address(name)]
    for address in [*addresses, *(url for engine in engines if engine is not None for url in addresses_of(engine))]:
        check_address(address)


class Roles(NamedTuple):
    """The models of a run that do not answer its prompts; see Plan."""

    reviser: Model
    judge_models: list[Model]
    eval_judge: Model | None
    own_settings: dict[Model, EngineConfig]


def policy_models(config: RunConfig) -> tuple[Model, Model]:
    """The model that is trained, and what answers the prompts. Raises: CaiError for a server's where it is trained."""
    if not is_address(config.model) and not config.engine.endpoints:
        folder = resolve_model(config.model)
        return folder, folder
    if config.train and is_address(config.model):
        raise CaiError(
            f"model '{without_password(config.model)}': `train:` trains a model's folder; name the folder, and the "
            "server as engine.endpoints"
        )
    [generator] = resolve_judges([config.model], engine=config.engine)
    return resolve_model(config.model) if config.train else generator, generator


def other_models(config: RunConfig, model: Model, generator: Model) -> Roles:
    """The models beside the trained one and the one that answers, which do what no other is named for.

    Raises: CaiError also when one model is to have engines of different settings.
    """
    names = [config.judge.model] if isinstance(config.judge.model, str) else config.judge.model
    key_env = config.judge.key_env
    judges = resolve_judges(names, key_env, config.judge.engine) if names else [generator]
    reviser = generator
    if config.revise.model:
        [reviser] = resolve_judges([config.revise.model], engine=config.revise.engine)
    eval_judge, eval_engine = None if config.evaluate.judge == OFF else judges[0], config.judge.engine
    if config.evaluate.judge and config.evaluate.judge != OFF:
        [eval_judge] = resolve_judges([config.evaluate.judge], key_env, config.evaluate.engine)
        eval_engine = config.evaluate.engine
    base, shared = config.engine.in_process, config.engine.shared
    wanted = {
        "revise.engine": ([reviser], config.revise.engine),
        "judge.engine": (judges, config.judge.engine),
        "evaluate.engine": ([eval_judge] if eval_judge is not None else [], eval_engine),
    }
    check_arguments(config.engine)
    check_chat(model, base.chat, "engine")  # of one that is trained, its folder: its servers may have the same template
    used: dict[Model, EngineConfig] = {generator: base, model: base}
    for key, (found, engine) in wanted.items():
        if engine is not None:
            check_arguments(engine, key)
        for each in found:
            settings = used.get(each, shared) if engine is None else engine.over(config.engine).in_process
            if each not in used:
                check_chat(each, settings.chat, key)
            if used.setdefault(each, settings) != settings:
                raise CaiError(f"{key}: {each} is also another model of this run, with other engine settings")
    return Roles(reviser, judges, eval_judge, {each: own for each, own in used.items() if own != shared})
