"""The part of Jinja that templates of prompts and probes may be written in, checked on the tree of a parsed template.

Statements are text, `{{ … }}`, if, for, set, with, block and raw; there are no macros, includes, imports or parent
templates, hence no recursion and no second file. Expressions call nothing but filters, tests, methods of text, lists
and dicts, and `range`, all of them listed here. What these do to values is decided in `cai/constitution/sandbox.py`.
"""

from collections.abc import Collection, Iterator, Mapping

from jinja2 import nodes

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
