"""Importing hybridgen mends torchvision where that is broken, and does no work; names in older checkpoints are read."""

import json
import subprocess
import sys

import pytest
import torch

from hybridgen import HybridGenConfig, HybridGenDiffusionConfig
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.models import tiny_config
from tests.pipelines import tiny_pipeline


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_transforms_work_after_import_and_the_guard_runs_once():
    code = (
        "import hybridgen, torch, torchvision; from hybridgen.compatibility import mend_torchvision;"
        "from torchvision.transforms import functional as F;"
        "print(mend_torchvision(), F.resize(torch.zeros(3, 8, 8), [4, 4]).shape)"
    )
    assert run(code) == "False torch.Size([3, 4, 4])"


def test_a_checkpoint_that_names_the_patch_tokenizers_old_module_loads(tmp_path):
    """It was `hybridgen.patch_vq` in model_index.json, and is `hybridgen.codecs.patch_vq`."""
    tiny = tiny_pipeline()
    vq = PatchVQ(patch_size=4, num_vq_embeddings=50, channels=16, norm_groups=4)
    HybridGenPipeline(tiny.model, tiny.processor, vq_model=vq).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vq_model"] == ["hybridgen.codecs.patch_vq", "PatchVQ"]
    index["vq_model"][0] = "hybridgen.patch_vq"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = load_pipeline(tmp_path).vq_model
    assert type(loaded) is PatchVQ
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in vq.state_dict().items())


@pytest.mark.parametrize("value", [True, False])
def test_a_checkpoint_that_names_modality_experts_own_layers_is_read(tmp_path, value):
    config = tiny_config(diffusion_config={"patch_size": 4, "sample_size": 16, "modality_experts": value})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["diffusion_config"]["own_layers"] = saved["diffusion_config"].pop("modality_experts")
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert HybridGenConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()  # written under the new name alone
    assert HybridGenDiffusionConfig.from_pretrained(tmp_path).modality_experts is value
