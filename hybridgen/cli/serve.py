"""`hybridgen serve`: a checkpoint behind OpenAI's API (`serving`), until it is told to stop."""

import argparse
import os
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.arguments.serve import KEY_VARIABLE, LOOPBACK
from hybridgen.cli.running import best_device
from hybridgen.core.names import WRITING_PATHS
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.serving.app import create_app
from hybridgen.serving.limits import Limits

STOPPED = "requests that were running had --grace seconds to end"  # after Ctrl-C
_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")  # the extra
BACKLOG = 1024  # connections that the system holds for us


def run(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Find what is missing: the extra, the key, the port.
    2. Open the checkpoint.
    3. Yield the address, and serve until a signal comes.
    """
    require_extra(_NEEDED, "serving", "serve")
    key = _key(options)
    with listener(options.host, options.port) as listening:
        if key is None:
            warn_of_others(options.host)
        pipeline, name = open_served(options)
        app = create_app(pipeline, name, key, limits_of(options), options.max_rows, options.max_waiting, options.grace)
        server = web_server(app, options.grace)
        listening.listen(BACKLOG)  # who comes from now on waits, and is not turned away
        yield f"serving {name} at {address_of(listening)}/v1"
        server.run(sockets=[listening])


def _key(options: argparse.Namespace) -> str | None:
    """The key that requests need; None = none. Raises ValueError for one that is empty or no ASCII."""
    if options.api_key_file is not None:
        where, key = f"--api-key-file {options.api_key_file}", options.api_key_file.read_text(encoding="utf-8").strip()
    else:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"the key in {where} must be one word of ASCII characters")
    return key


# ------------------------------------------------------------------------------------------ shared with `hybridgen app`


def require_extra(modules: tuple[str, ...], what: str, extra: str) -> None:
    """Raises ValueError where one of the modules of an extra is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ValueError(f"{missing[0]} is not installed, which {what} needs; pip install 'hybridgen[{extra}]'")


def warn_of_others(host: str) -> None:
    """Say it where others than this machine can reach a server that has no key."""
    if host not in LOOPBACK:
        print(f"hybridgen: everybody who reaches {host} is served, as there is no key", file=sys.stderr)


def open_served(options: argparse.Namespace) -> tuple[HybridGenPipeline, str]:
    """The checkpoint, on the best device in the precision that is asked for, and its name."""
    pipeline = best_device(open_pipeline(options.checkpoint))
    if options.precision is not None:
        _set_precision(pipeline, options.precision)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, options.checkpoint.resolve().name if options.name is None else options.name


def limits_of(options: argparse.Namespace) -> Limits:
    return Limits(
        body_bytes=options.max_body_mb << 20,
        image_pixels=int(options.max_megapixels * (1 << 20)),
        images=options.max_images,
        image_tokens=options.max_image_tokens,
        steps=options.max_steps,
        new_tokens=options.max_new_tokens,
        seconds=options.timeout,
    )


def web_server(app, grace: float):
    """A server of uvicorn that is not running yet."""
    import uvicorn  # an extra

    grace = max(1, round(grace))
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=grace))


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError, in one sentence, where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen at {host}, port {port} ({error.strerror}); take another --port") from error
    return listening


def _set_precision(pipeline: HybridGenPipeline, precision: str) -> None:
    """For all that is drawn and written, and refused here where the model cannot be had in it."""
    pipeline.decoder(precision)
    own = pipeline.sampling_defaults or {}
    paths = [path for path in WRITING_PATHS if path in pipeline.model.config.paths]
    changed = {name: {**(own.get(name) or {}), "precision": precision} for name in (*paths, "chat")}
    pipeline.register_to_config(sampling_defaults={**own, **changed})
