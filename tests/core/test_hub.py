"""Whole checkpoints by name, and their way to the hub: a small server of our own takes the place of the hub's, and what
the hub's client sends it is kept."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from hybridgen.checkpoints.model_card import model_card, pipeline_tag
from hybridgen.core.hub import is_whole, part_of, whole_around
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.models import tiny_config
from tests.pipelines import tiny_pipeline

ROOT = Path(__file__).parents[2]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as `create_repo` and `upload_folder` talk to."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, content: dict | None = None, **headers) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        if self.path.rsplit("/", 1)[-1] in self.server.there:
            self.answer(200, ETag='"0"', X_Repo_Commit="0" * 40)
        else:
            self.answer(404, X_Error_Code="EntryNotFound")

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.answer(200, {"url": f"{self.server.url}/somebody/tiny", "id": "0"})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(sent)["files"]]
            self.answer(200, {"files": [{**file, "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.server.kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": f"{self.server.url}/somebody/tiny/commit/1", "commitOid": "1" * 40})
        else:
            self.answer(200, {})

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.kept, server.there = {}, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "checkpoint"
    tiny_pipeline().save_pretrained(folder)
    return folder


def push(hub, checkpoint: Path, call: str) -> None:
    code = f"import hybridgen; pipe = hybridgen.HybridGenPipeline.from_pretrained({str(checkpoint)!r}); pipe.{call}"
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_nobody", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


def test_what_is_pushed_is_the_whole_checkpoint(hub, checkpoint, tmp_path):
    push(hub, checkpoint, "push_to_hub('somebody/tiny')")
    for name, content in hub.kept.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    files = {str(file.relative_to(checkpoint)): file.read_bytes() for file in checkpoint.rglob("*") if file.is_file()}
    assert {name: content for name, content in hub.kept.items() if name in files} == files
    assert load_pipeline(tmp_path).model.config.paths == ("understanding", "diffusion", "vq")


def test_a_card_that_the_repository_has_is_kept(hub, checkpoint, tmp_path):
    hub.there.add("README.md")
    push(hub, checkpoint, f"save_pretrained({str(tmp_path)!r}, push_to_hub=True, repo_id='somebody/tiny')")
    assert "README.md" not in hub.kept
    assert {"config.json", "model_index.json", "model/model.safetensors"} <= set(hub.kept)


# ------------------------------------------------------------------------------------------------------- on the disk


def test_a_name_leads_to_a_part_or_a_whole(checkpoint):
    assert is_whole(checkpoint)
    assert not is_whole(checkpoint / "model")
    assert not is_whole(None)
    assert part_of(checkpoint, "model") == checkpoint / "model"
    assert part_of(checkpoint / "model", "model") == checkpoint / "model"
    assert part_of(checkpoint, "model", subfolder="model") == checkpoint
    assert whole_around(checkpoint) == checkpoint
    assert whole_around(checkpoint / "model") == checkpoint.resolve()
    assert whole_around(checkpoint.parent) is None


def test_a_card_is_saved_with_the_checkpoint_and_never_overwritten(checkpoint, tmp_path):
    card = (checkpoint / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] == "hybridgen"
    assert metadata["pipeline_tag"] == "any-to-any"
    assert all(f"`{path}`" in card for path in ("understanding", "diffusion", "vq"))
    pipeline = HybridGenPipeline.from_pretrained(checkpoint)
    assert f"{pipeline.model.num_parameters():,} parameters" in card
    (tmp_path / "README.md").write_text("ours")
    pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "ours"


@pytest.mark.parametrize(
    ("absent", "tag"),
    [
        ((), "any-to-any"),
        (("vision_config",), "text-to-image"),
        (("diffusion_config", "vq_config"), "image-text-to-text"),
        (("diffusion_config", "vq_config", "vision_config"), "text-generation"),
    ],
)
def test_the_card_names_the_task(absent, tag):
    config = tiny_config(**dict.fromkeys(absent))
    assert pipeline_tag(config) == tag
    assert yaml.safe_load(model_card(config, 10).split("---\n")[1])["pipeline_tag"] == tag


def test_pickles_are_never_written_and_that_is_said(tmp_path):
    pipeline = tiny_pipeline()
    with pytest.warns(UserWarning, match="asks for pickles; safetensors are written instead"):
        pipeline.save_pretrained(tmp_path / "asked", safe_serialization=False)
    pipeline.save_pretrained(tmp_path / "made")
    asked, files = (
        sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        for folder in (tmp_path / "asked", tmp_path / "made")
    )
    assert asked == files
    assert not [file for file in files if file.endswith((".bin", ".pt"))]
