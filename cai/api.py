"""The Python API: what `import cai` offers notebooks and scripts.

The functions do what the commands of the same names do, with the same models, cache and settings, and return rows in
place of files. They run from plain Python as well as inside an event loop, as in Jupyter. A model that a call loads
stays loaded for the next call. An interrupt cancels the requests in flight; the cache keeps every answer, so calling
again continues.
"""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pydantic import BaseModel

from cai.config.characters import Terminal
from cai.config.errors import CaiError
from cai.config.locate import find_file, local_file
from cai.config.validation import describe
from cai.config.yaml_files import AnySection, YamlSource, validate
from cai.constitution import principles
from cai.constitution.principles import Constitution
from cai.constitution.templates import OF_RUNS, Templates, names_for
from cai.data.jsonl import read_rows, write_text
from cai.data.prompts import read_prompts
from cai.data.records import Messages, Preference, Prompt, Ranking, Revision, Row, Seed, Skipped
from cai.feedback.judge import JudgeConfig
from cai.feedback.label import JudgePanel, LabelJob, Totals, count_work, label_rows
from cai.feedback.revise import ReviseConfig, Reviser, calls_of_loop
from cai.feedback.yes_no import ask_applying
from cai.inference.cache import Cache
from cai.inference.engine import EngineConfig
from cai.inference.loaded_models import KeepAlive
from cai.inference.models import SMALL_MODEL, resolve_model
from cai.inference.reporter import Reporter
from cai.inference.scheduler import OpenEngine, Scheduler, Stage, open_model
from cai.inference.servers import resolve_judges
from cai.runs.find import find_constitution
from cai.runs.folder import CACHE_FILE
from cai.runs.frames import Run, load_run, rows_table, updates_table
from cai.runs.pipeline import train_stage
from cai.training.stage import StageSpec, convert_data, reward_models, stage_settings_class

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["Rows", "Run", "Trained", "close", "judge", "load_constitution", "load_run", "revise", "train"]

PARAMETERS = {"--replace": "replace=True", "--out FOLDER": "out=FOLDER", "--runs": "runs=FOLDER"}  # for options
MODELS = KeepAlive()
"""The model that the last call loaded."""
AnyRow = TypeVar("AnyRow", bound=Row)
Result = TypeVar("Result")
Data = str | Path | Iterable[str | Messages | dict[str, Any] | Row]
"""A file or Hub id; or rows: texts, conversations, dicts in any known format, or records of cai."""


class Rows(list[AnyRow], Generic[AnyRow]):
    """A list of records; `skipped` are the inputs without one, and why."""

    def __init__(self, rows: Iterable[AnyRow], kind: type[AnyRow], skipped: Sequence[Skipped]) -> None:
        super().__init__(rows)
        self.kind, self.skipped = kind, list(skipped)

    def to_table(self) -> "pyarrow.Table":
        """The rows as an Arrow table, a column a field."""
        return rows_table(self, self.kind)

    def to_pandas(self) -> "pandas.DataFrame":
        """The rows as a data frame, a column a field."""
        return self.to_table().to_pandas()


class Labels(Rows[Preference]):
    """What `cai.judge` returns: a row a pair; `rankings` has a row for each set of more than two answers."""

    def __init__(self, rows: Rows[Preference], rankings: Rows[Ranking]) -> None:
        super().__init__(rows, Preference, rows.skipped)
        self.rankings = rankings


@dataclass(frozen=True)
class Trained:
    """A trained stage."""

    model: Path
    """The folder of the policy, or of the reward model."""
    folder: Path
    skipped: list[Skipped]
    """The rows that the stage could not use, and why."""

    @property
    def metrics(self) -> "pyarrow.Table":
        """One row per logged update: `stage`, `step`, and every number that the stage logs."""
        return updates_table([self.folder / "metrics.jsonl"])


class ReviseSettings(ReviseConfig):
    """Settings of `cai.revise`: those of `revise:` in a run file, and these."""

    seed: Seed = 0
    """Random seed; decides samples and sampled principles."""
    templates: str = "prompts/default"
    """Folder of prompt templates."""
    engine: EngineConfig = EngineConfig()
    """As `engine:` in a run file."""


class JudgeSettings(JudgeConfig):
    """Settings of `cai.judge`: those of `judge:` in a run file, and these."""

    seed: Seed = 0
    """Random seed; decides sampled principles and the sampling of chains of thought."""
    templates: str = "prompts/default"
    """Folder of prompt templates."""
    engine: EngineConfig = EngineConfig()
    """As `engine:` in a run file."""


def load_constitution(name: str | Path) -> Constitution:
    """The constitution in a file, shipped under a name (`"plain"`), or of a run in `runs`.

    Raises: CaiError with file and line.
    """
    return principles.load_constitution(find_constitution(str(name), Path("runs")))


def revise(
    prompts: Data,
    constitution: Constitution | str | Path,
    model: str | Path = SMALL_MODEL,
    runs: str | Path = "runs",
    open_engine: OpenEngine = open_model,
    **settings: Any,
) -> Rows[Revision]:
    """Answer prompts, criticise the answers by principles and rewrite them: a row per prompt and round.

    `settings` are those of `revise:` in a run file (`rounds`, `temperature`, …), `seed`, `templates` and `engine`.
    Answers are cached in `runs`, as those of the command line.
    Raises: CaiError naming the setting, file or row.
    """
    chosen = _settings("cai.revise", ReviseSettings, settings)
    source = _constitution(constitution)
    names = names_for([source], chosen.templates_needed)
    templates = Templates(find_file("templates", chosen.templates, Path("cai.revise")), names)
    with _file_of("prompts", prompts) as path:
        inputs, skipped = read_prompts(path)
    [resolved] = resolve_judges([str(model)], engine=chosen.engine)

    async def work(scheduler: Scheduler) -> list[Revision]:
        engine = scheduler.engine(resolved)
        reviser = Reviser(templates, engine, chosen, chosen.seed)

        async def revisions(prompt: Prompt) -> list[Revision]:
            found = await ask_applying(source, prompt, templates, engine)
            return await reviser.rounds(prompt, await reviser.respond(prompt), found)

        calls = len(principles.questions(source)) + 1 + calls_of_loop(chosen)
        stage = Stage("revising", [engine], len(inputs), calls * len(inputs))
        scheduler.skipped += skipped
        try:
            of_prompts = scheduler.each(stage, inputs, revisions, attrgetter("id"))
            return [row async for _, rows in of_prompts for row in rows]
        finally:
            await engine.close()

    return _ask(work, Revision, _Engines(chosen.engine, Path(runs), open_engine))


def judge(
    answers: Data,
    constitution: Constitution | str | Path,
    model: str | Path | Sequence[str | Path] = SMALL_MODEL,
    runs: str | Path = "runs",
    open_engine: OpenEngine = open_model,
    **settings: Any,
) -> Labels:
    """Label pairs of answers with an AI judge: a row a pair, `p` is P(chosen better).

    Rows of `answers` are pairs (`prompt`, `chosen`, `rejected`), or sets (`prompt`, `responses`) of which all pairs are
    judged and that are ranked; a Revision stands for its draft and its revision. Several models are a panel.
    `settings` are those of `judge:` in a run file (`principles`, `swap`, …), `seed`, `templates` and `engine`.
    Raises: CaiError naming the setting, file or row.
    """
    chosen = _settings("cai.judge", JudgeSettings, settings)
    if "samples" in chosen.model_fields_set:
        raise CaiError("cai.judge: samples: no responses are sampled; it judges those in the rows")
    source = _constitution(constitution)
    names = names_for([source], (*OF_RUNS, *chosen.templates_needed))
    templates = Templates(find_file("templates", chosen.templates, Path("cai.judge")), names)
    chosen.check_templates(templates)
    models = [model] if isinstance(model, str | Path) else model
    with _file_of("answers", answers) as data, tempfile.TemporaryDirectory(prefix="cai-judge-") as aside:
        judges, out = resolve_judges([str(name) for name in models], chosen.key_env, chosen.engine), Path(aside)
        job = LabelJob(data, False, None, judges, source, templates, chosen, chosen.seed)
        extent = count_work(job)

        async def work(scheduler: Scheduler) -> list[Preference]:
            await label_rows(job, JudgePanel(job, extent, scheduler), out, True, Totals())
            scheduler.skipped += read_rows(out / "skipped.jsonl", Skipped)
            return read_rows(out / "preferences.jsonl", Preference)

        pairs = _ask(work, Preference, _Engines(chosen.engine, Path(runs), open_engine))
        return Labels(pairs, Rows(read_rows(out / "rankings.jsonl", Ranking), Ranking, []))


def train(
    stage: str,
    data: Data,
    out: str | Path,
    model: str | Path = SMALL_MODEL,
    seed: int = 0,
    replace: bool = False,
    **settings: Any,
) -> Trained:
    """Train one stage (`sft`, `reward`, `dpo`, …) into the folder `out`, or resume it.

    `settings` are those of the stage in `train:` of a run file; the stages that need a reward model take its folder as
    `reward`. A finished stage with the same settings and data is not trained again; results of others are overwritten
    with `replace` alone.
    Raises: CaiError naming the setting, file or row, or when the training fails.
    """
    kind, fields = stage_settings_class(stage), {"stage": stage, **_plain(settings)}
    config = validate(YamlSource(Path("cai.train"), fields, {}), kind)
    folder, reporter = Path(out), Reporter(Terminal())
    close()  # training needs the memory
    with _file_of("data", data) as source, tempfile.TemporaryDirectory(prefix="cai-train-") as aside:
        rows = Path(aside) / "rows.jsonl"
        rewards = reward_models(config, "reward")
        reward, others = rewards[0] if rewards else None, rewards[1:]
        spec = StageSpec(config, rows, resolve_model(str(model)), folder, seed, reward, other_rewards=others)
        skipped = convert_data(config, source, rows)
        with _parameters_for_options():
            result, more = train_stage(stage, spec, reporter, replace, keep_data=True)
    _report(reporter, [*skipped, *more])
    return Trained(result, folder, [*skipped, *more])


def close() -> None:
    """Free the model that the last call left loaded; the next call that misses the cache loads its own.

    `cai.train`, a call with another model or other `engine` settings, and the end of the process do so by themselves.
    """
    run_async(MODELS.close)


@dataclass(frozen=True)
class _Engines:
    """How the engines of a call are opened, and where the cache is."""

    settings: EngineConfig
    runs: Path
    open_engine: OpenEngine


def _ask(
    work: Callable[[Scheduler], Coroutine[Any, Any, list[AnyRow]]], kind: type[AnyRow], engines: _Engines
) -> Rows[AnyRow]:
    """The rows of work that asks models, with its progress and what it skipped printed."""
    reporter = Reporter(Terminal())

    async def with_cache() -> Rows[AnyRow]:
        with closing(Cache(engines.runs / CACHE_FILE)) as cache:  # SQLite's connection belongs to this thread
            scheduler = Scheduler(engines.settings, cache, reporter, MODELS.opening(engines.open_engine))
            return Rows(await work(scheduler), kind, scheduler.skipped)

    with _parameters_for_options():
        rows = run_async(with_cache)
    _report(reporter, rows.skipped)
    return rows


def run_async(function: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """The result of a coroutine function, also where an event loop runs already: then in a thread with its own loop.

    An interrupt cancels the coroutine, and is raised once the coroutine has ended.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(function())
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Result]]] = Future()

    async def main() -> Result:
        started.set_result((asyncio.get_running_loop(), cast("asyncio.Task[Result]", asyncio.current_task())))
        return await function()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="cai") as thread:
        running = thread.submit(lambda: asyncio.run(main()))
        try:
            return running.result()
        except KeyboardInterrupt:
            loop, task = started.result()
            with suppress(RuntimeError):  # the loop is closed: the coroutine has just ended
                loop.call_soon_threadsafe(task.cancel)
            raise


@contextmanager
def _parameters_for_options() -> Iterator[None]:
    """Errors name the parameters of a function in place of the options of its command."""
    try:
        yield
    except CaiError as error:
        text = str(error)
        for option, parameter in PARAMETERS.items():
            text = text.replace(option, parameter)
        raise CaiError(text) from error.__cause__


def _report(reporter: Reporter, skipped: Sequence[Skipped]) -> None:
    for reason, count in Counter(row.reason for row in skipped).items():
        reporter.say(f"  skipped: {count} × {reason}")


def _constitution(constitution: Constitution | str | Path) -> Constitution:
    return constitution if isinstance(constitution, Constitution) else load_constitution(constitution)


def _settings(function: str, kind: type[AnySection], settings: dict[str, Any]) -> AnySection:
    """Keyword arguments as settings; an error names the function."""
    return validate(YamlSource(Path(function), _plain(settings), {}), kind)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as YAML has them, where paths are texts."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


@contextmanager
def _file_of(argument: str, data: Data) -> Iterator[Path]:
    """The file that `data` names, or a temporary one of its rows, which errors call by the argument's name."""
    if isinstance(data, str | Path):
        yield local_file(str(data))
        return
    with tempfile.TemporaryDirectory(prefix="cai-") as aside:
        path = Path(aside) / f"{argument}.jsonl"
        lines = (json.dumps(_fields(argument, row), default=str) + "\n" for row in data)
        write_text(path, "".join(lines))
        try:
            yield path
        except CaiError as error:
            raise CaiError(str(error).replace(str(path), argument)) from error.__cause__


def _fields(argument: str, row: Any) -> dict[str, Any]:
    """A row as the object that a line of a file holds."""
    if isinstance(row, Revision) and argument == "answers":  # asks whether the revision is better than the draft
        return {**row.model_dump(include={"prompt_id", "messages", "tags"}), "responses": [row.draft, row.revision]}
    if isinstance(row, BaseModel):
        return row.model_dump(mode="json")
    if isinstance(row, str):
        return {"prompt": row}
    if isinstance(row, list):
        return {"messages": row}
    if isinstance(row, dict):
        return row
    raise CaiError(f"{argument}: expected rows as texts, conversations, dicts or records of cai, found {describe(row)}")
