"""Plots as Plotly reads them, without its colours of paper and ink, which the page's script sets for light and dark."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cai.report.escape import label

# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/: told apart by all kinds of colour vision
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, ORANGE)
COMPARED = (VERMILLION, BLUE, GREEN, PURPLE, SKY, ORANGE)  # of runs A, B, C …, as their names are on the page
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
POINTS = 500  # of a curve; longer ones are averaged over steps
METRICS = {
    "loss": ("loss", "loss/policy"),
    "score of the reward model": ("objective/scores", "reward"),
    "KL, nats an answer": ("objective/kl", "kl"),
    "tokens an answer": ("response/length", "completions/mean_length"),
    "accuracy": ("rewards/accuracies", "accuracy"),
    "margin of rewards": ("rewards/margins", "margin"),
    "reward of the chosen": ("rewards/chosen",),
    "reward of the rejected": ("rewards/rejected",),
    "accuracy of tokens": ("mean_token_accuracy",),
    "entropy": ("objective/entropy", "entropy"),
    "explained variance": ("val/explained_variance",),
    "share of clipped steps": ("policy/clipfrac",),
    "norm of the gradient": ("grad_norm",),
    "learning rate": ("learning_rate",),
}
"""What is drawn of a training, and what trl's trainers and our PPO call it."""


class Plot(NamedTuple):
    """One plot; `about` says in words what it shows."""

    title: str
    about: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


Series = Sequence[tuple[float, float]]


def logged_curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """What a training logged by METRICS' names, as (step, value); values that are no finite number are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, keys in METRICS.items():
            value = next((line[key] for key in keys if isinstance(line.get(key), int | float)), None)
            if value is not None and math.isfinite(value):
                found.setdefault(name, []).append((float(line["step"]), float(value)))
    return found


def curves(title: str, series: Mapping[str, Series], colours: Sequence[str] = COLOURS) -> Plot:
    """Values over updates, a line a name, told apart by colour and dash."""
    data = []
    for number, (name, points) in enumerate(series.items()):
        thinned = _thinned(points)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(thinned) < 30 else "lines",
                "name": label(name),
                "x": [x for x, _ in thinned],
                "y": [_rounded(y) for _, y in thinned],
                "line": {"color": colours[number % 6], "dash": DASHES[number % 6]},
            }
        )
    told = "; ".join(
        f"{name}: {points[0][1]:.3g} at first, {points[-1][1]:.3g} at last" for name, points in series.items()
    )
    return Plot(title, f"{title} over updates. {told}", data, {"xaxis": {"title": {"text": "update"}}})


def _thinned(points: Series) -> Series:
    if len(points) <= POINTS:
        return points
    parts = np.array_split(np.array(points), POINTS)
    return [(float(part[-1, 0]), float(part[:, 1].mean())) for part in parts]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def histogram(title: str, axis: str, series: Mapping[str, Sequence[float]], low: float, high: float) -> Plot:
    """How often values fall where, in twenty equal bins; a colour and an outline a name."""
    data = []
    for number, (name, values) in enumerate(series.items()):
        counts, edges = np.histogram(values, bins=20, range=(low, high))
        data.append(
            {
                "type": "bar",
                "name": label(name),
                "x": [_rounded((a + b) / 2) for a, b in pairwise(edges)],
                "y": counts.tolist(),
                "marker": {"color": COLOURS[number % 6], "pattern": {"shape": ("", "/", ".", "x")[number % 4]}},
            }
        )
    told = "; ".join(f"{name}: {len(values)} values, mean {np.mean(values):.3g}" for name, values in series.items())
    layout = {"xaxis": {"title": {"text": axis}, "range": [low, high]}, "yaxis": {"title": {"text": "how many"}}}
    return Plot(title, f"{title}. {told}", data, {**layout, "bargap": 0.05})


def bars(title: str, axis: str, names: Sequence[str], series: Mapping[str, Sequence[float]], stacked: bool) -> Plot:
    """A value a name, side by side or one upon the other, the first name on top."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(what),
            "y": [label(name) for name in names],
            "x": [_rounded(value) for value in values],
            "marker": {"color": COLOURS[number % 6], "pattern": {"shape": ("", "/", ".", "x")[number % 4]}},
        }
        for number, (what, values) in enumerate(series.items())
    ]
    layout = {
        "barmode": "stack" if stacked else "group",
        "xaxis": {"title": {"text": axis}},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "height": 120 + 22 * len(names) * (1 if stacked else len(series)),
    }
    return Plot(title, f"{title}: {len(names)} bars; the figures are in the table.", data, layout)


def reliability(title: str, series: Mapping[str, Sequence[Mapping[str, float]]]) -> Plot:
    """Confidence against outcome, from bins as cai/stats/calibration.py makes them; larger dots hold more."""
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": "as sure as right", "x": [0.5, 1], "y": [0.5, 1],
            "line": {"dash": "dot", "width": 1, "color": "#888"}, "hoverinfo": "skip",
        }
    ]  # fmt: skip
    for number, (name, bins) in enumerate(series.items()):
        most = max((b["n"] for b in bins), default=1)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(name),
                "x": [_rounded(b["confidence"]) for b in bins],
                "y": [_rounded(b["observed"]) for b in bins],
                "text": [f"{b['n']} pairs" for b in bins],
                "marker": {"size": [6 + 14 * (b["n"] / most) ** 0.5 for b in bins], "color": COLOURS[number % 6]},
                "line": {"color": COLOURS[number % 6], "dash": DASHES[number % 6]},
            }
        )
    told = "; ".join(
        f"{name}: " + ", ".join(f"sure {b['confidence']:.2f}, right {b['observed']:.2f}" for b in bins)
        for name, bins in series.items()
    )
    axes = {
        "xaxis": {"title": {"text": "how sure of its winner"}, "range": [0.48, 1.02]},
        "yaxis": {"title": {"text": "how often right"}, "range": [-0.03, 1.03]},
    }
    return Plot(title, f"{title}. {told}", data, axes)


class Interval(NamedTuple):
    """A value with what it may be, as one line of a plot; `sure` fills its mark."""

    name: str
    value: float
    low: float
    high: float
    sure: bool


def intervals(
    title: str,
    axis: str,
    found: Sequence[Interval],
    even: float,
    marks: tuple[str, str] = ("significant", "not significant"),
) -> Plot:
    """A line a value, the first on top; `even` is where there is no difference, `marks` say what is sure and not."""
    data: list[dict[str, Any]] = []
    for sure, told, mark in ((True, marks[0], "circle"), (False, marks[1], "circle-open")):
        some = [i for i in found if i.sure == sure]
        if some:
            colour = VERMILLION if sure else BLUE
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": told,
                    "x": [_rounded(i.value) for i in some],
                    "y": [label(i.name) for i in some],
                    "marker": {"symbol": mark, "size": 9, "color": colour},
                    "error_x": {
                        "type": "data", "symmetric": False, "thickness": 1.5, "color": colour,
                        "array": [_rounded(i.high - i.value) for i in some],
                        "arrayminus": [_rounded(i.value - i.low) for i in some],
                    },
                }
            )  # fmt: skip
    names = [label(i.name) for i in found]
    even_line = {"type": "line", "x0": even, "x1": even, "yref": "paper", "y0": 0, "y1": 1}
    even_line["line"] = {"color": "#888", "dash": "dot"}
    layout = {
        "xaxis": {"title": {"text": axis}, "zeroline": False},
        "yaxis": {"automargin": True, "categoryorder": "array", "categoryarray": names[::-1], "type": "category"},
        "shapes": [even_line],
        "height": 110 + 24 * len(found),
        "showlegend": True,
    }  # fmt: skip
    told = "; ".join(f"{i.name} {i.value:.2f} [{i.low:.2f}, {i.high:.2f}]" for i in found)
    return Plot(title, f"{title}. {told}", data, layout)


Bounded = tuple[float, float | None, float | None]
"""A value and its bounds, None where nothing bounds it."""


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

    data = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [_rounded(p.x[0]) for p in points],
            "y": [_rounded(p.y[0]) for p in points],
            "text": [label(p.name) for p in points],
            "textposition": "top center",
            "marker": {"size": 10, "color": BLUE},
            "error_x": errors([p.x for p in points]),
            "error_y": errors([p.y for p in points]),
        }
    ]
    told = "; ".join(f"{p.name}: {axes[0]} {p.x[0]:.0f}, {axes[1]} {p.y[0]:.0f}" for p in points)
    layout = {"xaxis": {"title": {"text": axes[0]}}, "yaxis": {"title": {"text": axes[1]}}, "height": 340}
    return Plot(title, f"{title}. {told}", data, layout)


class Tile(NamedTuple):
    """One effect in a map: its size in standard errors, and how it reads."""

    errors: float
    text: str


def effect_map(title: str, rows: Sequence[str], columns: Sequence[str], tiles: Sequence[Sequence[Tile | None]]) -> Plot:
    """Effects, a row by a column; blue is below and red above no effect, paler the nearer; None is left blank."""
    data = [
        {
            "type": "heatmap",
            "x": [label(name) for name in columns],
            "y": [label(name) for name in rows],
            "z": [[None if tile is None else _rounded(tile.errors) for tile in row] for row in tiles],
            "text": [["" if tile is None else tile.text for tile in row] for row in tiles],
            "texttemplate": "%{text}",
            "hovertemplate": "%{y}, %{x}: %{text}, %{z:.1f} standard errors<extra></extra>",
            "colorscale": [[0, BLUE], [0.5, "#f2f2f2"], [1, VERMILLION]],
            "zmin": -4,
            "zmax": 4,
            "xgap": 1,
            "ygap": 1,
            "colorbar": {"title": {"text": "standard<br>errors"}, "thickness": 12},
        }
    ]
    layout = {
        "xaxis": {"side": "top", "type": "category", "showgrid": False},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category", "showgrid": False},
        "margin": {"t": 40, "b": 10},
        "height": 110 + 24 * len(rows),
    }
    return Plot(
        title, f"{title}: {len(rows)} rows, {len(columns)} columns; the figures are in the table.", data, layout
    )
