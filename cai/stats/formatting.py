"""Numbers as text: one format for terminal, pages and cards."""

from cai.stats.intervals import Estimate


def percent(rate: float | None) -> str:
    """A rate in [0, 1] as a person reads it."""
    return "–" if rate is None else f"{100 * rate:.0f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def estimate(value: Estimate | None) -> str:
    """A mean with its interval, or a dash where there is none."""
    return "–" if value is None else str(value)


def counted(number: int, things: str) -> str:
    """`2 updates`, and `1 update`."""
    return f"{number} {things.removesuffix('s') if number == 1 else things}"


def span(seconds: float) -> str:
    """A duration as a person says it."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
