"""Constitutional AI and RLAIF, on the command line and from Python.

The names below are the Python API, see docs/python.md. Each is imported on first use, so that `import cai` is light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cai.api import Rows, Run, Trained, close, judge, load_constitution, load_run, revise, train

__version__ = "0.2.0"
__all__ = ["Rows", "Run", "Trained", "close", "judge", "load_constitution", "load_run", "revise", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cai' has no attribute '{name}'")
    from cai import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
