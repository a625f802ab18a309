"""HTML pages from templates: one escaped file that loads nothing, or a page that asks `cai serve` for its examples."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from cai.report.escape import inline_json, marked, plain, source_hash, visible
from cai.report.plots import Plot
from cai.report.table import Table, describe, embed
from cai.stats.formatting import counted, difference, estimate, number, percent, prompt_counts, signed

SCRIPTS = ("text.js", "plots.js", "sources.js", "examples.js")  # in this order
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
"""Of every page with scripts, whose hashes are added. Plotly writes inline styles, and its downloads are data URLs."""
FILTERS: dict[str, Callable[..., Any]] = {
    "visible": visible,
    "plain": plain,
    "marked": marked,
    "json": inline_json,
    "percent": percent,
    "number": number,
    "signed": signed,
    "estimate": estimate,
    "difference": difference,
    "counted": counted,
    "prompt_counts": prompt_counts,
}


class Content(NamedTuple):
    """What a report shows besides the values of its template: a table of examples, if any, and its plots."""

    table: Table | None
    plots: Sequence[Plot]


def render(template: str, **values: Any) -> str:
    """A template's HTML; a value that the template needs and `values` lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template(template).render(values)


def render_report(template: str, content: Content, url: str | None = None, **values: Any) -> str:
    """A report's HTML: one file that loads nothing, or, with the `url` of its examples, a page of `cai serve`."""
    table, plots = content
    plot_data = [{"data": plot.data, "layout": plot.layout} for plot in plots]
    values |= {"plots": plots, "plot_data": plot_data, "served": url is not None, "examples": None, "sample_note": ""}
    if url is not None:
        values |= {"examples": describe(table) | {"url": url}} if table is not None else {}
        return render(template, **values)
    scripts = [source(name) for name in SCRIPTS]
    plotly = plotly_script()
    values |= {
        "policy": f"{POLICY}; script-src {' '.join(map(source_hash, [*scripts, plotly]))}",
        "scripts": [Markup(text) for text in scripts],
        "plotly": Markup(plotly),
    }
    if table is not None:
        embedded = embed(table)
        part, total = len(embedded.lines), len(table.lines)
        values |= {
            "examples": describe(table._replace(lines=embedded.lines)) | {"url": None},
            "data": embedded.data,
            "sample_note": "" if part == total else _sample_note(part, total),
        }
    return render(template, **values)


def render_list(template: str, **values: Any) -> str:
    """A page of `cai serve` without examples or plots."""
    return render(template, plots=[], examples=None, served=True, **values)


def plotly_script() -> str:
    """Plotly's script (MIT licence), from its Python package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def source(name: str) -> str:
    """A template, a script or a style sheet of this package."""
    return files("cai.report").joinpath(name).read_text(encoding="utf-8")


def _sample_note(part: int, total: int) -> str:
    return (
        f"A uniform sample of {part:,} of the {total:,} examples, the most that fits in one page. The metrics above "
        "cover all of them, and `cai serve` shows every example."
    )
