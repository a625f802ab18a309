"""Commands that ask or train a model: `cai run`, `sweep`, `train`, `judge`, `judge-eval`, `eval`, `try`."""

from pathlib import Path
from typing import Annotated

import typer

from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.config.errors import CaiError
from cai.inference.models import SMALL_MODEL

app = typer.Typer(rich_markup_mode=None)


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
    eval_constitution: Annotated[
        str | None, typer.Option("--constitution", help="A constitution to judge by [the run's eval judge].")
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
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over an evaluation made with other options.")
    ] = False,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Measure a policy: win rates, probes, reward hacking.

    Against others by a judge, on two axes (helpful and safe), on probes of refusal, flattery and red-team prompts,
    and for signs of reward hacking.
    """
    from cai.cli.evaluate import evaluate_and_print
    from cai.runs.evaluating import Options

    options = Options(
        policy, against or [], reference, prompts, eval_constitution, judge, probes, limit, settings or []
    )
    evaluate_and_print(options, out, replace, runs)


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
