"""Plots as Plotly reads them, without background and text colours, which plots.js sets for light and dark."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cai.report.escape import plot_label

# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/: distinct in all kinds of colour vision
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE)
RUN_COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, SKY, ORANGE)  # of runs A, B, C …, as their names are coloured
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
FEW_UPDATES = 10  # each of which has a mark on the axis
MAX_POINTS = 500  # of a curve; longer ones are averaged over steps
LOSS, SCORE, KL, LENGTH = "loss", "reward model score", "KL (nats per answer)", "tokens per answer"
TRAINING_CURVES = {
    LOSS: ("loss", "loss/policy"),
    SCORE: ("objective/scores", "reward"),
    KL: ("objective/kl", "kl"),
    LENGTH: ("response/length", "completions/mean_length"),
    "accuracy": ("rewards/accuracies", "accuracy"),
    "reward margin": ("rewards/margins", "margin"),
    "chosen reward": ("rewards/chosen",),
    "rejected reward": ("rewards/rejected",),
    "token accuracy": ("mean_token_accuracy",),
    "judge's rating (1 to 9)": ("judge/rating",),
    "non-option probability mass": ("judge/non_option_mass",),
    "entropy": ("objective/entropy", "entropy"),
    "explained variance": ("val/explained_variance",),
    "loss on the answers of `ptx`": ("loss/ptx",),
    "clip fraction": ("policy/clipfrac",),
    "effective sample size": ("sampling/effective_sample_size",),
    "gradient norm": ("grad_norm",),
    "learning rate": ("learning_rate",),
}
"""The plots of a training stage: title → the keys under which trl's trainers and this package's PPO log it."""


class Plot(NamedTuple):
    """One plot; `description` says in words what it shows, for readers who do not see it."""

    title: str
    description: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


Series = Sequence[tuple[float, float]]


def logged_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The curves of TRAINING_CURVES in a training log, as (step, value); values that are not finite are skipped."""
    logged: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for title, keys in TRAINING_CURVES.items():
            value = next((line[key] for key in keys if isinstance(line.get(key), int | float)), None)
            if value is not None and math.isfinite(value):
                logged.setdefault(title, []).append((float(line["step"]), float(value)))
    return logged


def curves(title: str, series: Mapping[str, Series], colours: Sequence[str] = COLOURS) -> Plot:
    """Values by update, a line per name; lines differ in colour and dash."""
    data = []
    for number, (name, points) in enumerate(series.items()):
        thinned = _thinned(points)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(thinned) < 30 else "lines",
                "name": plot_label(name),
                "x": [x for x, _ in thinned],
                "y": [_rounded(y) for _, y in thinned],
                "line": {"color": colours[number % 6], "dash": DASHES[number % 6]},
            }
        )
    ends = "; ".join(
        f"{name}: {points[0][1]:.3g}"
        if len(points) == 1
        else f"{name}: first {points[0][1]:.3g}, last {points[-1][1]:.3g}"
        for name, points in series.items()
    )
    return Plot(title, f"{title} by update. {ends}", data, _curve_layout(list(series.values())))


def _curve_layout(series: Sequence[Series]) -> dict[str, Any]:
    """The axes of curves: whole updates, and around values that are all equal no range that dwarfs them."""
    steps, values = ([point[place] for points in series for point in points] for place in (0, 1))
    x: dict[str, Any] = {"title": {"text": "update"}}
    if steps and max(steps) - min(steps) < FEW_UPDATES:
        x |= {"dtick": 1, "range": [min(steps) - 0.5, max(steps) + 0.5]}
    if not values or max(values) > min(values):
        return {"xaxis": x}
    value, margin = values[0], abs(values[0]) / 2 or 1.0
    return {
        "xaxis": x,
        "yaxis": {"range": [value - margin, value + margin], "tickvals": [value], "ticktext": [f"{value:.3g}"]},
    }


def _thinned(points: Series) -> Series:
    if len(points) <= MAX_POINTS:
        return points
    parts = np.array_split(np.array(points), MAX_POINTS)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def histogram(title: str, axis: str, series: Mapping[str, Sequence[float]], low: float, high: float) -> Plot:
    """Counts of values in twenty equal bins from `low` to `high`; names differ in colour and pattern."""
    data = []
    for number, (name, values) in enumerate(series.items()):
        counts, edges = np.histogram(values, bins=20, range=(low, high))
        data.append(
            {
                "type": "bar",
                "name": plot_label(name),
                "x": [_rounded((a + b) / 2) for a, b in pairwise(edges)],
                "y": counts.tolist(),
                "marker": {"color": COLOURS[number % 6], "pattern": {"shape": ("", "/", ".", "x")[number % 4]}},
            }
        )
    means = "; ".join(f"{name}: {len(values)} values, mean {np.mean(values):.3g}" for name, values in series.items())
    layout = {"xaxis": {"title": {"text": axis}, "range": [low, high]}, "yaxis": {"title": {"text": "count"}}}
    return Plot(title, f"{title}. {means}", data, {**layout, "bargap": 0.05})


def bars(title: str, axis: str, names: Sequence[str], series: Mapping[str, Sequence[float]], stacked: bool) -> Plot:
    """A bar per name and series, side by side or stacked, the first name on top."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plot_label(part),
            "y": [plot_label(name) for name in names],
            "x": [_rounded(value) for value in values],
            "marker": {"color": COLOURS[number % 6], "pattern": {"shape": ("", "/", ".", "x")[number % 4]}},
        }
        for number, (part, values) in enumerate(series.items())
    ]
    layout = {
        "barmode": "stack" if stacked else "group",
        "xaxis": {"title": {"text": axis}},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "height": 120 + 22 * len(names) * (1 if stacked else len(series)),
    }
    return Plot(title, f"{title}: {len(names)} bars; the table has the values.", data, layout)


def reliability(title: str, series: Mapping[str, Sequence[Mapping[str, float]]]) -> Plot:
    """Confidence against accuracy, from the bins of cai/stats/agreement.py; larger dots hold more pairs."""
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": "calibrated", "x": [0.5, 1], "y": [0.5, 1],
            "line": {"dash": "dot", "width": 1, "color": "#888"}, "hoverinfo": "skip",
        }
    ]  # fmt: skip
    for number, (name, bins) in enumerate(series.items()):
        most = max((b["n"] for b in bins), default=1)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plot_label(name),
                "x": [_rounded(b["confidence"]) for b in bins],
                "y": [_rounded(b["observed"]) for b in bins],
                "text": [f"{b['n']} pairs" for b in bins],
                "marker": {"size": [6 + 14 * (b["n"] / most) ** 0.5 for b in bins], "color": COLOURS[number % 6]},
                "line": {"color": COLOURS[number % 6], "dash": DASHES[number % 6]},
            }
        )
    points = "; ".join(
        f"{name}: " + ", ".join(f"confidence {b['confidence']:.2f}, accuracy {b['observed']:.2f}" for b in bins)
        for name, bins in series.items()
    )
    axes = {
        "xaxis": {"title": {"text": "confidence"}, "range": [0.48, 1.02]},
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.03, 1.03]},
    }
    return Plot(title, f"{title}. {points}", data, axes)


class Interval(NamedTuple):
    """A value with its interval, as one line of a plot; a significant one has a filled mark."""

    name: str
    value: float
    low: float
    high: float
    significant: bool


MARKS = ("significant", "not significant")


def intervals(
    title: str, axis: str, values: Sequence[Interval], no_effect: float, marks: tuple[str, str] = MARKS
) -> Plot:
    """A line per value, the first on top; `no_effect` is drawn dotted, `marks` names filled and hollow marks."""
    data: list[dict[str, Any]] = []
    for significant, mark, symbol in ((True, marks[0], "circle"), (False, marks[1], "circle-open")):
        some = [i for i in values if i.significant == significant]
        if some:
            colour = VERMILLION if significant else BLUE
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": mark,
                    "x": [_rounded(i.value) for i in some],
                    "y": [plot_label(i.name) for i in some],
                    "marker": {"symbol": symbol, "size": 9, "color": colour},
                    "error_x": {
                        "type": "data", "symmetric": False, "thickness": 1.5, "color": colour,
                        "array": [_rounded(i.high - i.value) for i in some],
                        "arrayminus": [_rounded(i.value - i.low) for i in some],
                    },
                }
            )  # fmt: skip
    names = [plot_label(i.name) for i in values]
    reference = {"type": "line", "x0": no_effect, "x1": no_effect, "yref": "paper", "y0": 0, "y1": 1}
    reference["line"] = {"color": "#888", "dash": "dot"}
    layout = {
        "xaxis": {"title": {"text": axis}, "zeroline": False},
        "yaxis": {"automargin": True, "categoryorder": "array", "categoryarray": names[::-1], "type": "category"},
        "shapes": [reference],
        "height": 110 + 24 * len(values),
        "showlegend": True,
    }  # fmt: skip
    described = "; ".join(f"{i.name} {i.value:.2f} [{i.low:.2f}, {i.high:.2f}]" for i in values)
    return Plot(title, f"{title}. {described}", data, layout)


Bounded = tuple[float, float | None, float | None]
"""A value and its bounds, None where it is unbounded."""


class Point(NamedTuple):
    """A named value on two axes."""

    name: str
    x: Bounded
    y: Bounded


def plane(title: str, axes: tuple[str, str], points: Sequence[Point]) -> Plot:
    """Points with their names and intervals on two axes."""

    def errors(values: Sequence[Bounded]) -> dict[str, Any]:
        up = [_rounded(high - value) if high is not None else 0 for value, _, high in values]
        down = [_rounded(value - low) if low is not None else 0 for value, low, _ in values]
        return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}

    middle = (min(p.x[0] for p in points) + max(p.x[0] for p in points)) / 2
    data = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [_rounded(p.x[0]) for p in points],
            "y": [_rounded(p.y[0]) for p in points],
            "text": [plot_label(p.name) for p in points],
            "textposition": ["top left" if p.x[0] > middle else "top right" for p in points],  # towards the middle
            "cliponaxis": False,
            "marker": {"size": 10, "color": BLUE},
            "error_x": errors([p.x for p in points]),
            "error_y": errors([p.y for p in points]),
        }
    ]
    described = "; ".join(f"{p.name}: {axes[0]} {p.x[0]:.0f}, {axes[1]} {p.y[0]:.0f}" for p in points)
    layout = {"xaxis": {"title": {"text": axes[0]}}, "yaxis": {"title": {"text": axes[1]}}, "height": 340}
    return Plot(title, f"{title}. {described}", data, layout)


class Tile(NamedTuple):
    """One effect in a map: its size in standard errors, and its text."""

    errors: float
    text: str


MAX_ERRORS = 4.0  # standard errors at which the colours of a map end


def effect_map(title: str, rows: Sequence[str], columns: Sequence[str], tiles: Sequence[Sequence[Tile | None]]) -> Plot:
    """Effects by row and column: blue is negative, red positive, paler the smaller; None is blank."""
    data = [
        {
            "type": "heatmap",
            "x": [plot_label(name) for name in columns],
            "y": [plot_label(name) for name in rows],
            "z": [[None if tile is None else _rounded(tile.errors) for tile in row] for row in tiles],
            "text": [["" if tile is None else tile.text for tile in row] for row in tiles],
            "texttemplate": "%{text}",
            "hovertemplate": "%{y}, %{x}: %{text}, %{z:.1f} standard errors<extra></extra>",
            "colorscale": [[0, BLUE], [0.5, "#f2f2f2"], [1, VERMILLION]],
            "zmin": -MAX_ERRORS,
            "zmax": MAX_ERRORS,
            "xgap": 1,
            "ygap": 1,
            "colorbar": {"title": {"text": "standard<br>errors"}, "thickness": 12},
        }
    ]
    layout = {
        "xaxis": {"side": "top", "type": "category", "showgrid": False},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category", "showgrid": False},
        "margin": {"t": 40, "b": 10},
        "height": max(200, 110 + 24 * len(rows)),  # room for the colour bar
    }
    return Plot(title, f"{title}: {len(rows)} rows, {len(columns)} columns; the table has the values.", data, layout)
