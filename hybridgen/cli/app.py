"""`hybridgen app`: a checkpoint as a web page (`app`), until it is told to stop.

It is `hybridgen serve` with a page before it: the same engine, bounds and routes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from anyio import create_task_group, to_thread

from hybridgen.app.page import mount, mounted
from hybridgen.app.studio import Studio
from hybridgen.cli.serve import (
    BACKLOG,
    address_of,
    limits_of,
    listener,
    open_served,
    require_extra,
    warn_of_others,
    web_server,
)
from hybridgen.serving.app import Server
from hybridgen.serving.engine import Engine

STOPPED = "the page is closed; pictures that were not downloaded are gone"  # after Ctrl-C
_NEEDED = ("gradio", "fastapi", "uvicorn", "prometheus_client", "python_multipart")  # the extra


def run(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Find what is missing: the extra, the port.
    2. Open the checkpoint.
    3. Yield the address, and serve until a signal comes. What was uploaded lies in a folder that is then deleted.
    """
    require_extra(_NEEDED, "the web page", "app")
    with listener(options.host, options.port) as listening, TemporaryDirectory(prefix="hybridgen-app-") as uploads:
        warn_of_others(options.host)
        pipeline, name = open_served(options)
        engine, limits = Engine(options.max_rows, options.max_waiting), limits_of(options)
        app = Server(pipeline, name, engine, limits, options.grace).app()
        app = mount(app, Studio(pipeline, name, engine, limits), Path(uploads))
        server = ending_streams(web_server(app, options.grace + 2), app, engine, options.grace)
        listening.listen(BACKLOG)
        yield f"{name} is at {address_of(listening)}"
        server.run(sockets=[listening])


def ending_streams(server, app, engine: Engine, grace: float):
    """The server, which at its end also ends what pages that are open wait for: their heartbeat would go on forever."""
    shutdown = server.shutdown

    async def ending(sockets=None) -> None:
        mounted(app).stop_event.set()
        async with create_task_group() as tasks:
            tasks.start_soon(to_thread.run_sync, engine.close, grace)
            await shutdown(sockets)

    server.shutdown = ending
    return server
