"""`cai serve` in a real browser."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from cai.data.manifest import exclusive
from cai.report.run import read_run, run_report
from cai.report.serve import open_server
from cai.report.table import Query, select
from tests.report.conftest import Tab
from tests.report.folders import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs / "one", prompts=120)
    write_run(
        runs / "two",
        prompts=120,
        say=lambda what, n: f"another {what} of number {n}" if what == "after" else f"the {what} of number {n}",
    )
    return runs


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with open_server(runs, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture
def tab(chromium: Any, address: str) -> Iterator[Tab]:
    tab = Tab(chromium, viewport={"width": 1200, "height": 250})
    yield tab
    tab.page.close()
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith((address, "about:"))] == []


def shown(page: Any) -> list[str]:
    return page.locator("#lines tbody button").all_inner_texts()


def test_runs_are_searched_opened_and_compared_from_the_list(tab: Tab, address: str) -> None:
    page = tab.page
    page.goto(address)
    page.get_by_label("Filter").fill("TWO")
    expect(page.locator("tbody tr:visible")).to_have_count(1)
    page.get_by_label("Filter").fill("")
    page.get_by_role("button", name="run", exact=True).click()
    assert page.locator("tbody a").all_inner_texts() == ["one", "two"]
    compare = page.get_by_role("button", name="Compare")
    assert compare.is_disabled()
    page.get_by_label("compare two").check()
    page.get_by_label("compare one").check()
    assert page.locator("#chosen").inner_text() == "A: two, B: one"
    compare.click()
    expect(page.locator("h1")).to_have_text("A: two vs B: one")
    expect(page.locator("#matches")).to_have_text("120 of 120 examples")
    page.get_by_role("link", name="All runs").click()
    page.get_by_role("link", name="one", exact=True).click()
    expect(page.locator("h1")).to_have_text("one")


def test_a_run_under_way_is_followed_until_it_ends_and_what_was_chosen_stays(
    chromium: Any, address: str, runs: Path
) -> None:
    folder = write_run(runs / "four", prompts=6)
    summary = folder.summary_json.read_bytes()
    folder.summary_json.unlink()
    folder.log.write_text("2026-11-30T18:37:57   feedback: 3/8 calls\n", encoding="utf-8")
    tab = Tab(chromium)
    page = tab.page
    row = page.locator("tr", has=page.get_by_role("link", name="four", exact=True))
    with exclusive(folder.path):
        page.goto(address)
        expect(row).to_contain_text("running")
        expect(row.get_by_role("progressbar")).to_have_attribute("value", "3")
        page.get_by_label("compare four").check()
        page.get_by_label("Filter").fill("fou")
        folder.log.write_text("2026-11-30T18:38:57   feedback: 7/8 calls\n", encoding="utf-8")
        expect(row.get_by_role("progressbar")).to_have_attribute("value", "7")
        folder.summary_json.write_bytes(summary)
    expect(row).to_contain_text("finished")
    assert page.get_by_label("compare four").is_checked()
    expect(page.locator("tbody tr:visible")).to_have_count(1)
    followed = len(tab.requests)
    page.wait_for_timeout(3000)  # more than a turn
    assert (len(tab.requests), tab.errors) == (followed, [])
    page.close()
    shutil.rmtree(folder.path)


def test_two_runs_of_a_sweep_are_compared_from_its_page(tab: Tab, address: str, runs: Path) -> None:
    for name in ("seed-0", "seed-1"):
        write_run(runs / "trial" / name, prompts=6)
    members = [{"run": f"seed-{n}", "varies": {"seed": n}, "principles": {"how": "all"}} for n in (0, 1)]
    (runs / "trial/sweep.json").write_text(json.dumps({"name": "trial", "runs": members}), encoding="utf-8")
    page = tab.page
    page.goto(address)
    page.get_by_role("link", name="trial", exact=True).click()
    expect(page.locator("h1")).to_have_text("Sweep trial")
    page.get_by_role("button", name="seed", exact=True).click()
    for _ in range(2):
        page.get_by_role("button", name="seed", exact=True).click()
    for name in ("seed-1", "seed-0"):
        page.get_by_label(f"compare trial/{name}").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("h1")).to_have_text("A: trial/seed-1 vs B: trial/seed-0")
    expect(page.locator("#matches")).to_have_text("6 of 6 examples")
    page.go_back()
    page.get_by_role("link", name="seed-0").click()
    expect(page.locator("h1")).to_have_text("trial/seed-0")
    page.wait_for_selector("html[data-ready=yes]")
    shutil.rmtree(runs / "trial")


def test_a_large_run_is_paged_filtered_and_opened_from_its_files(tab: Tab, address: str) -> None:
    page = tab.open(f"{address}report?run=one#open=p99")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", level=2)).to_have_text("p99")
    expect(dialog).to_contain_text("the after of number 99")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Next page").click()
    expect(page.locator("#lines tbody button").first).to_have_text("p50")
    page.get_by_label("flag", exact=True).select_option("copied critique")
    expect(page.locator("#matches")).to_have_text("40 of 120 examples")
    page.locator("#lines tbody button").first.click()
    expect(dialog.get_by_role("heading", level=2)).to_have_text("p01")
    page.keyboard.press("j")
    expect(dialog.get_by_role("heading", level=2)).to_have_text("p03")


def test_a_run_that_vanishes_while_it_is_read_is_reported(chromium: Any, address: str, runs: Path) -> None:
    write_run(runs / "three", prompts=6)
    tab = Tab(chromium)
    page = tab.open(f"{address}report?run=three")
    (runs / "three").rename(runs / "gone")
    (runs / "gone" / "manifest.json").unlink()
    page.get_by_label("flag", exact=True).select_option("copied critique")
    expect(page.locator("#matches")).to_contain_text("could not be read")
    page.close()


def test_the_page_and_the_server_find_the_same(chromium: Any, runs: Path, tmp_path: Path) -> None:
    from cai.runs.folder import RunFolder

    contents = read_run(RunFolder(runs / "one"))
    file = tmp_path / "report.html"
    file.write_text(run_report(RunFolder(runs / "one"), contents), encoding="utf-8")
    tab = Tab(chromium)
    page = tab.open(file.as_uri())
    queries = [
        Query(), Query(text="NUMBER 1"), Query(text="p11"), Query(text="nothing"), Query(facets={5: "held out"}),
        Query(facets={2: "copied critique", 3: "the tag of number 1"}), Query(facets={2: "nothing"}),
        *(Query(sort=at, descending=down) for at in range(8) for down in (False, True)),
        Query(text="number 9", facets={5: "training"}, sort=6, start=1),
    ]  # fmt: skip
    for query in queries:
        arguments = json.loads(json.dumps(query._asdict()))
        result = page.evaluate("async (query) => (await examplesOfPage()).find(query)", arguments)
        expected = select(contents.table, query)
        assert result["matched"] == len(expected), query
        assert [line["id"] for line in result["lines"]] == [line.id for line in expected[query.start :][:50]], query
    page.close()
