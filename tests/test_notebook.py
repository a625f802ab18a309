"""examples/notebook.ipynb runs from its first cell to its last; examples/colab.ipynb, which needs a GPU, is checked as text."""

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

from tests.compare.made import make_run, principles
from tests.conftest import ROOT

NOTEBOOK, COLAB = ROOT / "examples/notebook.ipynb", ROOT / "examples/colab.ipynb"


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


@pytest.mark.parametrize("path", [NOTEBOOK, COLAB])
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(nbformat.read(path, as_version=4))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "python3" in KernelSpecManager().find_kernel_specs()


def test_the_notebook_for_a_gpu_asks_for_what_there_is_and_says_that_it_was_not_run() -> None:
    text = COLAB.read_text(encoding="utf-8")
    assert "Not run on a GPU yet" in text
    cells = nbformat.read(COLAB, as_version=4).cells
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    commands = [line.removeprefix("!cai ").split() for line in lines if line.startswith("!cai ")]
    assert [command[0] for command in commands] == ["run", "run", "run", "compare"]
    assert all((ROOT / command[1]).exists() for command in commands if command[0] == "run")
    assert {name for c in commands if c[0] == "run" for name in c if name.startswith("t4-")} == set(commands[-1][1:])
    for cell in cells:
        if cell.id in ("rows", "metrics"):
            ast.parse(cell.source)


@pytest.mark.slow
def test_the_notebook_runs_on_a_scripted_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    check(execute(tmp_path, monkeypatch, model_folder, SCRIPTED))
