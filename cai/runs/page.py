"""Self-contained HTML pages from the templates in this folder. What is put into one is escaped, always."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import jinja2


def page(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A template's HTML with the style of all pages (page.css): no network, no scripts."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files("cai.runs").joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template).render(values)
