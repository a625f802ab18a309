"""How `--help` of a command is laid out: required options stand in the usage line, every option in one short line."""

import inspect
import re
from typing import Any

from typer.core import TyperCommand

HYPHEN = "\u2011"  # does not break a line; stands for "-" while lines are broken
EXTRAS = re.compile(r"  \[(.*)\]$")  # what typer appends: the default, bounds, and whether an option is required


class HelpCommand(TyperCommand):
    """A command whose help names its arguments as the usage line does."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write `cai judge --data FILE --out DIR [OPTIONS]`."""
        pieces = []
        for param in self.get_params(ctx):
            name = param.metavar or param.name.upper()
            if param.param_type_name == "argument":
                pieces.append(name if param.required else f"[{name}]")
            elif param.required:
                pieces.append(f"{param.opts[-1]} {name}")
        formatter.write_usage(ctx.command_path, " ".join([*pieces, "[OPTIONS]"]))

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write the docstring."""
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(inspect.cleandoc(self.help or "").replace("-", HYPHEN))

    def get_help(self, ctx: Any) -> str:
        """The whole help; no line is broken at a hyphen, which names of files have."""
        return super().get_help(ctx).replace(HYPHEN, "-")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options, each with its default."""
        rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                name = str(param.metavar) if param.param_type_name == "argument" else record[0]
                rows[param.param_type_name].append((name, EXTRAS.sub(_default_alone, record[1]).replace("-", HYPHEN)))
        for kind, records in rows.items():
            if records:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(records)


def _default_alone(extras: re.Match[str]) -> str:
    """The default; the usage line shows what is required, and an error the bounds."""
    default = next((extra for extra in extras[1].split("; ") if extra.startswith("default: ")), None)
    return f"  [{default.replace('(', '').replace(')', '')}]" if default else ""
