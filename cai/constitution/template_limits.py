"""What of Jinja the templates of prompts and probes may use, checked on the parsed tree, and what a rendering may cost.

Statements are text, `{{ … }}`, if, for, set, with, block and raw; there are no macros, includes, imports or parent
templates, hence no recursion and no second file. Expressions call nothing but filters, tests, methods of text, lists
and dicts, and `range`, all of them listed here. What these do to values is decided in `cai/constitution/sandbox.py`.

Nor may one rendering spend more than its budgets, in characters: the size of values, work and output. Nothing depends
on a clock: the same template and variables always succeed or always fail.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.exceptions import TemplateRuntimeError

MAX_DEPTH = 50  # of nested statements and expressions, in nodes of the tree
MAX_INT = 2**63

ALLOWED = frozenset[type[nodes.Node]](
    (
        *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Block, nodes.Assign),
        *(
            nodes.AssignBlock,
            nodes.With,
            nodes.Scope,
            nodes.Name,
            nodes.Const,
            nodes.Tuple,
            nodes.List,
            nodes.Dict,
            nodes.Pair,
        ),
        *(nodes.Keyword, nodes.Slice, nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Filter, nodes.Test),
        *(nodes.CondExpr, nodes.Concat, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Add),
        *(nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow, nodes.Neg, nodes.Pos),
    )
)
TAGS: dict[type[nodes.Node], str] = {
    **{nodes.Macro: "macro", nodes.CallBlock: "call", nodes.FilterBlock: "filter", nodes.Include: "include"},
    **{nodes.Import: "import", nodes.FromImport: "from", nodes.Extends: "extends"},
    nodes.ScopedEvalContextModifier: "autoescape",
}
METHODS: dict[type, tuple[str, ...]] = {
    str: (
        *("capitalize", "count", "endswith", "find", "isdigit", "islower", "isspace", "isupper", "join", "lower"),
        *("lstrip", "removeprefix", "removesuffix", "replace", "rstrip", "split", "splitlines", "startswith"),
        *("strip", "title", "upper"),
    ),
    **{list: ("count", "index"), tuple: ("count", "index"), dict: ("get", "items", "keys", "values")},
}
LOOP = ("first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0")
RESERVED = ("loop", "range", "self", "super")
TEXT_FILTERS = (
    *("base64", "capitalize", "indent", "leet", "lower", "replace", "spaced", "title", "trim", "truncate", "upper"),
    "wordcount",
)
OTHER_FILTERS = (
    *("abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last", "length", "list"),
    *("map", "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "string"),
    *("sum", "tojson", "unique"),
)
FILTERS = frozenset((*TEXT_FILTERS, *OTHER_FILTERS))
TESTS = (
    *("boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "ge", "greaterthan", "gt", "in"),
    *("integer", "le", "lessthan", "lower", "lt", "mapping", "ne", "none", "number", "odd", "sequence", "string"),
    *("true", "undefined", "upper", "==", "!=", ">", ">=", "<", "<="),
)


class TemplateFault(Exception):
    """What is wrong with a template, and on which line, from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


def check_syntax(tree: nodes.Template, variables: Collection[str], renamed: Mapping[str, str]) -> None:
    """Raises: TemplateFault for the first thing, from the top, that a template may not hold."""
    names = {*variables, *(name.name for name in tree.find_all(nodes.Name) if name.ctx != "load")}
    faults: list[TemplateFault] = []
    rest: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while rest:
        node, depth = rest.pop()
        reason = "nested too deeply" if depth > MAX_DEPTH else _reason(node)
        if not reason and isinstance(node, nodes.Name) and node.name not in names:
            new = renamed.get(node.name)
            known = f"this template sees {', '.join(sorted(variables))}"
            reason = f"unknown variable '{node.name}'; " + (f"it is named '{new}' now" if new in variables else known)
        if reason:
            faults.append(TemplateFault(node.lineno, reason))
        else:
            rest += [(child, depth + 1) for child in reversed([*_children(node)])]
    if faults:
        raise min(faults, key=lambda fault: fault.line)


def _children(node: nodes.Node) -> Iterator[nodes.Node]:
    """What is below a node, without the names of `loop` and of what is called."""
    if isinstance(node, nodes.Getattr) and is_name(node.node, "loop"):
        return
    if isinstance(node, nodes.Call):
        if isinstance(node.node, nodes.Getattr):
            yield node.node.node
        yield from (*node.args, *node.kwargs)
        return
    yield from node.iter_child_nodes()


def is_name(node: nodes.Node, name: str) -> bool:
    """Whether a node is the variable of this name."""
    return isinstance(node, nodes.Name) and node.name == name


def _reason(node: nodes.Node) -> str:
    """Why a template may not hold this node, leaving aside what is below it; empty if it may."""
    kind = type(node)
    if kind not in ALLOWED:
        what = f"{{% {TAGS[kind]} %}}" if kind in TAGS else f"'{kind.__name__}'"
        return f"{what} is not available here; a template may use if, for, set, with, block and raw"
    match node:
        case nodes.For(recursive=True):
            return "a recursive loop is not available here"
        case nodes.Block() if node.scoped or node.required:
            return "a block is neither scoped nor required here"
        case nodes.Name(name=name) if name in RESERVED:
            hint = f"; it has {', '.join(LOOP)}, such as {{{{ loop.index }}}}" if name == "loop" else ""
            return f"the name '{name}' is not available here{hint}"
        case nodes.Getattr(attr=attr) if is_name(node.node, "loop") and attr not in LOOP:
            return f"loop has no '{attr}'; it has {', '.join(LOOP)}"
        case nodes.Const(value=int(value)) if abs(value) > MAX_INT:
            return "a number of more than 64 bits"
        case nodes.Const(value=str(value)) if any("\ud800" <= character <= "\udfff" for character in value):
            return "a text with half of a surrogate pair"
        case nodes.Filter() if node.node is None or node.name not in FILTERS:
            return f"there is no filter '{node.name}' here; {expected(FILTERS)}"
        case nodes.Test(name=name) if name not in TESTS:
            return f"there is no test '{name}' here; {expected(TESTS)}"
    if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (node.dyn_args or node.dyn_kwargs):
        return "arguments with * are not available here"
    if isinstance(node, nodes.Call):
        methods = {name for names in METHODS.values() for name in names}
        if isinstance(node.node, nodes.Getattr) and node.node.attr not in methods:
            return f"there is no method '{node.node.attr}' here; {expected(methods)}"
        if not isinstance(node.node, nodes.Getattr) and (not is_name(node.node, "range") or node.kwargs):
            return "a template calls nothing but methods of text, lists and dicts, and range(start, end, step)"
    return ""


def expected(names: Collection[str]) -> str:
    """The end of a message that lists what there is."""
    return f"expected one of {', '.join(sorted(name for name in names if name.isalnum()))}"


MAX_OUTPUT = 2**20  # characters, plus 4 times the variables' size
MAX_WORK = 2**25  # characters, plus 16 times the variables' size; a few seconds of one core at most
VALUE = 64  # characters that one value or operation costs besides its size
ELEMENT = 16  # characters that an element of a list or a key of a dict costs besides its size

SCALARS = (str, int, float, bool, type(None))
PLAIN = (*SCALARS, list, tuple, dict)


class Exceeded(TemplateRuntimeError):
    """A template wants more than it is allowed."""


class Work:
    """What one rendering of a template may still spend, and write."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        """Raises: TypeError for a variable that is not plain, which is a mistake of the caller's."""
        total = sum(map(size, variables.values()))
        self.max_output = MAX_OUTPUT + 4 * total
        self._work, self._output = MAX_WORK + 16 * total, self.max_output

    def spend(self, characters: int) -> None:
        """Before, or at the latest when, something of this size is computed."""
        self._work -= characters
        if self._work < 0:
            self.check(0)

    def check(self, characters: int) -> None:
        """Raises: Exceeded for something that would cost more than is left."""
        if characters > self._work:
            raise Exceeded("too much work: a value is too large, or loops take too many turns")

    def value(self, value: Any) -> None:
        """What an expression comes to."""
        self.spend(VALUE + size(value))

    def operation(self, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Something linear in `value`, or in its length times the size of its arguments."""
        arguments = sum(map(size, (*args, *kwargs.values())))
        length = len(value) if type(value) in METHODS else 0
        own = 0 if isinstance(value, Undefined) else size(value)
        self.spend(VALUE + own + (length + 1) * arguments)

    def write(self, characters: int) -> None:
        """Before a piece of output of this size is joined to the rest."""
        self._output -= characters
        if self._output < 0:
            raise Exceeded(f"too much text: the template writes more than {self.max_output:,} characters")


def size(value: Any) -> int:
    """Characters of a value's texts, and `ELEMENT` for each element, however nested.

    A list within a list counts as often as it is in it: such a value can be exponentially larger than what it took to
    write it, but not than what was spent on its elements, each of which was a value before.
    Raises: TypeError for anything that is not plain, UndefinedError for something undefined in a list, Exceeded for
    integers over `MAX_INT`.
    """
    if type(value) is str:  # mostly
        return len(value)
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        kind = type(item)
        if kind is dict or kind is list or kind is tuple:
            parts = [*item, *item.values()] if kind is dict else item
            total += ELEMENT * len(parts)
            for part in parts:
                if type(part) is str:  # mostly: half the time of putting it with the rest
                    total += len(part)
                else:
                    rest.append(part)
        elif kind is int:
            if not -MAX_INT <= item <= MAX_INT:
                raise Exceeded("a number of more than 64 bits")
        elif isinstance(item, Undefined):
            str(item)  # raises
        elif kind not in PLAIN:
            raise TypeError(f"a template works on text, numbers, lists and dicts; found {kind.__name__}")
    return total
