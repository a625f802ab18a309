"""Constitutional AI and RLAIF as a command-line tool."""

__version__ = "0.2.0"
