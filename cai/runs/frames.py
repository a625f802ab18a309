"""A run's rows as Arrow tables, for notebooks."""

from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cai.data.files import arrow_schema
from cai.data.jsonl import each_row
from cai.data.records import Comparison, Preference, Prompt, Ranking, Revision, Skipped
from cai.runs.folder import RunFolder, open_run
from cai.training.metrics import read_metrics

if TYPE_CHECKING:
    import pyarrow


GROUP = 5000  # rows that are turned into columns at once


def load(run: str | Path, runs: str | Path = "runs") -> "RunTables":
    """The tables of a run, given by its folder or by its name below `runs`; raises CaiError when there is none."""
    return RunTables(open_run(str(run), Path(runs)))


class RunTables:
    """A run's files as pyarrow tables, each read when it is first asked for; `.to_pandas()` makes data frames of them.

    Columns are the fields of the rows in cai/data/records.py. A file that a run does not have is a table without rows.
    Raises: CaiError naming file, line and field for a row of another form.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @cached_property
    def prompts(self) -> "pyarrow.Table":
        """All prompts, training and held out."""
        return _table(self.folder.prompts_jsonl, Prompt)

    @cached_property
    def revisions(self) -> "pyarrow.Table":
        """A row a prompt and round: draft, principle, critique, revision, flags."""
        return _table(self.folder.revisions_jsonl, Revision)

    @cached_property
    def preferences(self) -> "pyarrow.Table":
        """A row a labelled pair, with the verdicts of every principle in both orders."""
        return _table(self.folder.preferences_jsonl, Preference)

    @cached_property
    def rankings(self) -> "pyarrow.Table":
        """A row a prompt with more than two judged samples."""
        return _table(self.folder.rankings_jsonl, Ranking)

    @cached_property
    def evaluation(self) -> "pyarrow.Table":
        """A row a held-out prompt, answered before and after training."""
        return _table(self.folder.evaluation_jsonl, Comparison)

    @cached_property
    def skipped(self) -> "pyarrow.Table":
        """What the run did not use, and why."""
        return _table(self.folder.skipped_jsonl, Skipped)

    @cached_property
    def metrics(self) -> "pyarrow.Table":
        """A row an update of training: `stage`, `step`, and every number that any stage logged (null where not)."""
        import pyarrow

        rows = [row for path in sorted(self.folder.train.glob("*/metrics.jsonl")) for row in _metrics(path)]
        names = dict.fromkeys(name for row in rows for name in row if name not in ("stage", "step"))
        fields = [("stage", pyarrow.string()), ("step", pyarrow.int64())]
        schema = pyarrow.schema([*fields, *((name, pyarrow.float64()) for name in names)])
        return pyarrow.Table.from_pylist(rows, schema=schema)


def _table(path: Path, model: type[BaseModel]) -> "pyarrow.Table":
    import pyarrow

    schema, groups = arrow_schema(model), []
    rows = each_row(path, model) if path.exists() else iter(())
    while group := list(islice(rows, GROUP)):
        columns = [pyarrow.array([_plain(getattr(row, f.name)) for row in group], f.type) for f in schema]
        groups.append(pyarrow.RecordBatch.from_arrays(columns, schema=schema))
    return pyarrow.Table.from_batches(groups, schema=schema)


def _plain(value: Any) -> Any:
    """A field's value with the rows inside it, such as verdicts, as dicts."""
    nested = isinstance(value, list) and value and isinstance(value[0], BaseModel)
    return [inside.model_dump() for inside in value] if nested else value


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a stage's log; what is no number is left out of a line, and no finite number stays what it is."""
    return [
        {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        | {"stage": path.parent.name, "step": line["step"]}
        for line in read_metrics(path)
    ]
