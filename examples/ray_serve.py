"""hybridgen behind Ray Serve: replicas of its server on one machine or many, with one address before them.

    pip install 'hybridgen[serve]' 'ray[serve]'
    python examples/ray_serve.py runs/demo/checkpoint --replicas 2 --port 8000

Each replica loads the checkpoint and joins the requests that it gets step by step; Ray spreads them, starts a replica
anew where one dies, and with `--gpus 1` gives each a device of its own. The key of all is HYBRIDGEN_API_KEY, as for
`hybridgen serve`.
"""

import argparse
import os
from pathlib import Path

from ray import serve


def application(
    checkpoint: str, name: str, replicas: int = 1, cpus: float = 1.0, gpus: float = 0.0
) -> serve.Application:
    """What `ray.serve.run` runs: OpenAI's API on this checkpoint, by so many replicas.

    Args:
        checkpoint: a folder that every machine can read.
        name: of the model, as clients ask for it.
        cpus, gpus: that each replica takes.
    """
    key = os.environ.get("HYBRIDGEN_API_KEY")

    def build():
        """In each replica, once it is started."""
        import torch

        from hybridgen.core.devices import best_device
        from hybridgen.pipeline_hybridgen import load_pipeline
        from hybridgen.serving.app import create_app

        torch.set_num_threads(max(1, int(cpus)))
        pipe = load_pipeline(checkpoint).to(best_device() if gpus else "cpu")
        pipe.set_progress_bar_config(disable=True)
        return create_app(pipe, name, key)

    options = {"num_cpus": cpus, "num_gpus": gpus}
    replica = serve.deployment(serve.ingress(build)())
    # the engine bounds what runs and what waits; Ray is to hand requests on as they come
    return replica.options(
        name="hybridgen", num_replicas=replicas, max_ongoing_requests=1024, ray_actor_options=options
    ).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", help="of the model (default: the checkpoint's last folder)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1.0, help="of each replica")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    folder = args.checkpoint.resolve()
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(application(str(folder), args.name or folder.name, args.replicas, args.cpus, args.gpus), blocking=True)


if __name__ == "__main__":
    main()
