"""`cai init`."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from cai.cli.console import Grid, command, echo, refuse_existing, result_console, show, write_new
from cai.cli.import_ import Reasons, echo_reasons, where
from cai.cli.options import ModelName, check_name
from cai.config.characters import visible
from cai.config.errors import CaiError, exists
from cai.config.locate import local_file
from cai.config.validation import RUN_NAME
from cai.constitution.principles import scalar, starter
from cai.data.formats import ReadSummary
from cai.data.prompts import iter_prompts, text_fields
from cai.data.records import Prompt, Skipped
from cai.inference.models import SMALL_MODEL, check_hub_id, small_model_folder
from cai.stats.formatting import counted

RUN_FILE = "run.yaml"
CONSTITUTION_FILE = "constitution.yaml"
FEW = 60  # prompts, below which a third of them is held out: a test on fewer than twenty finds large effects alone
MANY = 1000  # prompts, above which a first run takes so many
TEMPLATE = """\
# A run: what `cai run {run_file}` does, from the constitution to a trained policy. docs/run-file.md has every setting.
name: {name:<28} # of the folder in runs/; another one for each variant that you compare
seed: 0
model: {model:<27} # a known name, a folder, a Hub id, or a server's URL#NAME
constitution: {constitution:<20} # your principles: edit this file, then run again under another --name
prompts:
  source: {source}
{column}{limit}  holdout: {holdout:<23} # share kept from training, for the evaluation

revise:                            # the model answers, criticises its answer by a principle, and revises it
  rounds: 1                        # principles that each answer is revised by
  max_tokens: 384                  # a draft or revision that reaches this is cut off, and is no training example
  temperature: 1.0                 # that answers, critiques and revisions are sampled at

judge:                             # and says which of two answers is better, by the same principles
  samples: 2                       # answers to each prompt that are compared, the draft among them; 0 for none
  principles: 4                    # that each pair is judged by

train:                             # in order, each on the policy of the one before; [] makes the data alone
  - stage: dpo                     # others: sft, reward, ppo, kto, orpo, rloo, grpo, online_dpo
    num_train_epochs: 2

evaluate:                          # the policy before and after training, on the prompts held out
  constitution: plain              # what the eval judge is asked, the same for all runs that you compare
  max_tokens: 384
  temperature: 1.0
"""


def init(
    prompts: Annotated[
        str | None, typer.Argument(metavar="PROMPTS", help="File of prompts (text, CSV, JSON Lines, …) or Hub id.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the two files.")] = Path(),
    model: ModelName = SMALL_MODEL,
    column: Annotated[
        str | None, typer.Option("--column", metavar="NAME", help="Field of the file that holds the prompt.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the run.", show_default="from the prompts' file name"),
    ] = None,
) -> None:
    """Start a project: a run file and a constitution for your prompts.

    Writes run.yaml and constitution.yaml, with comments, and prints the next commands. In a terminal, asks for what is
    not given; elsewhere a missing argument is an error.
    """
    asks = sys.stdin.isatty()
    for file_name in (RUN_FILE, CONSTITUTION_FILE):
        refuse_existing(out / file_name)
    if name is not None:
        check_name(name)
    if "/" not in model and model != SMALL_MODEL and not exists(Path(model)):
        check_hub_id(model)
    if prompts is None:
        if not asks:
            raise CaiError("PROMPTS: expected a file of prompts, such as `cai init questions.txt`")
        prompts = typer.prompt("File of prompts, or dataset of the Hub").strip()
    file = local_file(prompts)
    if column is None:
        column = _prompt_column(file, asks)
    summary = ReadSummary()
    count, reasons = _count(iter_prompts(file, summary, column))
    if not count:
        raise CaiError(f"{file}: no prompts in this file")
    if name is None:
        derived = _derived_name(prompts)
        name = check_name(typer.prompt("Name of the run", default=derived).strip()) if asks else derived
    source = _source(file, out) if Path(prompts).exists() else prompts  # a dataset of the Hub keeps its id
    more = count > MANY
    settings = {
        "name": name,
        "run_file": str(out / RUN_FILE),
        "model": scalar(model),
        "constitution": CONSTITUTION_FILE,
        "source": scalar(source),
        "column": "" if column is None else f"  column: {scalar(column)}\n",
        "limit": f"  limit: {MANY:<25} # of more; delete this line to use all\n" if more else "",
        "holdout": "0.33" if count < FEW else "0.25",
    }
    out.mkdir(parents=True, exist_ok=True)
    write_new(out / CONSTITUTION_FILE, starter(out.resolve().name or "constitution"))
    write_new(out / RUN_FILE, TEMPLATE.format(**settings))
    formats = ", ".join(summary.formats) or "prompt"
    echo(f"Read {'more than ' if more else ''}{counted(min(count, MANY), 'prompts')} from {prompts} ({formats}).")
    echo_reasons(reasons)
    echo(f"Wrote {out / CONSTITUTION_FILE} and {out / RUN_FILE}. Next:")
    _next_commands(out / CONSTITUTION_FILE, out / RUN_FILE, model)


def _next_commands(constitution: Path, run_file: Path, model: str) -> None:
    grid = Grid(["", ""], left=2, last_left=True)
    if model == SMALL_MODEL and not small_model_folder().exists():
        grid.add(command("models", "prepare"), f"unpacks {SMALL_MODEL}, once")
    grid.add(f"edit {constitution}", "write your principles")
    grid.add(command("constitution", "lint", constitution), "checks them")
    grid.add(command("try", constitution, "-p", "A PROMPT"), "shows what they do to an answer")
    grid.add(command("run", run_file, "--dry-run"), "counts the calls of a run")
    grid.add(command("run", run_file), "runs it")
    show(result_console(), grid)


def _count(rows: Iterable[Prompt | Skipped]) -> tuple[int, Reasons]:
    """The number of prompts, at most one above MANY, and why rows before the last of them were skipped."""
    count, reasons = 0, Reasons()
    for row in rows:
        if isinstance(row, Skipped):
            reasons.setdefault(row.reason, []).append(where(row))
        else:
            count += 1
        if count > MANY:
            break
    return count, reasons


def _derived_name(prompts: str) -> str:
    """A run's name after its file of prompts or dataset of the Hub: `my-questions` for `data/my questions.csv`."""
    last = prompts.rstrip("/").rpartition("/")[2].partition(":")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last.partition(".")[0]).strip("-._")
    return name if re.fullmatch(RUN_NAME, name) else "run"


def _source(file: Path, folder: Path) -> str:
    """A local file as a run file in `folder` names it: relative to that folder where it lies in or below it.

    Elsewhere, or where the same name is another file seen from the working directory, which comes first: in full.
    """
    path, home = file.resolve(), folder.resolve()
    if not path.is_relative_to(home):
        return str(path)
    relative = path.relative_to(home)
    shadowed = relative.exists() and not relative.samefile(path)
    return str(path) if shadowed else str(relative)


def _prompt_column(file: Path, asks: bool) -> str | None:
    """The field that holds the prompt where the file's format is unknown, asked for if `asks`; None where it is known.

    Raises: CaiError for an unknown format of a file whose fields are no texts, or that nobody can be asked about.
    """
    try:
        next(iter_prompts(file), None)
        return None
    except CaiError:
        fields = text_fields(file)
        if not fields:
            raise
    names = ", ".join(map(visible, fields))
    if not asks:
        first = visible(next(iter(fields)))
        raise CaiError(
            f"{file}: no field is the prompt by its name (found {names}); name one, such as --column {first}"
        )
    echo(f"{file}: which field holds the prompt?")
    for field, sample in fields.items():
        echo(f"  {visible(field)}: {visible(sample[:60])}")
    return str(typer.prompt("Field", default=next(iter(fields))))
