"""axe-core, which finds what people with assistive technology cannot use, on every kind of page in a real browser."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from cai.compare.compare import compare_runs
from cai.data.manifest import exclusive
from cai.report.comparison import comparison_report, read_comparison
from cai.report.judge import write_judge_page
from cai.report.run import read_run, run_report
from cai.report.serve import open_server
from cai.runs.folder import RunFolder
from tests.report.conftest import Tab
from tests.report.folders import write_run
from tests.report.test_judge import write_evaluation
from tests.report.test_run import full


def long_texts(name: str) -> Callable[[str, int], str]:
    """Revisions and answers that differ between runs, and scroll in their place."""
    return lambda what, n: (
        f"{name} writes {n} " + "slowly, " * 150 if what in ("revision", "after") else f"the {what} of number {n}"
    )


def write_sweep(runs: Path) -> None:
    """A sweep of one run under way, and one that waits."""
    write_run(runs / "trial/seed-0").summary_json.unlink()
    (runs / "trial/seed-0/log.txt").write_text("2026-11-30T18:37:57   feedback: 3/8 calls\n", encoding="utf-8")
    members = [{"run": f"seed-{n}", "varies": {"seed": n}, "principles": {"how": "all"}} for n in (0, 1)]
    (runs / "trial/sweep.json").write_text(json.dumps({"name": "trial", "runs": members}), encoding="utf-8")


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The address of each page, with a run under way in the lists."""
    path = tmp_path_factory.mktemp("pages")
    folders = [write_run(path / "runs" / name, prompts=9, say=long_texts(name)) for name in ("ann", "bob")]
    for folder in folders:
        (folder.eval / "evaluation.json").write_text(full().model_dump_json(), encoding="utf-8")
    write_sweep(path / "runs")
    files = {"run": path / "report.html", "comparison": path / "comparison.html"}
    files["run"].write_text(run_report(folders[0], read_run(folders[0])), encoding="utf-8")
    contents = read_comparison(compare_runs(folders), folders)
    files["comparison"].write_text(comparison_report(contents), encoding="utf-8")
    write_evaluation(path / "judge")
    files["judge"] = write_judge_page(path / "judge")
    with open_server(path / "runs", "127.0.0.1", 0) as server, exclusive(RunFolder(path / "runs/trial/seed-0").path):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        served = {"list": "", "sweep": "sweep?sweep=trial", "served run": "report?run=ann"}
        yield {name: file.as_uri() for name, file in files.items()} | {n: server.url + at for n, at in served.items()}
        server.shutdown()
        thread.join()


def violations(page: Any) -> list[str]:
    """What axe finds on the page as it is, with everything unfolded: the rule, how bad it is, and the element."""
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    found = Axe().run(page).response["violations"]
    return [f"{v['id']} ({v['impact']}): {node['html'][:200]}" for v in found for node in v["nodes"]]


def on_each_screen(page: Any) -> list[str]:
    """The violations on a large and a small screen, light and dark."""
    found = []
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += [f"{width} {scheme}: {violation}" for violation in violations(page)]
    return found


@pytest.mark.parametrize("name", ["judge", "list", "sweep"])
def test_axe_finds_nothing(chromium: Any, addresses: dict[str, str], name: str) -> None:
    page = Tab(chromium).page
    page.goto(addresses[name])
    assert on_each_screen(page) == []
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "comparison", "served run"])
def test_axe_finds_nothing_in_a_report_with_its_plots_and_in_an_open_example(
    chromium: Any, addresses: dict[str, str], name: str
) -> None:
    page = Tab(chromium).open(addresses[name])
    page.locator("[data-plot]").first.scroll_into_view_if_needed()
    page.wait_for_selector("[data-drawn]")
    assert on_each_screen(page) == []
    page.locator("#lines tbody button").first.click()
    page.get_by_role("dialog").wait_for()
    assert on_each_screen(page) == []
    page.close()
