"""The options of the launcher `ray`, and the command that it stands for (`cai/training/ray_launcher.py`)."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from cai.config.errors import CaiError
from cai.inference.ray_cluster import check_installed

LAUNCHER = "cai.training.ray_launcher"  # which imports the stages that name it
NAME = "ray"
SCRATCH = "ray"
"""In a stage's folder, while Ray Train runs."""
MAX_WORKERS = 100_000


@dataclass(frozen=True)
class Options:
    """What the launcher's command says. `address` is as `engine.ray.address`; None of GPUs is one if there are any."""

    workers: int
    gpus_per_worker: int | None
    cpus_per_worker: int
    address: str | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CaiError(f"launcher: ray: {message}; expected a command such as ray --workers 2 --address auto")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, found {text!r}")
        return int(text)

    return number


def parse(arguments: list[str]) -> Options:
    """The options of `ray`. Raises: CaiError for others, and without Ray."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers", type=_whole(1, MAX_WORKERS), required=True)
    parser.add_argument("--gpus-per-worker", type=_whole(0, 1))
    parser.add_argument("--cpus-per-worker", type=_whole(1, 10_000), default=1)
    parser.add_argument("--address")
    options = Options(**vars(parser.parse_args(arguments)))
    check_installed()
    return options


def command(arguments: list[str]) -> list[str]:
    """The command that runs a Python module in the workers of `ray` with these options. Raises: CaiError as `parse`."""
    parse(arguments)
    return [sys.executable, "-m", LAUNCHER, *arguments, "--"]
