"""What pydantic finds wrong with data that people wrote, in their words: what was expected there, and what was found.

What was expected is read from the annotation of the place, so that every model has these messages without saying more.
"""

import difflib
import types
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from functools import reduce
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema
from typing_extensions import is_typeddict

Location = tuple[str | int, ...]
LONGEST = 60  # characters of a text that is told
NUMBERS = {int: "whole number", float: "number"}


class Problem(NamedTuple):
    """One thing that is wrong, and where: the steps into the data."""

    at: Location
    message: str


class Kind(NamedTuple):
    """One of the things that may stand in a place: a type with its bounds."""

    type: Any
    bounds: tuple[Any, ...] = ()

    def bound(self, name: str) -> Any:
        """A bound by its name in pydantic, or None."""
        return next((value for b in self.bounds if (value := getattr(b, name, None)) is not None), None)


def problems(
    model: type[BaseModel], data: Any, error: ValidationError, renamed: Mapping[str, str] | None = None
) -> list[Problem]:
    """Every fault once, in pydantic's order; `renamed` maps the dotted keys of earlier versions to today's."""
    told: list[Problem] = []
    attempts: set[Problem] = set()  # at a place with several kinds: why it is not one of them
    mistyped: set[Location] = set()  # fields that are missing for want of a letter
    for raw in error.errors():
        at = _without_tags(data, tuple(raw["loc"]), raw["type"])
        if raw["type"] in ("extra_forbidden", "invalid_key"):
            here = _value_at(data, at[:-1])
            models = [k.type for k in _kinds_at(model, data, at[:-1]) if _is_model(k.type) and _chosen(k.type, here)]
            if (new := renamed_key(at, renamed or {})) is not None:
                told.append(Problem((*at[:-1], str(at[-1])), f"{found(str(at[-1]))} is now called '{new}'"))
                continue
            near = nearest(str(at[-1]), (name for m in models for name in m.model_fields))
            known = dict.fromkeys(name for m in models for name in settable(m))
            hint = f"did you mean '{near}'?" if near else f"known keys: {', '.join(known)}"
            told.append(Problem((*at[:-1], str(at[-1])), f"unknown key {found(str(at[-1]))}; {hint}"))
            mistyped.add((*at[:-1], near or ""))
        else:
            told.append(_problem(model, data, at, raw))
        if len(at) < len(raw["loc"]):
            attempts.add(told[-1])
    inner = {f.at[:n] for f in told for n in range(len(f.at))}
    return [
        f
        for f in dict.fromkeys(told)
        if not (f in attempts and f.at in inner) and not (f.at in mistyped and f.message.startswith("missing"))
    ]


def renamed_key(at: Location, renamed: Mapping[str, str]) -> str | None:
    """Today's dotted name of a key of an earlier version, or None for a key that was never one.

    The file may hold one section alone (`thoughts` for `judge.thoughts`), and list positions do not count.
    """
    dotted = ".".join(step for step in at if isinstance(step, str))
    return next(
        (new for old, new in renamed.items() if f".{dotted}".endswith(f".{old}") or old.endswith(f".{dotted}")), None
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is likely meant, also by its initials; None if none is."""
    listed = list(names)
    short = [n for n in listed if "_" in n and "".join(part[:1] for part in n.split("_")) == name]
    return next(iter(difflib.get_close_matches(name, listed, n=1) or short), None)


def spoken(data: Any, at: Location) -> str:
    """A location as a person says it: `principles[3] ('no-harm').critique`."""
    name = ""
    for step in at:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else str(step)
        data = _into(data, step)
        if isinstance(step, int) and isinstance(data, dict) and isinstance(data.get("id"), str):
            name += f" ('{data['id']}')"
    return name


def _problem(model: type[BaseModel], data: Any, at: Location, raw: Any) -> Problem:
    kind, context, value = raw["type"], raw.get("ctx", {}), raw["input"]
    if kind not in get_args(core_schema.ErrorType) or kind in ("value_error", "assertion_error"):
        return Problem((*at, *context.get("at", ())), raw["msg"].removeprefix("Value error, "))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        at = (*at, context["discriminator"].strip("'"))
        value = value.get(at[-1]) if isinstance(value, dict) else None
    kinds = _kinds_at(model, data, at)
    expected = _any_of(kinds)
    if kind in ("missing", "union_tag_not_found"):
        return Problem(at, f"missing; expected {expected}" if expected else "missing")
    message = f"expected {expected}" if expected else raw["msg"]
    return Problem(at, f"{message}, found {found(value)}{_hint(kinds, value)}")


def settable(model: type[BaseModel]) -> list[str]:
    """The fields of a model that can be chosen: not those of one value alone."""
    return [name for name, field in model.model_fields.items() if not _fixed(field.annotation)]


def bool_for_number(model: type[BaseModel], name: str, value: Any) -> str | None:
    """What to tell of true or false in place of a number, which pydantic takes for 1 or 0; None if all is well."""
    field = model.model_fields[name]
    takes = kinds(field.annotation, tuple(field.metadata))
    if isinstance(value, bool) and any(k.type in NUMBERS for k in takes) and not any(k.type is bool for k in takes):
        return f"expected {_any_of(takes)}, found {found(value)}"
    return None


def found(value: Any) -> str:
    """What was written in place of what was expected; characters that may pass for others are named."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    odd = dict.fromkeys(c for c in str(value) if not c.isascii())
    named = ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in odd)
    text = str(value) if isinstance(value, date) else repr(value)
    if len(text) > LONGEST:
        return text[: LONGEST - 1] + "…"
    return text + (f" (with {named})" if named else "")


def _hint(kinds: list[Kind], value: Any) -> str:
    if near := nearest(str(value), _values(kinds)):
        return f"; did you mean '{near}'?"
    is_text = any(kind.type is str for kind in kinds)
    return "; put it in quotes to mean the text" if is_text and isinstance(value, bool | int | float | date) else ""


def _values(kinds: list[Kind]) -> list[str]:
    """The values of a place that may hold nothing else."""
    return [str(value) for kind in kinds if get_origin(kind.type) is Literal for value in get_args(kind.type)]


def _fixed(annotation: Any) -> bool:
    """Whether there is nothing to choose in a place, such as `stage` of one stage's settings."""
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _any_of(kinds: list[Kind]) -> str:
    """What may stand in a place, in words; empty where there are none for it."""
    models = [kind.type for kind in kinds if _is_model(kind.type)]
    if len(models) > 1:  # one of its fields tells them apart
        return f"a mapping with {', '.join(n for n, f in models[0].model_fields.items() if f.is_required())}"
    words = list(dict.fromkeys(_words(kind) for kind in kinds if get_origin(kind.type) is not Literal))
    if not all(words):
        return ""
    if values := [f"'{value}'" for value in _values(kinds)]:
        words.insert(0, f"one of {', '.join(values)}" if len(values) > 2 else " or ".join(values))
    return (" or " if len(words) < 3 else ", or ").join(words)


def _words(kind: Kind) -> str:
    origin, arguments = get_origin(kind.type), get_args(kind.type)
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)} {_plural(arguments[0])}"
    if origin in (list, tuple):
        return f"a list of {_plural(arguments[0])}" + (" that is not empty" if kind.bound("min_length") else "")
    if _is_model(kind.type):
        names = settable(kind.type)
        return f"a mapping with {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
    if is_typeddict(kind.type):
        return f"a mapping with {', '.join(get_type_hints(kind.type))}"
    if kind.type is str and (pattern := kind.bound("pattern")):
        return f"a text that matches {getattr(pattern, 'pattern', pattern)}"
    if kind.type is str and kind.bound("min_length"):
        return "a text that is not empty"
    if kind.type in NUMBERS:
        return f"a {NUMBERS[kind.type]}{_range(kind)}"
    others = {str: "a text", bool: "true or false", type(None): "null"}
    return others.get(kind.type, "a mapping" if origin is dict else "")


def _range(kind: Kind) -> str:
    ge, gt, le, lt = (kind.bound(name) for name in ("ge", "gt", "le", "lt"))
    if ge is not None and le is not None:
        return f" from {ge:g} to {le:g}"
    low = f"at least {ge:g}" if ge is not None else f"above {gt:g}" if gt is not None else ""
    high = f"at most {le:g}" if le is not None else f"below {lt:g}" if lt is not None else ""
    said = " and ".join(filter(None, [low, high]))
    return (" of " if said.startswith("at ") else " ") + said if said else ""


def _plural(annotation: Any) -> str:
    first = kinds(annotation)[0].type
    if get_origin(first) is Literal:
        return ", ".join(f"'{value}'" for value in get_args(first))
    things = {Any: "values", str: "texts", **{number: f"{name}s" for number, name in NUMBERS.items()}}
    return things.get(first, "lists" if get_origin(first) in (list, tuple) else "mappings")


def kinds(annotation: Any, bounds: tuple[Any, ...] = ()) -> list[Kind]:
    """The kinds that an annotation allows, its unions and bounds taken apart."""
    if get_origin(annotation) is Annotated:
        base, *more = get_args(annotation)
        return kinds(base, (*_flat(more), *bounds))
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in kinds(member, bounds)]
    return [Kind(annotation, tuple(_flat(bounds)))]


def _flat(bounds: Iterable[Any]) -> Iterator[Any]:
    for bound in bounds:
        yield bound
        yield from getattr(bound, "metadata", ())


def _kinds_at(model: type[BaseModel], data: Any, at: Location) -> list[Kind]:
    """The kinds that a place of the data may hold; none where the model does not say."""
    here = [Kind(model)]
    for step in at:
        if isinstance(step, int):
            items = [get_args(k.type) for k in here if get_origin(k.type) in (list, tuple)]
            here = [k for item in items if item for k in kinds(item[min(step, len(item) - 1)])]
        else:
            here = _field_kinds(here, data, step)
        data = _into(data, step)
    return here


def _value_at(data: Any, at: Location) -> Any:
    return reduce(_into, at, data)


def _into(data: Any, step: str | int) -> Any:
    """What stands a step further, or None."""
    try:
        return data[step]
    except (KeyError, IndexError, TypeError):
        return None


def _field_kinds(here: list[Kind], data: Any, name: str) -> list[Kind]:
    """The kinds of a field of whichever model the data chose by its fields of one value, such as `stage`."""
    found: list[Kind] = []
    for kind in here:
        if get_origin(kind.type) is dict:
            found += kinds(get_args(kind.type)[1])
        if is_typeddict(kind.type):
            found += kinds(get_type_hints(kind.type, include_extras=True).get(name))
        if not _is_model(kind.type) or name not in kind.type.model_fields:
            continue
        field = kind.type.model_fields[name]
        if _chosen(kind.type, data, name):
            found += kinds(field.annotation, tuple(field.metadata))
    return found


def _chosen(model: type[BaseModel], data: Any, besides: str = "") -> bool:
    """Whether data may be of a model by its fields of one value, such as `stage`; one of them not looked at."""
    return all(
        (data or {}).get(name) in (None, *_values(kinds(field.annotation)))
        for name, field in model.model_fields.items()
        if name != besides and _fixed(field.annotation)
    )


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _without_tags(data: Any, at: Location, kind: str) -> Location:
    """Drop the steps that pydantic adds for the chosen member of a union."""
    kept: list[str | int] = []
    for index, step in enumerate(at):
        if (isinstance(data, list) and isinstance(step, int)) or (isinstance(data, dict) and step in data):
            data = _into(data, step)
        elif index < len(at) - 1 or kind not in ("missing", "invalid_key"):
            continue
        kept.append(step)
    return tuple(kept)
