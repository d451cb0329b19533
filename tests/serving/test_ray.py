"""`examples/ray_serve.py` on two replicas: the same pictures, whichever of them draws."""

import base64
import io
import os
import runpy
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # read as ray is imported; a busy machine takes its time
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[serve]'")
pytest.importorskip("ray.serve", reason="ray has no serve: pip install 'ray[serve]'")
pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"


@pytest.fixture
def address(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("HYBRIDGEN_API_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
        made = runpy.run_path(str(EXAMPLE))["application"](str(tiny_checkpoint), "tiny", replicas=2, cpus=0.5)
        ray.serve.run(made)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        ray.serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_two_replicas_draw_the_same_pictures(address, pipeline):
    with openai.OpenAI(base_url=address, api_key="secret", timeout=120) as client:
        body = {"path": "vq", "guidance_scale": 1.0}

        def draw(seed: int) -> bytes:
            made = client.images.generate(prompt="an elf", extra_body={**body, "seed": seed}).data[0].b64_json
            return Image.open(io.BytesIO(base64.b64decode(made))).convert("RGB").tobytes()

        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(draw, [0, 1, 2, 3] * 4))
        assert drawn == [pipeline("an elf", seed=seed, **body).images[0].tobytes() for seed in [0, 1, 2, 3] * 4]
        parts = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=3, stream=True
        )
        assert [part.choices[0].finish_reason for part in parts][-1] is not None
        with pytest.raises(openai.BadRequestError, match="max_tokens is 100000"):
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=100_000
            )
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address, api_key="wrong", max_retries=0).models.list()
