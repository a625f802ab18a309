"""`cai try`."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from cai.cli.console import line, listed, loading, marked, resumable, with_new_words
from cai.cli.options import (
    DEFAULT_RUNS,
    DEFAULT_TEMPLATES,
    KeyEnv,
    ModelOrServer,
    PrincipleId,
    RunsFolder,
    Settings,
    TemplatesFolder,
)
from cai.config import locate
from cai.config.characters import Terminal, visible
from cai.config.errors import CaiError, RequestRefused
from cai.config.hashing import fingerprint
from cai.config.locate import find_file
from cai.config.yaml_files import YamlSource, apply_overrides, validate
from cai.constitution.principles import find_principle, load_constitution
from cai.constitution.templates import Templates, names_for
from cai.data.prompts import read_prompts
from cai.data.records import Message, Prompt
from cai.feedback.revise import ReviseConfig
from cai.inference.chat import control_warnings
from cai.inference.engine import EngineConfig
from cai.inference.models import SMALL_MODEL
from cai.inference.reporter import Reporter
from cai.inference.servers import resolve_judges
from cai.inference.vllm_settings import check_arguments
from cai.runs.find import find_constitution
from cai.runs.folder import CACHE_FILE
from cai.stats.formatting import counted
from cai.workbench.trial import Begun, Event, Loading, News, Trial, changes, once, try_out

COMMAND = Path("cai try")  # named in errors about its options
DEFAULTS = {"rounds": 1, "temperature": 0}  # the likeliest text, so that what changes is the principle's doing
SHOWN = 60  # characters of a prompt in a heading


def try_(
    constitution: Annotated[str, typer.Argument(metavar="CONSTITUTION", help="YAML file or shipped constitution.")],
    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", metavar="TEXT", help="A prompt; may be repeated.")
    ] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="File or Hub id of prompts.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Number of prompts of the file.")] = 5,
    principle: PrincipleId = None,
    model: ModelOrServer = SMALL_MODEL,
    key_env: KeyEnv = None,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Settings = None,
    watch: Annotated[bool, typer.Option("--watch", help="Run again whenever the file or a template changes.")] = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Critique and revise a few prompts, text by text.

    Prints a draft for each prompt, and its critique and revision by each principle. --set takes settings of `revise:`
    in a run file, such as max_tokens=48, and of `engine:`, such as engine.max_model_len=4096.
    """
    inputs = read_inputs(prompt or [], prompts, limit)
    file, folder = find_constitution(constitution, None), find_file("--templates", templates, COMMAND)
    source = YamlSource(COMMAND, dict(DEFAULTS), {})
    revise = validate(apply_overrides(source, [o.removeprefix("revise.") for o in settings or []]), ReviseConfig)
    if revise.model is not None:
        raise CaiError("--set model: `cai try` asks one model; --model names it")

    def load() -> Trial:
        constitution = load_constitution(file)
        principles = constitution.principles
        if principle is not None:
            principles = [find_principle(principles, principle, str(file))]
        return Trial(inputs, principles, Templates(folder, names_for([constitution], revise.templates_needed)), revise)

    load()  # an error at the start ends the command
    check_arguments(revise.engine or EngineConfig(), "--set engine")
    [resolved] = resolve_judges([model], key_env, revise.engine)
    console = Terminal()
    reporter = Reporter(console)
    page = Page(console, inputs, model)
    occasions = changes([file, folder]) if watch else once()
    with (
        nullcontext() if watch else resumable(console, reporter),
        console.status("waiting for the model") as status,
    ):

        def show(event: Event) -> None:
            reporter.advanced |= isinstance(event, News)
            if isinstance(event, Begun):
                status.start()
            elif not isinstance(event, Loading | News):
                status.stop()
            page.show(event)
            if watch and not isinstance(event, Begun | Loading | News):
                line(console, Text(f"Watching {file} and {folder}; Ctrl-C stops", style="dim"))

        try_out(load, occasions, resolved, runs / CACHE_FILE, show)
    if page.refused:
        raise typer.Exit(1)


def read_inputs(texts: list[str], file: str | None, count: int) -> list[Prompt]:
    """The prompts given as texts, and the first `count` of a file; CaiError when there are none.

    Rows of the file that are skipped are reported on stderr.
    """
    prompts = []
    for text in texts:
        if not text.strip():
            raise CaiError("-p: the prompt is empty")
        messages = [Message(role="user", content=text)]
        prompts.append(Prompt(id=fingerprint(messages), messages=messages))
    if file is not None:
        read, skipped = read_prompts(locate.find_data("--prompts", file, COMMAND), count)
        prompts += read
        for reason, rows in Counter(row.reason for row in skipped).items():
            line(Terminal(stderr=True), f"skipped: {rows} × {visible(reason)}")
    if not prompts:
        raise CaiError("no prompt; expected -p TEXT or --prompts FILE")
    return list({prompt.id: prompt for prompt in prompts}.values())


class Page:
    """Prints texts as they arrive, with a heading for each prompt and principle."""

    def __init__(self, console: Console, prompts: list[Prompt], model: str) -> None:
        self._console, self._prompts, self._model = console, prompts, model
        self._prompt = self._principle = ""
        self.refused = 0  # texts that the model could not write

    def show(self, event: Event) -> None:
        """Print one event."""
        console = self._console
        if isinstance(event, Begun):
            self._prompt = self._principle = ""
        elif isinstance(event, Loading):
            loading(console, self._model)
        elif isinstance(event, News):
            self._headings(event)
            self._text(event)
        elif isinstance(event, CaiError):
            line(console, Text(f"error: {visible(str(event))}", style="red"))
        else:
            what = counted(event.news, "texts") if event.news else "no text changed"
            line(console, f"\n{what} in {event.seconds:.1f} s; {counted(event.calls, 'new calls')}")
            if warnings := control_warnings({"control_tokens": event.control_tokens}, "requests"):
                console.print(listed("!", warnings, "yellow"))

    def _headings(self, item: News) -> None:
        prompt, principle = item.step.prompt, item.step.principle.id if item.step.principle else ""
        if prompt.id != self._prompt:
            self._prompt, self._principle = prompt.id, ""
            number = f"prompt {self._prompts.index(prompt) + 1} of {len(self._prompts)}"
            question = " ".join(prompt.messages[-1]["content"].split())
            short = question if len(question) <= SHOWN else question[: SHOWN - 1] + "…"
            self._console.print()
            self._console.rule(Text(visible(f"{number}: {short}"), style="bold"), align="left")
        if principle != self._principle:
            self._principle = principle
            self._console.print(Text(f"\n{principle}", style="bold"))

    def _text(self, item: News) -> None:
        step, written = item.step, item.written
        if isinstance(written, RequestRefused):
            self.refused += 1
            line(self._console, Text(f"{step.text} not answered: {visible(str(written))}", style="red"))
            return
        if step.principle is None:
            for message in step.prompt.messages:
                self._block(message["role"], Text(visible(message["content"])))
        text = written.completion.text
        notes = [f"round {step.round}"] if step.round > 1 else []
        notes += [*written.flags, *(["truncated"] if written.completion.finish == "length" else [])]
        heading = step.text + (f"  ({', '.join(dict.fromkeys(notes))})" if notes else "")
        if item.before is not None:
            self._block(f"{heading}, changed", marked(item.before, text))
        elif step.text == "revision":
            self._block(heading, with_new_words(written.about, text))
        else:
            self._block(heading, Text(visible(text)))

    def _block(self, heading: str, text: Text) -> None:
        self._console.print(Text(heading, style="cyan"))
        self._console.print(Padding(text, (0, 0, 0, 4), expand=False))
