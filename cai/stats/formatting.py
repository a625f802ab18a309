"""Numbers as text: one format for terminal, pages and cards.

A value that is None is shown as a dash. `z` in a format: what rounds to zero has no minus sign.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cai.stats.intervals import Estimate
    from cai.stats.significance import Effect

NONE = "–"
MOST_DIGITS = 6  # after the point
UNDETECTABLE = "at this n no possible difference is detectable"


def percent(rate: float | None) -> str:
    """A rate in [0, 1]: `18 %`."""
    return NONE if rate is None else f"{100 * rate:.0f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals below ten, and one from ten on: `0.312`, `57.3`."""
    return NONE if value is None else f"{value:z.{_digits(digits, value)}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: `number` with its sign."""
    return NONE if value is None else f"{value:+z.{_digits(digits, value)}f}"


def _digits(digits: int, *values: float | None) -> int:
    """The decimals that values next to each other have in common: enough to tell an interval's ends apart."""
    known = [value for value in values if value is not None]
    decimals = 1 if any(abs(value) >= 10 for value in known) else digits
    if known and max(known) - min(known) >= 10.0**-MOST_DIGITS:
        while decimals < MOST_DIGITS and len({f"{value:z.{decimals}f}" for value in known}) == 1:
            decimals += 1
    return decimals


def estimate(value: "Estimate | None", digits: int = 3) -> str:
    """A mean with its 95 % interval, or why there is none: `0.625 [0.386, 0.815]`, `0.625 (n=1)`, `(n=8, …)`."""
    if value is None:
        return NONE
    decimals = _digits(digits, value.mean, value.low, value.high)
    mean, low, high = (NONE if bound is None else f"{bound:z.{decimals}f}" for bound in value[:3])
    if value.low is None and value.high is None:
        return f"{mean} (n={value.n}{', all equal' if value.n > 1 else ''})"
    return f"{mean} [{low}, {high}]"


def difference(effect: "Effect") -> str:
    """A difference with its 95 % interval, the prompts it is of and what limits it: `+0.312 [+0.125, +0.562], n=16`.

    Without an interval it says why; of trained policies, how many trainings it is of: `…, n=8 (prompts only; training
    variance unknown)`.
    """
    bounds = f" [{', '.join(_bounds(effect))}]" if _bounds(effect) else f" ({no_interval(effect)})"
    note = f" ({effect.note})" if effect.note else ""
    return f"{mean_difference(effect)}{bounds}, n={effect.n}{note}"


def no_interval(effect: "Effect") -> str:
    """Why a difference has no interval: `equal on every prompt`."""
    if effect.n > 1 and not effect.se:
        return "equal on every prompt"
    return "no interval: too few prompts"


def mean_difference(effect: "Effect") -> str:
    """The difference alone, with the decimals that it has beside its interval: `+0.312`."""
    return f"{effect.mean:+z.{_digits(3, effect.mean, effect.low, effect.high)}f}"


def interval(effect: "Effect") -> str:
    """The 95 % interval of a difference, for a column of its own: `+0.125 to +0.562`."""
    return " to ".join(_bounds(effect)) or NONE


def _bounds(effect: "Effect") -> list[str]:
    """Both ends of the interval; [] where it is unknown."""
    if effect.low is None or effect.high is None:
        return []
    decimals = _digits(3, effect.mean, effect.low, effect.high)
    return [f"{bound:+z.{decimals}f}" for bound in (effect.low, effect.high)]


def counted(number: int, things: str) -> str:
    """A count with its noun: `2,048 updates`, and `1 update`."""
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"


def prompt_counts(training: int, held_out: int, things: str = "prompts") -> str:
    """A count of training prompts, and the held-out ones apart: `3 prompts, and 1 held out`."""
    return f"{counted(training, things)}, and {held_out:,} held out" if held_out else counted(training, things)


def duration(seconds: float) -> str:
    """A duration: `12.3 s`, `3 min 04 s`, `2 h 15 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
