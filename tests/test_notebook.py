"""examples/notebook.ipynb runs from its first cell to its last."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from tests.compare.made import make_run, principles
from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples/notebook.ipynb"


SCRIPTED = """
import functools
import cai
from tests.conftest import scripted
cai.revise, cai.judge = (functools.partial(f, open_engine=scripted()) for f in (cai.revise, cai.judge))
"""


def execute(folder: Path, monkeypatch: pytest.MonkeyPatch, model: Path | str, first_cell: str = "") -> dict[str, str]:
    """The text that each cell shows, by the cell's id; an error in a cell is raised. `first_cell` runs before all."""
    run = make_run(folder / "runs/made", principles("calm", "short"), lambda i, drawn: f"{i} {drawn}")
    run.summary_json.unlink()  # the metrics come from the rows
    monkeypatch.setenv("CAI_NOTEBOOK_MODEL", str(model))
    monkeypatch.setenv("CAI_NOTEBOOK_RUN", "runs/made")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first_cell))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.id: "".join(map(shown, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"}


def shown(output: Any) -> str:
    return str(output.get("text", "")) or str(output.get("data", {}).get("text/plain", ""))


def check(shows: dict[str, str]) -> None:
    assert "principle_id" in shows["revise"] and "revising: " in shows["revise"]
    assert "chosen" in shows["judge"] and "judging: " in shows["judge"]
    assert "name" in shows["run"]
    assert "calm" in shows["table"] and "short" in shows["table"]


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "python3" in KernelSpecManager().find_kernel_specs()


@pytest.mark.slow
def test_the_notebook_runs_on_a_scripted_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    check(execute(tmp_path, monkeypatch, model_folder, SCRIPTED))
