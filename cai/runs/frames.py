"""A run's rows as Arrow tables and data frames, for notebooks.

run = load_run("runs/quickstart")
run.revisions.to_pandas().groupby("principle_id").size()
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cai.config.errors import CaiError
from cai.constitution.principles import Constitution
from cai.data.files import arrow_schema
from cai.data.jsonl import each_row
from cai.data.records import BeforeAfter, Preference, Prompt, Ranking, Revision, Skipped
from cai.evaluation.policy_report import each_before_after
from cai.feedback.metrics import RUN_METRICS
from cai.runs.folder import RunFolder, open_run
from cai.runs.metrics import policy_means, run_estimates, summary_metrics, values_by_prompt
from cai.stats.intervals import Estimate
from cai.training.tracking import read_metrics

if TYPE_CHECKING:
    import pyarrow


GROUP = 5000  # rows converted into columns at once


def load_run(run: str | Path, runs: str | Path = "runs") -> "Run":
    """A run by its folder, or by its name in `runs`. Raises: CaiError for none, or for a run of cai 0.1."""
    return Run(open_run(str(run), Path(runs)))


class Run:
    """A run's rows as pyarrow tables, each read on first access; `.to_pandas()` converts one into a data frame.

    Columns are the fields of the rows in cai/data/records.py. A file that the run does not have is an empty table.
    Raises: CaiError naming file, line and field for an invalid row.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The run's name; prefixed for an iteration or a run in a sweep: `sweep/run`."""
        return self.folder.name

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None while the run is unfinished."""
        return self.folder.summary()

    @cached_property
    def constitution(self) -> Constitution:
        """The run's constitution."""
        return self.folder.constitution()

    @cached_property
    def prompts(self) -> "pyarrow.Table":
        """One row per training prompt."""
        return self._prompts(held_out=False)

    @cached_property
    def held_out(self) -> "pyarrow.Table":
        """One row per prompt that was held out from training."""
        return self._prompts(held_out=True)

    def _prompts(self, held_out: bool) -> "pyarrow.Table":
        """Rows of prompts.jsonl, which holds both kinds."""
        of_manifest = set(self.folder.manifest().get("held_out") or ())
        path = self.folder.prompts_jsonl
        rows = each_row(path, Prompt) if path.exists() else ()
        return rows_table((row for row in rows if (row.id in of_manifest) == held_out), Prompt)

    @cached_property
    def revisions(self) -> "pyarrow.Table":
        """One row per prompt and round: draft, principle, critique, revision, flags."""
        return _table(self.folder.revisions_jsonl, Revision)

    @cached_property
    def preferences(self) -> "pyarrow.Table":
        """One row per labelled pair, with the verdicts of its principles in both orders."""
        return _table(self.folder.preferences_jsonl, Preference)

    @cached_property
    def rankings(self) -> "pyarrow.Table":
        """One row per prompt with more than two judged samples."""
        return _table(self.folder.rankings_jsonl, Ranking)

    @cached_property
    def evaluation(self) -> "pyarrow.Table":
        """One row per held-out prompt, answered before and after the first training."""
        return rows_table(each_before_after(self.folder.eval), BeforeAfter)

    @cached_property
    def skipped(self) -> "pyarrow.Table":
        """The rows that the run did not use, and why."""
        return _table(self.folder.skipped_jsonl, Skipped)

    @cached_property
    def metric_values(self) -> "pyarrow.Table":
        """A row a metric and prompt: `key`, `name`, `prompt_id`, `value`; a metric is the mean of its rows."""
        import pyarrow

        folder = self.folder
        values = values_by_prompt(folder.revisions(), folder.preferences(), policy_means(folder))
        rows = [
            {"key": key, "name": RUN_METRICS[key].name, "prompt_id": prompt_id, "value": value}
            for key, by_prompt in values.items()
            for prompt_id, value in by_prompt.items()
        ]
        texts = [(name, pyarrow.string()) for name in ("key", "name", "prompt_id")]
        return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema([*texts, ("value", pyarrow.float64())]))

    @cached_property
    def metrics(self) -> "pyarrow.Table":
        """A row a metric: `key`, `name`, `mean`, `low` and `high` (its 95 % interval, or null), `n` prompts.

        The summary's metrics, of those that any row says something about.
        """
        import pyarrow

        rows = [
            {"key": key, "name": RUN_METRICS[key].name, **estimate._asdict()}
            for key, estimate in self._estimates().items()
            if estimate is not None
        ]
        fields = [("key", pyarrow.string()), ("name", pyarrow.string())]
        fields += [(name, pyarrow.float64()) for name in ("mean", "low", "high")]
        return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema([*fields, ("n", pyarrow.int64())]))

    @cached_property
    def updates(self) -> "pyarrow.Table":
        """One row per logged update of every stage of the first training, see `updates_table`."""
        return updates_table(sorted(self.folder.train.glob("*/metrics.jsonl")))

    def _estimates(self) -> Mapping[str, Estimate | None]:
        summary, folder = self.summary, self.folder
        if summary is None:
            return run_estimates(folder.revisions(), folder.preferences(), policy_means(folder))
        try:
            return summary_metrics(summary)
        except (KeyError, TypeError):
            raise CaiError(f"{folder.summary_json}: not a summary of this version of cai; run it again") from None


def updates_table(logs: Iterable[Path]) -> "pyarrow.Table":
    """One row per logged update: `stage`, `step`, and every number that any stage logs (null elsewhere).

    The stage of a metrics.jsonl is the name of its folder.
    """
    import pyarrow

    rows = [row for path in logs for row in _metrics(path)]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("stage", "step"))
    fields = [("stage", pyarrow.string()), ("step", pyarrow.int64())]
    schema = pyarrow.schema([*fields, *((name, pyarrow.float64()) for name in names)])
    return pyarrow.Table.from_pylist(rows, schema=schema)


def _table(path: Path, model: type[BaseModel]) -> "pyarrow.Table":
    return rows_table(each_row(path, model) if path.exists() else (), model)


def rows_table(rows: Iterable[BaseModel], model: type[BaseModel]) -> "pyarrow.Table":
    """Rows of one kind as an Arrow table, a column a field."""
    import pyarrow

    schema, groups, remaining = arrow_schema(model), [], iter(rows)
    while group := list(islice(remaining, GROUP)):
        columns = [pyarrow.array([_plain(getattr(row, f.name)) for row in group], f.type) for f in schema]
        groups.append(pyarrow.RecordBatch.from_arrays(columns, schema=schema))
    return pyarrow.Table.from_batches(groups, schema=schema)


def _plain(value: Any) -> Any:
    """A field's value with the rows inside it, such as verdicts, as dicts."""
    nested = isinstance(value, list) and value and isinstance(value[0], BaseModel)
    return [inside.model_dump() for inside in value] if nested else value


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a stage's log, their numbers alone; infinities and NaN stay."""
    return [
        {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        | {"stage": path.parent.name, "step": line["step"]}
        for line in read_metrics(path)
    ]
