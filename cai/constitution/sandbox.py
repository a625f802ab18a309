"""Jinja for templates of strangers: plain values in, bounded text out, and no Python in between.

A template folder may come with somebody else's run, so a template must not be able to run code, read a file, see
anything but its variables, or keep the machine busy. Four rules, each in one place:

Syntax   A template is parsed by Jinja, and its tree checked before anything of it runs, against the lists of
         `cai/constitution/template_limits.py`. There is no recursion, no second file, and no call but of what is
         listed.
Values   Variables, and the value of every expression, are exactly of the types in `PLAIN`. `a.b` is the key `b` of a
         dict; no attribute of a Python object is ever read, so there is no object to climb out of.
Work     The tree is rewritten (`_Metered`) so that every value, operation, turn of a loop and piece of output is paid
         for, in characters: a value costs `VALUE` plus its size, an operation also its arguments' size times the
         length of what it works on. That covers the time and memory of all that is allowed. What can make more out
         of less (`*`, `**`, `range`, `indent`) is checked before it is computed. Nothing depends on a clock: the same
         template and variables always succeed or always fail.
Output   `MAX_OUTPUT` characters. Both budgets grow with the size of the variables, so that long data passes.

Below that lies Jinja's own `ImmutableSandboxedEnvironment` with `StrictUndefined`. Constants are not folded, so that
compiling a template computes nothing.
"""

import base64
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import Undefined, filters, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateRuntimeError, UndefinedError
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import htmlsafe_json_dumps
from jinja2.visitor import NodeTransformer

from cai.constitution.template_limits import (
    ELEMENT,
    FILTERS,
    LOOP,
    METHODS,
    PLAIN,
    SCALARS,
    TESTS,
    TEXT_FILTERS,
    VALUE,
    Exceeded,
    TemplateFault,
    Work,
    check_syntax,
    expected,
    is_name,
    size,
)

MAX_SOURCE = 2**16  # characters of a template; the shipped ones have under 1,000
MAX_EXPONENT = 64
MAX_PRECISION = 20  # decimal places of `round`
LEET = str.maketrans("aeiostAEIOST", "431057431057")

LAZY: Any = (Iterator, type({}.keys()), type({}.values()), type({}.items()))
KINDS: dict[type, str] = {
    **{str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "none"},
    **{list: "a list", tuple: "a list", dict: "a dict"},
}


class _BoundedContext(Context):
    work: Work


@pass_context
def _measured(context: _BoundedContext, value: Any) -> Any:
    if type(value) is str:  # mostly
        context.work.spend(VALUE + len(value))
    elif not isinstance(value, Undefined):
        context.work.value(value)
    return value


@pass_context
def _shown(context: _BoundedContext, *values: Any) -> str:
    """The text of a line; one call for all its pieces, since calls are most of the time here."""
    texts = [value if type(value) is str else str(_measured(context, value)) for value in values]
    context.work.spend(VALUE * len(texts))
    context.work.write(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _iterated(context: _BoundedContext, value: Any) -> Any:
    if isinstance(value, Undefined):
        str(value)  # raises
    if type(value) not in METHODS:
        raise TypeError(f"expected a list to loop over, found {KINDS[type(value)]}")
    context.work.spend(VALUE * len(value))
    return value


@pass_context
def _filtered(context: _BoundedContext, value: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    return context.environment.call_filter(name, value, args, kwargs, context)


@pass_context
def _tested(context: _BoundedContext, value: Any, name: str, *args: Any, **kwargs: Any) -> bool:
    return bool(context.environment.call_test(name, value, args, kwargs, context))


@pass_context
def _called(context: _BoundedContext, value: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    if isinstance(value, Undefined):
        str(value)  # raises
    if name not in METHODS.get(type(value), ()):
        raise UndefinedError(f"{KINDS[type(value)]} has no method '{name}'")
    context.work.operation(value, args, kwargs)
    return _listed(getattr(type(value), name)(value, *args, **kwargs))


@pass_context
def _range(context: _BoundedContext, bounds: list[Any]) -> list[int]:
    numbers = range(*bounds)
    context.work.check(ELEMENT * len(numbers))
    return list(numbers)


METERS = {
    "metered value": _measured,
    "metered output": _shown,
    "metered loop": _iterated,
    "metered filter": _filtered,
    "metered test": _tested,
    "metered method": _called,
    "metered range": _range,
}
"""What `_Metered` puts into a tree, as filters; no template can name them."""


@pass_context
def _indent(context: _BoundedContext, text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = str(text).count("\n") + 2
    context.work.check(lines * (len(width) if isinstance(width, str) else width))
    return filters.do_indent(str(text), width, first, blank)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > MAX_PRECISION:
        raise ValueError(f"the precision of round is {precision}; expected at most {MAX_PRECISION}")
    return filters.do_round(value, precision, method)  # type: ignore[arg-type]  # it checks the method


@pass_environment
def _sum(environment: jinja2.Environment, values: Any, attribute: str | int | None = None) -> Any:
    return filters.do_sum(environment, values, attribute)  # without a start: lists added up take quadratic time


def _tojson(value: Any) -> str:
    return str(htmlsafe_json_dumps(value))


FUNCTIONS: dict[str, Any] = {name: filters.FILTERS[name] for name in sorted(FILTERS) if name in filters.FILTERS}
FUNCTIONS |= {"indent": _indent, "round": _round, "sum": _sum, "tojson": _tojson}
FUNCTIONS |= {  # of our own: encodings of a request, for probes
    "base64": lambda text: base64.b64encode(str(text).encode("utf-8")).decode("ascii"),
    "leet": lambda text: str(text).translate(LEET),
    "spaced": lambda text: " ".join(str(text)),
}


def _listed(result: Any) -> Any:
    """The elements of what Jinja and Python give lazily."""
    if type(result) in PLAIN or not isinstance(result, LAZY):  # mostly
        return result
    return list(result)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which operations reach plain values alone and are paid for."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    context_class = _BoundedContext

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, optimized=False)
        self.globals = {}
        self.filters = FUNCTIONS | METERS
        self.tests = {name: JINJA_TESTS[name] for name in TESTS}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:  # mostly
            return obj[attribute]
        if isinstance(obj, LoopContext) and attribute in LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            str(obj)  # raises
        kind = type(obj)
        try:
            if kind is dict or (kind in (str, list, tuple) and type(argument) is int):
                return obj[argument]
        except LookupError:
            pass
        keys = f"; it has {', '.join(map(str, [*obj][:9]))[:200]}" if kind is dict and obj else ""
        what = KINDS.get(kind, "this")
        return self.undefined(f"{what} has no {str(argument)[:100]!r}{keys}", exc=UndefinedError)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        raise SecurityError("a template calls nothing")

    def is_safe_callable(self, obj: Any) -> bool:
        return False

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        assert isinstance(context, _BoundedContext)
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)  # raises
        if isinstance(left, int | float) and isinstance(right, int | float):
            if operator == "**" and abs(right) > MAX_EXPONENT:
                raise Exceeded(f"the exponent is {right}; expected at most {MAX_EXPONENT}")
            return self.binop_table[operator](left, right)
        if operator == "+" and type(left) is type(right) and type(left) in (str, list, tuple):
            return left + right
        if operator == "*" and isinstance(left, int):
            left, right = right, left
        if operator == "*" and type(left) in (str, list, tuple) and isinstance(right, int):
            context.work.check(size(left) * right)
            return left * right
        hint = "; join text with ~" if str in (type(left), type(right)) else ""
        raise TypeError(f"'{operator}' does not work on {KINDS[type(left)]} and {KINDS[type(right)]}{hint}")

    def call_filter(
        self, name: str, value: Any, args: Any = (), kwargs: Any = None, context: Any = None, *_: Any
    ) -> Any:
        """Also what `map` calls."""
        if name not in FILTERS:
            raise TemplateRuntimeError(f"there is no filter '{name}'; {expected(FILTERS)}")
        if name in TEXT_FILTERS and type(value) not in SCALARS and not isinstance(value, Undefined):
            raise TypeError(f"the filter '{name}' works on text, found {KINDS[type(value)]}")
        context.work.operation(value, args, kwargs or {})
        return _listed(super().call_filter(name, value, args, kwargs, context))

    def call_test(self, name: str, value: Any, args: Any = (), kwargs: Any = None, context: Any = None, *_: Any) -> Any:
        """Also what `select` and `reject` call."""
        if name not in TESTS:
            raise TemplateRuntimeError(f"there is no test '{name}'; {expected(TESTS)}")
        context.work.operation(value, args, kwargs or {})
        return super().call_test(name, value, args, kwargs, context)


class _Metered(NodeTransformer):
    """A checked tree in which everything is paid for: see `METERS`."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, nodes.Getattr) and is_name(node.node, "loop"):
            return self._meter("value", node)
        if isinstance(node, nodes.Call):
            return self._meter("value", self._call(node))
        self.generic_visit(node)
        match node:
            case nodes.Output():
                node.nodes = [self._line(*line) for line in _lines(map(_part, node.nodes))]
            case nodes.For():
                node.iter = self._meter("loop", _part(node.iter))
            case nodes.Getattr() | nodes.Getitem():
                node.node = _part(node.node)
            case nodes.Const(value=value) if not isinstance(value, str) or len(value) <= VALUE:
                return node
            case nodes.Filter() | nodes.Test():
                what = "filter" if isinstance(node, nodes.Filter) else "test"
                assert node.node is not None  # checked
                node = self._meter(what, _part(node.node), [nodes.Const(node.name), *node.args], node.kwargs)
        is_value = isinstance(node, nodes.Expr) and not isinstance(node, nodes.Slice | nodes.TemplateData)
        if is_value and getattr(node, "ctx", "load") == "load":
            return self._meter("value", node)
        return node

    def _call(self, node: nodes.Call) -> nodes.Filter:
        """A method as a filter of what it belongs to, so that no method is ever a value."""
        arguments = [self.visit(argument) for argument in node.args]
        if not isinstance(node.node, nodes.Getattr):
            return self._meter("range", nodes.List(arguments, lineno=node.lineno))
        named = [self.visit(argument) for argument in node.kwargs]
        return self._meter(
            "method", _part(self.visit(node.node.node)), [nodes.Const(node.node.attr), *arguments], named
        )

    def _line(self, number: int, pieces: Sequence[nodes.Expr]) -> nodes.Filter:
        shown = self._meter("output", pieces[0], pieces[1:])
        shown.lineno = number or shown.lineno
        return shown

    def _meter(
        self, what: str, node: nodes.Node, args: Sequence[nodes.Node] = (), kwargs: Sequence[nodes.Node] = ()
    ) -> nodes.Filter:
        return nodes.Filter(node, f"metered {what}", list(args), list(kwargs), None, None, lineno=node.lineno)


def _lines(pieces: Iterable[nodes.Expr]) -> list[tuple[int, list[nodes.Expr]]]:
    """Pieces of output, grouped by the line of the template that an error in them comes from; text joins any group."""
    lines: list[tuple[int, list[nodes.Expr]]] = []
    for piece in pieces:
        line = 0 if isinstance(piece, nodes.TemplateData) else piece.lineno
        if lines and (line in (0, lines[-1][0]) or lines[-1][0] == 0):
            before, group = lines[-1]
            group.append(piece)
            lines[-1] = (line or before, group)
        else:
            lines.append((line, [piece]))
    return lines


def _part(node: nodes.Node) -> Any:
    """A variable, or an element of one, without its meter, where what is done to it is paid for."""
    if isinstance(node, nodes.Filter) and node.name == "metered value":
        inner = node.node
        if isinstance(inner, nodes.Name) or (isinstance(inner, nodes.Getattr) and not is_name(inner.node, "loop")):
            return inner
    return node


_ENVIRONMENT = _Environment()


class Template:
    """A template that has passed every check that needs no values; `renamed` has the new names of old variables.

    Raises: TemplateFault for what a template may not hold, and for variables that are neither in `variables` nor set.
    """

    def __init__(self, source: str, variables: Collection[str], renamed: Mapping[str, str] | None = None) -> None:
        parser = None
        try:
            parser = Parser(_ENVIRONMENT, source)
            tree = parser.parse()
            check_syntax(tree, variables, renamed or {})
            self._constant = {b.name for b in tree.find_all(nodes.Block) if b.find(nodes.Name) is None}
            _Metered().visit(tree)  # in place
            code = _ENVIRONMENT.compile(tree)
            self._template = jinja2.Template.from_code(_ENVIRONMENT, code, {})
            self._rendered: dict[str, str] = {}  # blocks without variables
        except TemplateFault:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise TemplateFault(error.lineno, f"not a valid template: {error.message}") from error
        except Exception as error:  # nested too deeply for Jinja or Python, a number of thousands of digits
            raise TemplateFault(parser.stream.current.lineno if parser is not None else 1, _message(error)) from error

    @property
    def blocks(self) -> Collection[str]:
        """Names of the template's blocks."""
        return self._template.blocks.keys()

    def render(self, variables: Mapping[str, Any], block: str | None = None) -> str:
        """The text of the template, or of one of its blocks alone, without the space around it.

        Raises: TypeError for a variable that is not plain; TemplateFault for whatever the template does wrong.
        """
        if block in self._rendered:
            return self._rendered[block]
        work = Work(variables)
        render = self._template.root_render_func if block is None else self._template.blocks[block]
        try:
            context = self._template.new_context(dict(variables), shared=True)
            assert isinstance(context, _BoundedContext)
            context.work = work
            text = "".join(render(context)).strip()
        except Exception as error:  # whatever an expression may raise
            raise TemplateFault(self._line(error), _message(error)) from error
        if block in self._constant:
            self._rendered[block] = text
        return text

    def _line(self, error: Exception) -> int:
        """The line of the template that an error comes from."""
        line = 1
        for frame, number in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(number)
        return line


def _message(error: Exception) -> str:
    match error:
        case RecursionError():
            return "nested too deeply"
        case MemoryError():
            return "a value is too large"
    return str(error) or type(error).__name__
