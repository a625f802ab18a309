"""Pydantic's errors in the user's words: where, what was expected, what was found, and what to write.

The expectation is derived from the annotation of the field, so that every model has these messages without more code.
"""

import difflib
import types
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import reduce
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema
from typing_extensions import is_typeddict

from cai.config.errors import without_password

Location = tuple[str | int, ...]
LONGEST = 60  # characters of a value in a message
SIMILAR = 0.6  # ratio of difflib from which names are suggested, its own default
PLACE_DIGITS = 18  # of a place in a list; Python refuses to convert thousands
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ID = r"^[a-z0-9][a-z0-9_-]*$"
NAMES = {
    RUN_NAME: "a name of letters, digits, '.', '_' and '-' that begins with a letter or digit",
    ID: "a name of lower-case letters, digits, '_' and '-' that begins with a letter or digit",
}
"""What patterns of names ask for, in words."""
NUMBERS = {int: "whole number", float: "number"}


class Problem(NamedTuple):
    """One error and its location, the steps into the data; an unknown key has the known ones most like it."""

    at: Location
    message: str
    similar: tuple[str, ...] = ()

    def text(self, below: str = "") -> str:
        """The message with its suggestions; `below` is what follows the key in a dotted name, such as `.samples`."""
        return self.message + (f"; {did_you_mean([name + below for name in self.similar])}" if self.similar else "")


class Kind(NamedTuple):
    """One of the types that a field allows, with its bounds."""

    type: Any
    bounds: tuple[Any, ...] = ()

    def bound(self, name: str) -> Any:
        """A bound by its name in pydantic; None where there is none."""
        return next((value for b in self.bounds if (value := getattr(b, name, None)) is not None), None)


def problems(
    model: type[BaseModel], data: Any, error: ValidationError, renamed: Mapping[str, str] | None = None
) -> list[Problem]:
    """Every error once, in pydantic's order; `renamed` maps the dotted keys of earlier versions to today's."""
    reported: list[Problem] = []
    attempts: set[Problem] = set()  # of a field with several types: why the value is none of them
    mistyped: set[Location] = set()  # required fields that a misspelt key stands for
    for raw in error.errors():
        at = _without_tags(data, tuple(raw["loc"]), raw["type"])
        if raw["type"] in ("extra_forbidden", "invalid_key"):
            here = _value_at(data, at[:-1])
            models = [k.type for k in _kinds_at(model, data, at[:-1]) if _is_model(k.type) and _chosen(k.type, here)]
            if (new := renamed_key(at, renamed or {}, {name for m in models for name in m.model_fields})) is not None:
                reported.append(Problem((*at[:-1], str(at[-1])), f"{describe(str(at[-1]))} is now called '{new}'"))
                continue
            reported.append(_unknown_key((*at[:-1], str(at[-1])), models, here))
            mistyped.update((*at[:-1], name) for name in reported[-1].similar[:1])
        else:
            reported.append(_problem(model, data, at, raw))
        if len(at) < len(raw["loc"]):
            attempts.add(reported[-1])
    inner = {problem.at[:n] for problem in reported for n in range(len(problem.at))}
    return [
        problem
        for problem in dict.fromkeys(reported)
        if not (problem in attempts and problem.at in inner)
        and not (problem.at in mistyped and problem.message.startswith("missing"))
    ]


def _unknown_key(at: Location, models: list[type[BaseModel]], here: Any) -> Problem:
    """A key that none of the models has; `here` is the mapping that holds it."""
    key = str(at[-1])
    chosen_by = [
        f" for {name} {describe(here.get(name))}"
        for m in models
        for name in m.model_fields
        if _fixed(m.model_fields[name].annotation) and here.get(name) is not None
    ]
    message = f"unknown key {describe(key)}{''.join(dict.fromkeys(chosen_by))}"
    if similar := closest_names(key, (name for m in models for name in m.model_fields)):
        return Problem(at, message, similar)
    return Problem(at, f"{message}; {_known_keys(models)}")


def reaching(problem: Problem, model: type[BaseModel], data: Any, below: str) -> Problem:
    """An unknown key with only the suggestions that have the rest of its dotted name, such as `.samples`."""
    rest = [int(step) if step.isdecimal() and len(step) <= PLACE_DIGITS else step for step in below.split(".")[1:]]
    similar = tuple(name for name in problem.similar if _kinds_at(model, data, (*problem.at[:-1], name, *rest)))
    if similar or not problem.similar:
        return problem._replace(similar=similar)
    here = [kind.type for kind in _kinds_at(model, data, problem.at[:-1]) if _is_model(kind.type)]
    return Problem(problem.at, f"{problem.message}; {_known_keys(here)}")


def _known_keys(models: list[type[BaseModel]]) -> str:
    return f"known keys: {', '.join(dict.fromkeys(name for m in models for name in settable(m)))}"


def renamed_key(at: Location, renamed: Mapping[str, str], fields: Container[str]) -> str | None:
    """Today's name of a key of an earlier version, or None for a key that was never one.

    The file may hold one section alone (`thoughts` for `judge.thoughts`), and list positions do not count. A new name
    without a dot stands in the same place, and counts only among the `fields` there. A new name in the section of the
    old one is returned without the section.
    """
    dotted = ".".join(step for step in at if isinstance(step, str))
    for old, new in renamed.items():
        if (f".{dotted}".endswith(f".{old}") or old.endswith(f".{dotted}")) and ("." in new or new in fields):
            section, _, name = new.rpartition(".")
            return name if section and f".{dotted.rpartition('.')[0]}".endswith(f".{section}") else new
    return None


def closest_names(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """At most two of `names`, the closest first: spelt alike or with this beginning; or else those with these initials.

    The second is about as close as the first: their similarities, in [0, 1], differ by 0.1 at most.
    """
    listed = list(dict.fromkeys(names))
    similarity = {n: difflib.SequenceMatcher(None, n, name).ratio() for n in listed}
    begin = {n for n in listed if len(name) > 2 and n.startswith(name)}
    near = sorted((n for n in listed if similarity[n] >= SIMILAR or n in begin), key=lambda n: -similarity[n])
    initials = [n for n in listed if "_" in n and "".join(part[:1] for part in n.split("_")) == name]
    return tuple(n for n in near if similarity[n] >= similarity[near[0]] - 0.1)[:2] or tuple(initials[:1])


def did_you_mean(names: Sequence[str]) -> str:
    """A question that offers names: `did you mean 'samples'?`."""
    return f"did you mean {' or '.join(map(repr, names))}?"


def format_location(data: Any, at: Location) -> str:
    """A location in an error message: `principles[3] ('no-harm').critique`."""
    name = ""
    for step in at:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else str(step)
        data = _into(data, step)
        if isinstance(step, int) and isinstance(data, dict) and isinstance(data.get("id"), str):
            name += f" ('{data['id']}')"
    return name


def _problem(model: type[BaseModel], data: Any, at: Location, raw: Any) -> Problem:
    kind, context, value = raw["type"], raw.get("ctx", {}), raw["input"]
    if raw["loc"][-1:] == ("[key]",):
        return Problem(at, f"expected a text as the key, found {describe(value)}; put it in quotes to mean the text")
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
    return Problem(at, f"{message}, found {describe(value)}{_hint(kinds, value)}")


def settable(model: type[BaseModel]) -> list[str]:
    """The fields of a model that a user can set: not those that allow a single value."""
    return [name for name, field in model.model_fields.items() if not _fixed(field.annotation)]


def bool_for_number(model: type[BaseModel], name: str, value: Any) -> str | None:
    """The error for true or false in place of a number, which pydantic would read as 1 or 0; None if there is none."""
    field = model.model_fields[name]
    takes = kinds(field.annotation, tuple(field.metadata))
    if isinstance(value, bool) and any(k.type in NUMBERS for k in takes) and not any(k.type is bool for k in takes):
        return f"expected {_any_of(takes)}, found {describe(value)}"
    return None


def describe(value: Any) -> str:
    """A value as an error shows it; non-ASCII characters, which may look like others, are named."""
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
    text = str(value) if isinstance(value, date) else without_password(repr(value))
    if len(text) > LONGEST:
        return text[: LONGEST - 1] + "…"
    return text + (f" (with {named})" if named else "")


def _hint(kinds: list[Kind], value: Any) -> str:
    if similar := closest_names(str(value), _values(kinds)):
        return f"; {did_you_mean(similar)}"
    is_text = any(kind.type is str for kind in kinds)
    return "; put it in quotes to mean the text" if is_text and isinstance(value, bool | int | float | date) else ""


def _values(kinds: list[Kind]) -> list[str]:
    """The literal values that a field allows."""
    return [str(value) for kind in kinds if get_origin(kind.type) is Literal for value in get_args(kind.type)]


def _fixed(annotation: Any) -> bool:
    """Whether a field allows a single value, such as `stage` in the settings of one stage."""
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _any_of(kinds: list[Kind]) -> str:
    """The allowed types in words; empty where there are none for one of them."""
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
        expression = str(getattr(pattern, "pattern", pattern))
        return NAMES.get(expression, f"a text that matches {expression}")
    if kind.type is str and kind.bound("min_length"):
        return "a text that is not empty"
    if kind.type in NUMBERS:
        return f"a {NUMBERS[kind.type]}{_range(kind)}"
    others = {str: "a text", bool: "true or false", type(None): "null"}
    return others.get(kind.type, "a mapping" if origin is dict else "")


def _range(kind: Kind) -> str:
    ge, gt, le, lt = (
        None if bound is None else str(bound) if isinstance(bound, int) else f"{bound:g}"
        for bound in (kind.bound(name) for name in ("ge", "gt", "le", "lt"))
    )
    if ge is not None and le is not None:
        return f" from {ge} to {le}"
    low = f"at least {ge}" if ge is not None else f"above {gt}" if gt is not None else ""
    high = f"at most {le}" if le is not None else f"below {lt}" if lt is not None else ""
    bounds = " and ".join(filter(None, [low, high]))
    return (" of " if bounds.startswith("at ") else " ") + bounds if bounds else ""


def _plural(annotation: Any) -> str:
    first = kinds(annotation)[0].type
    if get_origin(first) is Literal:
        return ", ".join(f"'{value}'" for value in get_args(first))
    plurals = {Any: "values", str: "texts", **{number: f"{name}s" for number, name in NUMBERS.items()}}
    return plurals.get(first, "lists" if get_origin(first) in (list, tuple) else "mappings")


def kinds(annotation: Any, bounds: tuple[Any, ...] = ()) -> list[Kind]:
    """The types that an annotation allows, with unions and bounds unpacked."""
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
    """The types that a location of the data may hold; none where the model does not say."""
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
    """The value one step further, or None."""
    try:
        return data[step]
    except (KeyError, IndexError, TypeError):
        return None


def _field_kinds(here: list[Kind], data: Any, name: str) -> list[Kind]:
    """The types of a field, of the model that the data selects by its single-value fields, such as `stage`."""
    allowed: list[Kind] = []
    for kind in here:
        if get_origin(kind.type) is dict:
            allowed += kinds(get_args(kind.type)[1])
        if is_typeddict(kind.type):
            allowed += kinds(get_type_hints(kind.type, include_extras=True).get(name))
        if not _is_model(kind.type) or name not in kind.type.model_fields:
            continue
        field = kind.type.model_fields[name]
        if _chosen(kind.type, data, name):
            allowed += kinds(field.annotation, tuple(field.metadata))
    return allowed


def _chosen(model: type[BaseModel], data: Any, besides: str = "") -> bool:
    """Whether data fits a model by its single-value fields, such as `stage`, apart from the field `besides`."""
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
