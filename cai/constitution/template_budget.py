"""What one rendering of a template may spend, in characters: the size of values, and budgets of work and output.

Nothing depends on a clock: the same template and variables always succeed or always fail.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import TemplateRuntimeError

from cai.constitution.template_syntax import MAX_INT, METHODS

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
