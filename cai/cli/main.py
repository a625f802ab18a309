"""The `cai` command: finds the module of a command, and turns errors into messages and exit statuses.

A command's module is imported only when that command runs, so that `cai --help` answers at once.
"""

import atexit
import difflib
import gc
import logging
import os
import sys
import threading
import traceback
from importlib import import_module
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from cai import __version__
from cai.cli import interrupts
from cai.cli.help import HelpCommand
from cai.config.errors import TORCH_LOG, CaiError, error_text


class Command(NamedTuple):
    """Where a command is defined, and how `cai --help` lists it."""

    target: str
    """`module:name` of a function, or of a `typer.Typer` with commands of its own."""
    help: str
    """The first line of the command's own help, at most 70 characters."""


PANELS: dict[str, dict[str, Command]] = {
    "Write a constitution": {
        "init": Command("init:init", "Start a project: a run file and a constitution for your prompts."),
        "constitution": Command("constitution:app", "Create, show, compare, lint and test constitutions."),
        "try": Command("try_:try_", "Critique and revise a few prompts, text by text."),
    },
    "Generate and train": {
        "run": Command("run:run", "Run the pipeline of a run file, or resume it."),
        "bench": Command("bench:bench", "Measure how fast this machine makes the feedback of a run."),
        "sweep": Command("sweep:sweep", "Run variants of a run file (settings or principles)."),
        "train": Command("train:train", "Train one stage on a data file, or resume it."),
        "judge": Command("judge:judge", "Label responses with an AI judge."),
    },
    "Evaluate": {
        "eval": Command("eval:eval_", "Evaluate a policy: win rates, probes, reward hacking."),
        "judge-eval": Command("judge_eval:judge_eval", "Evaluate a judge against labelled preferences."),
    },
    "Read results": {
        "runs": Command("runs:runs", "List runs and trainings, newest first."),
        "show": Command("show:show", "Print examples of a run."),
        "report": Command("report:report", "Write a run's report as an HTML page."),
        "serve": Command("serve:serve", "Browse all runs on a local web server."),
        "compare": Command("compare:compare", "Compare runs."),
        "attribute": Command("attribute:attribute", "Measure the effect of each principle in a sweep."),
    },
    "Exchange files": {
        "import": Command("import_:import_", "Convert a dataset to cai's format."),
        "export": Command("export:export", "Export a run or a file to an external format."),
        "schema": Command("schema:schema", "Print the JSON Schema of a file type."),
        "models": Command("models:app", "Prepare model folders."),
    },
    "Look after files": {
        "verify": Command("verify:verify", "Check a run's folder against its manifest."),
        "cache": Command("cache:app", "Inspect, verify, prune, salvage and merge caches of model calls."),
    },
}
COMMANDS = {name: command for panel in PANELS.values() for name, command in panel.items()}


RENAMED_OPTIONS = {  # by command: an option of earlier versions, and what to write in its place
    "cai judge": {"--model": "--judge"},
    "cai judge-eval": {"--model": "--judge"},
    "cai report": {"--html": "--out"},
    "cai compare": {"--html": "--out"},
    "cai attribute": {"--html": "--out"},
    "cai eval": {"--referee": "--constitution"},
}
OF_RUN_FILES = {
    "--limit": "use --set prompts.limit=N",
    "--model": "use --set model=NAME",
    "--constitution": "use --set constitution=NAME",
    "--seed": "use --set seed=N",
    "--judge": "use --set judge.model=NAME",
    "--key-env": "use --set judge.key_env=VAR",
}
OF_OTHERS = {  # by command: an option that it lacks and others have, and what does the same or comes closest
    "cai run": OF_RUN_FILES,
    "cai sweep": OF_RUN_FILES,
    "cai judge": {"--dry-run": "--limit N judges a few rows first"},
    "cai judge-eval": {"--dry-run": "--limit N judges a few rows first"},
    "cai train": {"--dry-run": "--estimate shows the memory it takes"},
}
PYDANTICS = {  # how pydantic words the bounds of an option, and how cai does
    "Input should be greater than or equal to": "expected at least",
    "Input should be less than or equal to": "expected at most",
    "Input should be": "expected",
}
UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, or the copy of it that typer brings along


class Interrupted(BaseException):
    """Ctrl-C within a command, kept from typer, which has a status but no words for it.

    It has arguments where the command has already printed how to resume.
    """


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, each imported when it is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of `cai --help`."""
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, imported here; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        module, _, name = COMMANDS[cmd_name].target.partition(":")
        target = getattr(import_module(f"cai.cli.{module}"), name)
        if isinstance(target, typer.Typer):
            return typer.main.get_command(target)
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(cmd_name, cls=HelpCommand)(target)
        return typer.main.get_command(single)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by its name; an unknown name is an error that suggests the nearest one."""
        if args[0] not in self.list_commands(ctx):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            ctx.fail(f"no such command '{args[0]}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in groups, without importing them."""
        width = max(map(len, COMMANDS))
        for panel, commands in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), command.help) for name, command in commands.items()])

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C becomes `Interrupted`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(*interrupt.args) from interrupt


app = typer.Typer(
    cls=LazyGroup,
    help="Constitutional AI and RLAIF: train policies on the principles of a YAML file, evaluate and compare them.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help text: rich would cost more time than everything else
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options that stand before the command."""
    if debug:
        os.environ["CAI_DEBUG"] = "1"
    if version:
        typer.echo(f"cai {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The entry point: errors the user can fix are one message and status 2.

    Ctrl-C is status 130 and SIGTERM 143, see cai/cli/interrupts.py.

    A reader that takes only the first lines, such as `head`, is no error: status 0.
    """
    try:
        try:
            with interrupts.handled():
                _invoke()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():  # another pipe's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        sys.exit(0)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError) and end.__cause__ is None:  # rich ends so, with status 1
            sys.exit(0)
        raise


def _output_is_closed() -> bool:
    """Whether the reader of the output is gone: what it did not take cannot be flushed either."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _invoke() -> None:
    """Run the command that the arguments name, and end with its status."""
    if not os.environ.get("CAI_DEBUG"):  # the first error is reported; asyncio would print tracebacks of its like
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    os.environ.setdefault(*TORCH_LOG)  # read once, when torch is imported, which may be long before vLLM is
    atexit.register(gc.freeze)  # the interpreter's last search for garbage takes seconds where vLLM is loaded
    try:
        status = app(prog_name="cai", standalone_mode=False)
    except (KeyboardInterrupt, Interrupted) as interrupt:
        _end_interrupted(reported=bool(interrupt.args))
    except UsageError as error:
        _end_misused(error)
    except CaiError as error:
        if os.environ.get("CAI_DEBUG"):
            traceback.print_exc()
        _echo_error(str(error))
        _end(2)
    except OSError as error:
        if os.environ.get("CAI_DEBUG") or (isinstance(error, BrokenPipeError) and _output_is_closed()):
            raise
        _echo_error(error_text(error))
        raise SystemExit(2) from error
    except Exception as error:
        if os.environ.get("CAI_DEBUG"):
            raise
        _echo_error(f"{error_text(error)} (cai --debug … shows where)")
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)  # what `typer.Exit` holds


def _end_misused(error: Any) -> NoReturn:
    """End with a message about mistyped arguments: for an option its new name, what replaces it, or the nearest."""
    context = error.ctx
    path = context.command_path if context is not None else "cai"
    if context is not None and error.message == context.get_help():  # a group without a command
        typer.echo(error.message, err=True)
        sys.exit(2)
    option = getattr(error, "option_name", None)
    renamed = RENAMED_OPTIONS.get(path, {}).get(option or "")
    instead = OF_OTHERS.get(path, {}).get(option or "")
    if renamed:
        message = f"{option} is now {renamed}"
    elif instead:
        message = f"no such option {option}; {instead}"
    elif option is not None:
        near = difflib.get_close_matches(option, getattr(error, "possibilities", None) or [], n=1)
        message = f"no such option {option}" + (f"; did you mean {near[0]}?" if near else "")
    else:
        message = (
            error.format_message().strip().rstrip(".").replace(". Did you", "; did you").replace("Value error, ", "")
        )
        message = message[:1].lower() + message[1:]
        for theirs, ours in PYDANTICS.items():
            message = message.replace(theirs, ours)
        if message.startswith("no such command") and "did you mean" not in message and path != "cai":
            message += f"; expected one of {', '.join(context.command.list_commands(context))}"
    _echo_error(f"{path}: {message}")
    typer.echo(f"See {path} --help", err=True)
    sys.exit(2)


def _end_interrupted(reported: bool) -> NoReturn:
    """End with the signal's status, and with one line unless the command has printed how to resume."""
    if not reported:
        typer.echo("Interrupted.", err=True)
    interrupts.current.reported = True
    _end(interrupts.current.status)


def _end(status: int) -> NoReturn:
    """End with a status; at once where a model still loads, writes or hangs."""
    if any(thread.name == "vllm" for thread in threading.enumerate()):
        interrupts.leave(status)
    sys.exit(status)


def _echo_error(message: str) -> None:
    from cai.config.characters import visible

    typer.echo(f"error: {visible(message)}", err=True)  # it may quote a file


if __name__ == "__main__":
    main()
