from pathlib import Path

import pytest

from cai.compare.compare import compare_runs
from cai.compare.labels import label_flips_text
from cai.report.comparison import comparison_report, read_comparison
from cai.report.examples import Examples, comparison_detail
from tests.compare.made import make_run, principles


def revise(prompt_id: str, principle: str) -> str:
    return f"the revision of {prompt_id}"


def test_label_flips_are_counted_and_listed_with_their_texts_the_widest_first(tmp_path: Path) -> None:
    of_a = {"p0": 0.9, "p1": 0.6, "p2": 0.6, "p3": 0.5}  # P("first" is better); equal labels flip nothing
    of_b = {"p0": 0.2, "p1": 0.7, "p2": 0.4, "p3": 0.1}
    runs = [
        make_run(tmp_path / name, principles("calm"), revise, prompts=4, labels=of.__getitem__, verdict=lambda i, _: 1)
        for name, of in (("a", of_a), ("b", of_b))
    ]
    comparison = compare_runs(runs)
    found = comparison.pairs[0].label_flips
    assert found is not None and (found.pairs, found.flips) == ({"revision": 4, "judge": 4}, {"judge": 2})
    assert label_flips_text(found) == "0 of 4 revision pairs, 2 of 4 judged pairs"
    widest, other = found.widest
    assert (widest.prompt_id, widest.preferred_a, widest.preferred_b) == ("p0", "first", "second")
    assert (widest.p_a, widest.p_b, other.prompt_id) == (0.9, pytest.approx(0.2), "p2")

    contents = read_comparison(comparison, runs)
    titles = [column.title for column in contents.table.columns]
    lines = {line.id: line for line in contents.table.lines}
    cells = dict(zip(titles, lines["p0"].cells, strict=True))
    assert (cells["P(chosen) A"], cells["P(chosen) B"]) == (pytest.approx(0.95), pytest.approx(0.9))
    labels = contents.table.facets.index("labels")
    assert [i for i, line in lines.items() if line.facets[labels] == ["flip"]] == ["p0", "p2"]
    detail = comparison_detail([("A", Examples(runs[0]).read("p0")), ("B", Examples(runs[1]).read("p0"))]).to_json()
    (flip,) = [block for block in detail["blocks"] if "flip" in block["title"]]
    assert flip["note"] == "P(chosen in A better): A 0.9000, B 0.2000"
    assert [detail["texts"][n] for n in flip["sides"]] == ["second", "first"]
    assert "Labels that flip" in comparison_report(contents)


def test_a_revision_pair_flips_where_the_other_judge_prefers_the_draft(tmp_path: Path) -> None:
    a, b = (make_run(tmp_path / name, principles("calm"), revise, prompts=2, verdict=lambda i, _: 1) for name in "ab")
    rows = b.preferences_jsonl.read_text(encoding="utf-8")
    turned = rows.replace(
        '"chosen":"the revision of p1","rejected":"d"', '"chosen":"d","rejected":"the revision of p1"'
    )
    assert turned != rows
    b.preferences_jsonl.write_text(turned, encoding="utf-8")
    found = compare_runs([a, b]).pairs[0].label_flips
    assert found is not None and found.flips == {"revision": 1}
    (flip,) = found.widest
    assert (flip.preferred_a, flip.preferred_b, flip.p_a, flip.p_b) == ("the revision of p1", "d", 1, 0)


def test_runs_without_a_pair_in_common_have_no_label_flips(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", principles("calm"), revise, prompts=2, labels=lambda i: 0.9)
    b = make_run(tmp_path / "b", principles("calm"), revise, prompts=2)
    assert compare_runs([a, b]).pairs[0].label_flips is None


def test_texts_of_label_flips_are_escaped_on_the_page(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, principles("calm"), revise, prompts=1, labels=lambda i, p=p: p)
        for name, p in (("a", 0.9), ("b", 0.2))
    ]
    for run in runs:
        rows = run.preferences_jsonl.read_text(encoding="utf-8")
        run.preferences_jsonl.write_text(rows.replace('"first"', '"<script>pwned</script>"'), encoding="utf-8")
    comparison = compare_runs(runs)
    assert comparison.pairs[0].label_flips is not None
    assert comparison.pairs[0].label_flips.widest[0].preferred_a == "<script>pwned</script>"
    page = comparison_report(read_comparison(comparison, runs))
    assert "<script>pwned" not in page and "&lt;script&gt;pwned" in page
