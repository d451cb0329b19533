"""Throughput and latency of the server: many clients at once against one request at a time, as ratios in one run.

    python scripts/bench_serve.py [CHECKPOINT] [--clients 8] [--requests 24] [--rounds 3] [--threads N] [--out FILE]

The server of `hybridgen serve` runs in this process, the clients are threads that each ask for the next picture (or
answer) once they have the last one, over HTTP on loopback. Both ways take turns, round by round, so that what else the
machine does weighs on both alike; a ratio is of the sums over all rounds. `one` is one client, so each request is made
alone: what a server without joined steps does.

Needs: pip install 'hybridgen[serve]' and httpx. Of the small model the aim is three times the pictures a second at 8
clients.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from hybridgen.core.recognition import SMALL
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.serving.app import create_app

PROMPT = "a red circle above a blue square"


def kinds_of(pipe) -> dict[str, tuple[str, dict]]:
    """What is asked for: route and body of each kind that the checkpoint can make."""
    kinds = {}
    for path in ("diffusion", "vq"):
        if path in pipe.model.config.paths:
            kinds[f"pictures by {path}"] = "/v1/images/generations", {"prompt": PROMPT, "path": path}
    messages = [{"role": "user", "content": PROMPT}]
    body = {"messages": messages, "modalities": ["text"], "max_tokens": 64, "temperature": 1.0}
    return {**kinds, "answers of up to 64 tokens": ("/v1/chat/completions", body)}


def ask(address: str, route: str, body: dict, clients: int, requests: int) -> tuple[float, list[float]]:
    """Seconds for all requests, and for each."""

    def one(number: int) -> float:
        started = time.perf_counter()
        answer = httpx.post(f"{address}{route}", json={**body, "seed": number}, timeout=600)
        answer.raise_for_status()
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = list(pool.map(one, range(requests)))
    return time.perf_counter() - started, each


def measure(address: str, route: str, body: dict, clients: int, requests: int, rounds: int) -> dict:
    """Both ways, round by round."""
    ask(address, route, body, clients, clients)  # what is made once is made
    seconds, latencies = {"one": 0.0, "many": 0.0}, {"one": [], "many": []}
    for _ in range(rounds):
        for way, at_once, count in (("one", 1, max(2, requests // clients)), ("many", clients, requests)):
            took, each = ask(address, route, body, at_once, count)
            seconds[way] += took / count
            latencies[way] += each
    median = {way: statistics.median(each) for way, each in latencies.items()}
    worst = {way: sorted(each)[int(0.95 * (len(each) - 1))] for way, each in latencies.items()}
    return {
        "a second, one at a time": rounds / seconds["one"],
        "a second, many at once": rounds / seconds["many"],
        "times as many": seconds["one"] / seconds["many"],
        "seconds (median), one": median["one"], "seconds (median), many": median["many"],
        "seconds (95 %), one": worst["one"], "seconds (95 %), many": worst["many"],
        "times as long": median["many"] / median["one"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=SMALL)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch (default: its own)")
    parser.add_argument("--only", help="kinds whose name has this word")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import uvicorn  # an extra

    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = load_pipeline(args.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(pipe, "bench"), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    result = {"checkpoint": str(args.checkpoint), "clients": args.clients, "machine": machine, "kinds": {}}
    try:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for kind, (route, body) in kinds_of(pipe).items():
            if args.only is None or args.only in kind:
                result["kinds"][kind] = figures = measure(
                    address, route, body, args.clients, args.requests, args.rounds
                )
                print(kind)
                for name, value in figures.items():
                    print(f"  {name:26} {value:.3g}")
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
