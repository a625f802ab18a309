"""The card of a run published as a dataset (https://huggingface.co/docs/hub/datasets-cards).

Text of people or models is in code blocks, where no Markdown or HTML in it takes effect.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cai import __version__
from cai.config.characters import visible
from cai.config.hashing import fingerprint
from cai.config.yaml_files import read_text
from cai.data.records import Messages, Preference, Revision
from cai.evaluation.judge_report import judge_metrics, read_judge_report
from cai.feedback.label import JUDGE_JSON
from cai.feedback.metrics import RUN_METRICS
from cai.feedback.pairs import LABEL_MASS, LABEL_MASS_MEANING, label_mass_text
from cai.runs.folder import RunFolder
from cai.runs.metrics import summarise, summary_metrics

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
KINDS = {
    "preferences": "a pair of answers; `p` is the probability that `chosen` is better",
    "revisions": "a round of one prompt: draft, principle, critique, revision, flags",
    "rankings": "the answers to one prompt, best first, with Bradley–Terry strengths in log-odds",
    "evaluation": "a held-out prompt answered before and after training",
    "prompts": "a prompt; `test` was held out from training",
}
BY_JUDGE = {
    "preferences": "`verdicts` are the principles'",
    "evaluation": "`p` is P(after is better) by the eval judge",
}
"""What rows of these kinds have besides, where a judge rated them."""
SAMPLE = 1500  # characters of a text on the card


class File(NamedTuple):
    """A split of a configuration: its file in the dataset, how many rows it has, and its fingerprint."""

    config: str
    split: str
    path: str
    rows: int
    fingerprint: str


class Made(NamedTuple):
    """What a run made: the kinds of its rows, and whether a judge labelled pairs or the evaluation."""

    kinds: frozenset[str]
    judged: bool
    eval_judged: bool

    @classmethod
    def of(cls, run: RunFolder, files: Sequence[File]) -> "Made":
        """What the rows of a run say, and its judge gate."""
        judged = (run.judge / JUDGE_JSON).exists() or any(row.all_verdicts for row in run.preferences())
        eval_judged = any(row.p is not None for row in run.evaluation())
        return cls(frozenset(file.config for file in files), judged, eval_judged)

    def texts(self, verdicts: bool = False) -> str:
        """What models wrote: `answers, critiques and revisions`."""
        written = ["answers", *(["critiques", "revisions"] if "revisions" in self.kinds else [])]
        *first, last = [*written, *(["verdicts"] if verdicts else [])]
        return f"{', '.join(first)} and {last}" if first else last

    def kind(self, name: str) -> str:
        """What a row of a kind is."""
        rated = {"preferences": self.judged, "evaluation": self.eval_judged}.get(name, False)
        return f"{KINDS[name]}; {BY_JUDGE[name]}" if rated else KINDS[name]


def card(run: RunFolder, files: Sequence[File], licence: str) -> str:
    """The text of README.md, with the header by which `datasets` finds the files."""
    made = Made.of(run, files)
    parts = [
        f"---\n{_header(run, files, licence)}---",
        f"# {visible(run.name)}",
        _intro(run),
        _contents(files, made),
        f"## Constitution\n\nThe principles, verbatim:\n\n{_block(read_text(run.constitution_yaml), 'yaml')}",
        _models(run, licence, made),
        _quality(run, made),
        _sample(run),
        _limitations(made),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(run: RunFolder, files: Sequence[File], licence: str) -> str:
    rows = sum(file.rows for file in files)
    configs: dict[str, list[File]] = {}
    for file in files:
        configs.setdefault(file.config, []).append(file)
    header = {
        "pretty_name": run.name,
        "license": licence,
        "size_categories": [next((name for bound, name in SIZES if rows < bound), "n>1M")],
        "task_categories": ["text-generation"],
        "tags": ["constitutional-ai", "rlaif", *(["preference"] if "preferences" in configs else []), "synthetic"],
        "configs": [
            {
                "config_name": name,
                "data_files": [{"split": file.split, "path": file.path} for file in listed],
                # `datasets` caches rows by the folder's name and this header: equal ones would be loaded as one.
                "description": f"fingerprint {fingerprint(*(file.fingerprint for file in listed))}",
            }
            | ({"default": True} if number == 0 else {})
            for number, (name, listed) in enumerate(configs.items())
        ],
    }
    return str(yaml.safe_dump(header, allow_unicode=True, sort_keys=False))


def _intro(run: RunFolder) -> str:
    manifest = run.manifest()
    state = "" if run.summary() else " **The run was not finished when this card was written.**"
    return (
        f"Generated by cai {__version__} (Constitutional AI, [Bai et al. 2022](https://arxiv.org/abs/2212.08073)) with "
        f"{len(manifest['constitution']['principles'])} principles; model and settings are below.{state}"
    )


def _contents(files: Sequence[File], made: Made) -> str:
    lines = [f"| `{file.config}` | {file.split} | {file.rows:,} | {made.kind(file.config)} |" for file in files]
    example = f'datasets.load_dataset(FOLDER_OR_ID, "{files[0].config}", split="{files[0].split}")'
    table = "\n".join(["| configuration | split | rows | one row is |", "|---|---|---|---|", *lines])
    return f"{table}\n\n{_block(example, 'python')}"


def _models(run: RunFolder, licence: str, made: Made) -> str:
    manifest = run.manifest()
    config = _without_folders(manifest["config"])
    model, judge = config["model"], config["judge"].get("model") or "the same model"
    judges = ", ".join(map(str, judge)) if isinstance(judge, list) else str(judge)
    evaluated = "evaluation" in made.kinds
    sections = {"revise": "revisions" in made.kinds, "judge": made.judged, "train": True, "evaluate": evaluated}
    settings = {key: config[key] for key, used in sections.items() if used and config.get(key)}
    constitutions = ["constitution", *(["eval_constitution"] if made.eval_judged else [])]
    facts = {
        "model": f"{model} (fingerprint {manifest['model']})",
        **({"judge": f"{judges} (fingerprint {', '.join(map(str, manifest['judge_models']))})"} if made.judged else {}),
        **{key: "{name}, fingerprint {fingerprint}".format(**manifest[key]) for key in constitutions},
        "templates": f"fingerprint {manifest['templates']}",
        "prompts": f"{config['prompts']['source']}, fingerprint {manifest['prompts']}",
        "seed": str(config["seed"]),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    }
    eval_judge = (config.get("evaluate") or {}).get("judge") or judges
    of_judges = dict.fromkeys([*([judges] if made.judged else []), *([eval_judge] if made.eval_judged else [])])
    licences = {
        "this dataset": "not stated" if licence == "unknown" else licence,
        "prompts": f"not stated; that of {config['prompts']['source']}",
        made.texts(): f"subject to the terms of the model {model}",
        **({"verdicts": f"subject to the terms of the judge, {' and '.join(of_judges)}"} if of_judges else {}),
    }
    return "\n\n".join(
        [
            "## Generation",
            _block(yaml.safe_dump(facts, allow_unicode=True, sort_keys=False, width=200), "yaml"),
            _block(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False, width=200), "yaml"),
            "## Licences",
            _block(yaml.safe_dump(licences, allow_unicode=True, sort_keys=False, width=200), "yaml"),
        ]
    )


def _without_folders(value: Any) -> Any:
    """Settings with the names of files and servers, but not their locations."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    is_elsewhere = isinstance(value, str) and (Path(value).is_absolute() or "://" in value)
    return Path(value).name if is_elsewhere else value


def _limitations(made: Made) -> str:
    verdicts = made.judged or made.eval_judged
    drafts = ": drafts are kept beside their revisions" if "revisions" in made.kinds else ""
    bias = " A judge's position bias affects its labels." if verdicts else ""
    return (
        f"## Limitations\n\nModels wrote the {made.texts(verdicts)}.{bias} "
        f"Prompts may be adversarial on purpose and answers harmful{drafts}."
    )


def _quality(run: RunFolder, made: Made) -> str:
    summary = summarise(run)
    labels = summary["preferences"]
    rows = [(f"pairs by {source}", str(count)) for source, count in labels["by_source"].items()]
    if labels["label_mass"]:
        rows.append((f"{LABEL_MASS}: {LABEL_MASS_MEANING}", label_mass_text(labels["label_mass"])))
    rows += [
        (f"{RUN_METRICS[key].name}: {RUN_METRICS[key].meaning}", RUN_METRICS[key].shown(estimate))
        for key, estimate in summary_metrics(summary).items()
    ]
    if trainings := summary.get("trainings"):
        rows.append(
            ("trainings: with other seeds; the metrics of answers after training are means", str(len(trainings)))
        )
    rows += [(f"judge on labelled pairs: {name}", value) for name, value in _gate(run)]
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) if rows else ""
    reasons = [f"{count} × {reason}" for reason, count in summary["skipped"]["reasons"].items()]
    reasons += [f"{summary['skipped']['failed']} failed"] if summary["skipped"]["failed"] else []
    skipped = f"Skipped:\n\n{_block(chr(10).join(reasons))}" if reasons else ""
    explained = []
    if "revisions" in made.kinds:
        explained.append(
            "Revisions that fail a filter (empty, unchanged, truncated, copied …) are flagged and excluded."
        )
    if made.judged or made.eval_judged:
        explained.append(
            "Position bias is 0.5 for a judge that answers at random, and 1 for one that looks at the position alone."
        )
    parts = [" ".join(explained), table, skipped]
    return "\n\n".join(["## Quality", *filter(None, parts)]) if any(parts) else ""


def _gate(run: RunFolder) -> list[tuple[str, str]]:
    path = run.judge / JUDGE_JSON
    if not path.exists():
        return []
    return [(metric.name, metric.value) for metric in judge_metrics(read_judge_report(path))]


def _sample(run: RunFolder) -> str:
    revision = next((row for row in run.revisions() if not row.flags and not row.stays), None)
    judged = next((row for row in run.preferences() if row.source != "revision"), None)
    shown = _revision(revision) if revision else []
    if judged:
        same_prompt = revision is not None and revision.messages == judged.messages
        shown += _pair(judged)[same_prompt:]
    texts = [f"{title}\n\n{_block(text[:SAMPLE] + ('…' if len(text) > SAMPLE else ''))}" for title, text in shown]
    return "\n\n".join(["## Example", *texts]) if texts else ""


def _revision(row: Revision) -> list[tuple[str, str]]:
    parts = [("Prompt", _conversation(row.messages)), ("Answer before the revision", row.before)]
    if row.critique is not None:
        parts.append((f"Critique, by the principle `{row.principle_id}`", row.critique))
    return [*parts, (f"Revision, by the principle `{row.principle_id}`", row.revision)]


def _pair(row: Preference) -> list[tuple[str, str]]:
    label = f"P(chosen better) = {row.p:.4f}, by {row.source}"
    return [
        ("Prompt of a labelled pair", _conversation(row.messages)),
        ("Chosen", row.chosen),
        (f"Rejected; {label}", row.rejected),
    ]


def _conversation(messages: Messages) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


def _block(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any in the text, with control characters escaped."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip(chr(10))}\n{fence}"
