from pathlib import Path

from cai.compare.attribution import attribute
from cai.report.comparison import attribution_report
from tests.compare.test_attribution import write_sweep


def test_the_page_has_every_effect_with_its_interval_and_a_map(tmp_path: Path) -> None:
    found = attribute(write_sweep(tmp_path / "trial", "leave-one-out"))
    page = attribution_report(found)
    body = page.split("<main", 1)[1].split("</main>")[0]
    assert "What each principle adds to the others" in body
    assert "<strong>-2.983 [-3.960, -2.000], n=60</strong>" in body
    assert 'data-plot="0"' in body
    assert "http:" not in body and "https:" not in body
    assert "heatmap" in page
