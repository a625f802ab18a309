"""Self-contained HTML pages from templates. What is put into one is escaped, always."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cai.report.escape import changed, inline_json, plain, shown, source_hash
from cai.report.plots import Plot
from cai.report.table import Table, about, packed


def page(template: str, filters: Mapping[str, Callable[..., Any]], room: str = "cai.report", **values: Any) -> str:
    """A template's HTML; it lies, as what it includes, in a room of the package or here with the style of all pages."""

    def source(name: str) -> str:
        file = files(room).joinpath(name)
        return (file if file.is_file() else files("cai.report").joinpath(name)).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(values)


# A report as HTML: its template, its scripts, and the policy that lets nothing else run.


SCRIPTS = ("text.js", "plots.js", "sources.js", "examples.js")  # in this order
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
"""Of every report; the scripts that may run are added to it. Plotly writes styles, and draws the pictures it saves."""
FILTERS: dict[str, Callable[..., Any]] = {"shown": shown, "plain": plain, "changed": changed, "json": inline_json}


def script(name: str) -> str:
    """One of our scripts."""
    return files("cai.report").joinpath(name).read_text(encoding="utf-8")


def plotly() -> str:
    """Plotly's script (MIT licence), out of its Python package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def report(template: str, table: Table | None, plots: list[Plot], url: str | None = None, **values: Any) -> str:
    """A report's HTML: one file that asks for nothing, or one that asks its server at `url` for the examples."""
    drawn = [{"data": plot.data, "layout": plot.layout} for plot in plots]
    values |= {"plots": plots, "drawn": drawn, "served": url is not None, "examples": None, "shown_of": ""}
    if url is not None:
        values |= {"examples": about(table) | {"url": url}} if table is not None else {}
        return page(template, FILTERS, "cai.report", **values)
    scripts = [script(name) for name in SCRIPTS]
    library = plotly()
    values |= {
        "policy": f"{POLICY}; script-src {' '.join(map(source_hash, [*scripts, library]))}",
        "scripts": [Markup(text) for text in scripts],
        "plotly": Markup(library),
    }
    if table is not None:
        carried = packed(table)
        total, part = len(table.lines), len(carried.lines)
        values |= {
            "examples": about(table._replace(lines=carried.lines)) | {"url": None},
            "data": carried.data,
            "shown_of": "" if part == total else _sampled(part, total),
        }
    return page(template, FILTERS, "cai.report", **values)


def served_page(template: str, **values: Any) -> str:
    """A page of a server without examples or plots."""
    return page(template, FILTERS, "cai.report", plots=[], examples=None, served=True, **values)


def _sampled(part: int, total: int) -> str:
    return (
        f"{part:,} of the {total:,} examples, drawn evenly: a page holds no more. The figures above are of all, "
        "and `cai serve` shows every one."
    )
