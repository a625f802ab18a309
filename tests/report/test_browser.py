"""The reports in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from cai.compare.compare import compare_runs
from cai.report.comparison import comparison_report, read_comparison
from cai.report.run import read_run, run_report
from cai.runs.folder import RunFolder
from tests.report.conftest import Tab
from tests.report.folders import HOSTILE, write_run
from tests.report.test_run import full

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def written(path: Path, **run: Any) -> str:
    folder = write_run(path / "run", **run)
    file = path / "report.html"
    file.write_text(run_report(folder, read_run(folder)), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    def say(what: str, number: int) -> str:
        if what == "revision":
            return f"Boil the egg for {number} minutes, then cool it."
        if what == "draft":
            return f"Boil the egg for {number} minutes, I guess."
        return f"the {what} of number {number}"

    return written(tmp_path_factory.mktemp("report"), prompts=120, say=say)


@pytest.fixture
def tab(chromium: Any) -> Iterator[Tab]:
    tab = Tab(chromium, viewport={"width": 1200, "height": 250})  # too low for plots, which take their time
    yield tab
    tab.page.close()
    assert tab.errors == []
    assert [url for url in tab.requests if not url.startswith(("file:", "about:", "data:", "blob:"))] == []


def listed(page: Any) -> list[str]:
    return page.locator("#lines tbody button").all_inner_texts()


def test_the_table_shows_a_page_of_all_examples_and_turns_to_the_next(tab: Tab, report: str) -> None:
    page = tab.open(report)
    expect(page.locator("#matches")).to_have_text("120 of 120 examples")
    assert listed(page) == [f"p{n:02}" for n in range(50)]
    page.get_by_role("button", name="Next page").click()
    page.get_by_role("button", name="Next page").click()
    assert listed(page)[-1] == "p119"
    assert page.get_by_role("button", name="Next page").is_disabled()


def test_the_first_screen_shows_five_revisions_with_their_principle_and_what_changed(tab: Tab, report: str) -> None:
    page = tab.open(report)
    shown = page.locator("#shown article")
    assert shown.count() == 5
    assert "Boil the egg for" in shown.nth(0).locator("del, ins").first.locator("xpath=..").inner_text()
    assert shown.nth(0).locator("del").count() and shown.nth(0).locator("ins").count()
    assert not page.locator("#metrics dl").is_visible()
    shown.nth(2).get_by_role("button", name="Open").click()
    assert page.locator("#example").is_visible()


def test_filters_and_search_narrow_the_table_and_are_kept_in_the_address(tab: Tab, report: str) -> None:
    page = tab.open(report)
    page.get_by_label("flag", exact=True).select_option("copied critique")
    expect(page.locator("#matches")).to_have_text("40 of 120 examples")
    page.get_by_label("Search prompts and answers").fill("For 7 MINUTES")
    expect(page.locator("#matches")).to_have_text("1 of 120 examples")
    assert listed(page) == ["p07"]
    again = tab.open(tab.address)
    assert listed(again) == ["p07"]
    assert again.get_by_label("flag", exact=True).input_value() == "copied critique"
    again.get_by_role("button", name="Clear").click()
    expect(again.locator("#matches")).to_have_text("120 of 120 examples")


def test_a_column_sorts_from_the_greatest_then_the_least_with_unknown_values_last(tab: Tab, report: str) -> None:
    page = tab.open(report)
    column = page.locator("th", has=page.get_by_role("button", name="P(after)", exact=True))
    column.get_by_role("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    first = page.locator("#lines tbody tr").nth(0)
    assert (first.locator("td").last.inner_text(), listed(page)[0]) == ("0.950", "p89")
    column.get_by_role("button").click()
    assert column.get_attribute("aria-sort") == "ascending"
    assert first.locator("td").last.inner_text() == "0.050"
    page.get_by_role("button", name="Next page").click()
    page.get_by_role("button", name="Next page").click()
    assert page.locator("#lines tbody tr").last.locator("td").last.inner_text() == "–"


def test_an_example_opens_with_marked_words_and_its_provenance(tab: Tab, report: str) -> None:
    page = tab.open(report + "#open=p03")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == "p03"
    sides = dialog.locator(".pair").first
    assert sides.locator("del").all_inner_texts() == ["I guess."]
    assert sides.locator("ins").all_inner_texts() == ["then cool it."]
    assert sides.locator(".text").all_inner_texts() == [
        "Boil the egg for 3 minutes, I guess.", "Boil the egg for 3 minutes, then cool it."
    ]  # fmt: skip
    text = dialog.inner_text()
    for part in ("the hash of number 3", "the model of number 3", "the templates of number 3", "the judge of number 3"):
        assert part in text
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    expect(page).not_to_have_url(re.compile("open="))


def test_a_comparison_by_words_loses_no_character(tab: Tab, report: str) -> None:
    page = tab.open(report)
    pairs = [
        ["", ""], ["a", ""], ["", " b\n"], ["  a b  c\n", "a  b c"], ["x a y", "z a w"], ["one two three", "three two one"],
        ["the cat sat on the mat", "the dog sat on the mat, too"], ["word " * 4000, "other " * 4000 + "word "],
    ]  # fmt: skip
    for left, right in pairs:
        compared = page.evaluate("([a, b]) => compareWords(a, b)", [left, right])
        assert ["".join(text for _, text in side) for side in compared] == [left, right]
        kept = ["".join(text for differs, text in side if not differs).split() for side in compared]
        assert kept[0] == kept[1]
    marked = page.evaluate("compareWords('the cat sat on the mat', 'the dog sat on the mat, too')")
    assert marked[0] == [[False, "the "], [True, "cat "], [False, "sat on the "], [True, "mat"]]
    assert page.evaluate("compareWords('x a y', 'z a w')")[0] == [[True, "x a y"]]  # one word by chance


def test_the_keyboard_alone_searches_moves_opens_and_closes(tab: Tab, report: str) -> None:
    page = tab.open(report)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("number 1")
    expect(page.locator("#matches")).to_have_text("31 of 120 examples")
    page.locator("#lines tbody button").first.focus()
    for key in "jjk":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == "p10"
    page.keyboard.press("j")
    expect(page.locator("#example-title")).to_have_text("p11")
    page.keyboard.press("Escape")
    expect(page.locator("button:focus")).to_have_text("p11")


def test_moving_past_the_last_line_turns_the_page(tab: Tab, report: str) -> None:
    page = tab.open(report + "#open=p49")
    page.keyboard.press("j")
    expect(page.locator("#example-title")).to_have_text("p50")
    page.keyboard.press("Escape")
    assert listed(page)[0] == "p50"
    expect(page.locator("#lines tbody button").first).to_have_text("p50")
    page.locator("#lines tbody button").first.focus()
    page.keyboard.press("k")
    expect(page.locator("button:focus")).to_have_text("p49")


def test_light_and_dark_follow_the_system_and_the_button(chromium: Any, report: str) -> None:
    tab = Tab(chromium, color_scheme="dark")
    page = tab.open(report)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    button = page.get_by_role("button", name="Theme")
    button.click()
    light = page.evaluate(paper)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 24, 29)")
    button.click()
    assert page.evaluate(paper) == dark
    page.reload()
    assert button.inner_text() == "Theme: dark"
    assert tab.errors == []
    page.close()


CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  const faults = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest("svg, script, noscript, :disabled, .skip") || !e.checkVisibility()) continue;
    const [a, b] = [luminance(numbers(getComputedStyle(e).color)), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faults.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return faults;
}"""


# The ratio is WCAG 2.2's, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(chromium: Any, report: str, scheme: str) -> None:
    tab = Tab(chromium, color_scheme=scheme)
    page = tab.open(report + "#open=p01")
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate(CONTRAST) == []
    page.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(chromium: Any, report: str) -> None:
    tab = Tab(chromium, viewport={"width": 360, "height": 740})
    page = tab.open(report)
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wide)
    page.goto(report + "#open=p01")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-ready", "yes")
    assert page.get_by_role("dialog").evaluate("(d) => d.scrollWidth <= innerWidth && d.clientWidth >= 340")
    page.close()


def test_plots_are_drawn_when_they_come_into_view(tab: Tab, report: str) -> None:
    page = tab.open(report)
    for place in page.locator("[data-plot]").all():
        place.scroll_into_view_if_needed()
        expect(place).to_have_attribute("data-drawn", "yes")
        assert place.locator("svg.main-svg").count() > 0
        assert place.get_attribute("aria-label")


def test_everything_has_a_name_and_a_place(tab: Tab, report: str) -> None:
    page = tab.open(report)
    unnamed = """() => [...document.querySelectorAll("button, input, select, summary, [role=img], [role=group], [role=region]")]
      .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.[0]?.textContent.trim()))
      .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(unnamed) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert [page.locator(part).count() for part in ("main", "nav", "h1", "header h1")] == [1, 1, 1, 1]


def hostile(path: Path) -> RunFolder:
    folder = write_run(
        path,
        say=lambda what, number: f"{HOSTILE} {what} {number} {path.name if what == 'revision' else ''}",
        ids=lambda number: f"{HOSTILE}&open=x#/../{number}",
        principle_id=HOSTILE,
    )
    folder.eval.mkdir(exist_ok=True)
    evaluation = full().model_dump_json()
    for name in ("before", "run", "harmless", "few", "words", "only 4 prompts"):
        evaluation = evaluation.replace(f'"{name}"', json.dumps(f"{HOSTILE} {name}"))
    (folder.eval / "evaluation.json").write_text(evaluation, encoding="utf-8")
    return folder


def test_hostile_text_is_shown_and_does_nothing(tab: Tab, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "run")
    stage = folder.train / "1-dpo"
    stage.rename(stage.with_name("1-<img src=x onerror=window.pwned=1>"))
    file = tmp_path / "report.html"
    file.write_text(run_report(folder, read_run(folder)), encoding="utf-8")
    stays_text(tab.open(file.as_uri()))


def test_a_comparison_opens_with_five_examples_side_by_side_and_what_their_principles_ask_for(
    tab: Tab, tmp_path: Path
) -> None:
    def say(name: str) -> Callable[[str, int], str]:
        return lambda what, n: f"{name} boils egg {n} " + "slowly, " * 200 if what in ("revision", "after") else what

    folders = [write_run(tmp_path / name, prompts=30, say=say(name), ids=lambda n: f"p{n}") for name in ("ann", "bob")]
    file = tmp_path / "comparison.html"
    file.write_text(comparison_report(read_comparison(compare_runs(folders), folders)), encoding="utf-8")
    page = tab.open(file.as_uri())
    shown = page.locator("#shown article")
    assert shown.count() == 5
    assert page.locator("#shown").evaluate("(s) => s.closest('section').id") == "summary"
    first = shown.nth(0)
    heads = first.locator(".pair p").all_inner_texts()
    assert [head[:22] for head in heads] == ["A: ann", "good-for-people: ann b", "B: bob", "good-for-people: bob b"]
    assert [first.locator(tag).inner_text() for tag in ("del", "ins")] == ["ann", "bob"]
    text = first.locator(".text").first
    assert text.evaluate("(t) => t.clientHeight < 300 && t.tabIndex === 0")  # a long text scrolls, also by keyboard
    first.get_by_role("button", name="Open").click()
    expect(page.get_by_role("dialog")).to_contain_text("Last revision, A → B")


def test_hostile_text_does_nothing_in_a_comparison(tab: Tab, tmp_path: Path) -> None:
    folders = [hostile(tmp_path / name) for name in ("a<b>&\u202e", "b\"'")]
    file = tmp_path / "comparison.html"
    contents = read_comparison(compare_runs(folders), folders)
    assert contents.comparison.flips and contents.comparison.pairs[0].metrics
    file.write_text(comparison_report(contents), encoding="utf-8")
    page = tab.open(file.as_uri())
    assert page.locator("#shown article").count()
    stays_text(page)


def stays_text(page: Any) -> None:
    """Open everything there is on a page of hostile text, and see that it is text."""
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    for place in page.locator("[data-plot]").all():
        place.scroll_into_view_if_needed()
        expect(place).to_have_attribute("data-drawn", "yes")
    for line in page.locator("#lines tbody button").all():
        line.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        assert "<script>window.pwned = 1</script>" in dialog.inner_text()
        assert not UNSEEN.search(dialog.evaluate("(d) => d.textContent"))
        page.keyboard.press("Escape")
        expect(dialog).not_to_be_visible()
    page.locator("select").nth(0).select_option(index=1)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#matches")).to_have_text("6 of 6 examples")
    page.get_by_label("Search prompts and answers").fill("no such text")
    expect(page.locator("#matches")).to_have_text("0 of 6 examples")
    page.get_by_label("Search prompts and answers").fill("zero\u200bwidth")
    expect(page.locator("#matches")).to_have_text("6 of 6 examples")
    page.get_by_label("Search prompts and answers").fill("no such text")
    expect(page.locator("#matches")).to_have_text("0 of 6 examples")
    page.get_by_label("Search prompts and answers").fill("critique")
    expect(page.locator("#matches")).to_have_text("4 of 6 examples")  # held-out prompts have no critique
    text = page.evaluate("[...document.querySelectorAll('body > :not(script)')].map((e) => e.textContent).join('')")
    assert not UNSEEN.search(text)
    assert "U+202E" in text and "U+001B" in text
    assert page.evaluate("window.pwned") is None
    assert page.locator("img, iframe, object, embed, form[action], a[href^='javascript']").count() == 0
    handlers = "[...document.querySelectorAll('*')].flatMap((e) => [...e.attributes]).filter((a) => /^on/.test(a.name))"
    assert page.evaluate(f"{handlers}.length") == 0
    assert page.locator("script:not([type])").count() == 5  # ours, and Plotly when it was needed
