import pytest

from cai.report.plots import MAX_POINTS, bars, curves, histogram, logged_curves, reliability


def test_curves_have_the_names_of_the_trainers_logs() -> None:
    lines = [
        {"step": 1, "loss": 0.7, "rewards/accuracies": 0.5, "unknown": 3},
        {"step": 2, "loss": float("nan"), "objective/kl": 1.5, "entropy": None},
        {"step": 2, "train_loss": 0.7},
    ]
    assert logged_curves(lines) == {"loss": [(1, 0.7)], "accuracy": [(1, 0.5)], "KL (nats per answer)": [(2, 1.5)]}
    assert logged_curves([]) == {}


def test_a_long_curve_is_thinned_to_means_that_keep_its_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(10 * MAX_POINTS)]
    [line] = curves("loss", {"a": points}).data
    assert len(line["x"]) == MAX_POINTS
    assert line["x"][-1] == 10 * MAX_POINTS - 1
    assert abs(sum(line["y"]) / MAX_POINTS - sum(y for _, y in points) / len(points)) < 1e-3


def test_a_histogram_counts_every_value() -> None:
    plot = histogram("words", "words", {"draft": [0, 1, 2, 20], "revision": [20, 20]}, 0, 20)
    assert [sum(bar["y"]) for bar in plot.data] == [4, 2]
    assert plot.data[1]["y"][-1] == 2


def test_names_reach_plotly_as_text_and_series_differ_in_more_than_colour() -> None:
    name = "<a href='x'>\u202e&"
    for plot in (
        curves("t", {name: [(1, 1)], "b": [(1, 2)]}),
        histogram("t", "x", {name: [1], "b": [2]}, 0, 2),
        bars("t", "x", [name], {name: [1], "b": [2]}, stacked=True),
    ):
        assert plot.data[0]["name"] == "&lt;a href='x'&gt;⟨U+202E⟩&amp;"
        looks = [
            (d.get("line", {}).get("dash"), d.get("marker", {}).get("pattern", {}).get("shape")) for d in plot.data
        ]
        assert len(set(looks)) == 2


def test_a_reliability_plot_has_a_dot_and_a_text_for_each_bin() -> None:
    bins = [{"low": 0.5, "high": 0.55, "n": 4, "confidence": 0.52, "observed": 0.75}]
    plot = reliability("calibration", {"judge": bins})
    assert (plot.data[1]["x"], plot.data[1]["y"], plot.data[1]["text"]) == ([0.52], [0.75], ["4 pairs"])
    assert "confidence 0.52, accuracy 0.75" in plot.description


def test_a_curve_of_one_update_or_of_equal_values_has_a_range_that_shows_its_value() -> None:
    one = curves("learning rate", {"a": [(1, 5e-6)]})
    layout = one.layout
    assert one.description == "learning rate by update. a: 5e-06"
    assert layout["xaxis"]["range"] == [0.5, 1.5] and layout["xaxis"]["dtick"] == 1
    assert layout["yaxis"]["range"] == pytest.approx([2.5e-6, 7.5e-6])
    assert (layout["yaxis"]["tickvals"], layout["yaxis"]["ticktext"]) == ([5e-6], ["5e-06"])
    assert curves("margin", {"a": [(n, 0.0) for n in range(30)]}).layout["yaxis"]["range"] == [-1.0, 1.0]
    usual = curves("loss", {"a": [(n, 1 / (n + 1)) for n in range(30)]}).layout
    assert usual == {"xaxis": {"title": {"text": "update"}}}
    assert "yaxis" not in curves("loss", {"a": [(1, 0.5)], "b": [(1, 0.6)]}).layout
