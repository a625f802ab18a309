"""`cai serve`."""

from typing import Annotated

import typer

from cai.cli.console import echo
from cai.cli.options import DEFAULT_RUNS, RunsFolder
from cai.report.serve import open_server

PORT = 8765  # not 8000 and 8080, the defaults of vLLM's and llama.cpp's servers, which may run on the same machine


def serve(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = PORT,
    runs: RunsFolder = DEFAULT_RUNS,
) -> None:
    """Browse all runs on a local web server.

    Lists the runs of a folder, each with its report and all of its examples. By default only this machine can connect.
    """
    with open_server(runs, host, port) as server:
        echo(f"Serving {runs}/ at {server.url} (Ctrl-C stops)")
        if not server.local:
            echo("warning: anyone who can reach this machine can read every run in it", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            echo("stopped")
