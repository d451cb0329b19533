"""The patch tokenizer: exact before training, the same after saving, a component like any other."""

import torch

from hybridgen.codecs.frozen import VQCodec, load_vq
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.pipelines import tiny_pipeline


def patch_vq() -> PatchVQ:
    torch.manual_seed(0)
    return PatchVQ(patch_size=4, num_vq_embeddings=50, channels=16, norm_groups=4).eval()


def pictures(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_before_training_codes_are_patches():
    model = patch_vq()
    images = pictures()
    latents = model.encoder(images)
    assert latents.shape == (2, 48, 4, 4)
    assert torch.equal(model.decoder(latents), images)
    model.quantize.embedding.weight.data[:16] = latents[0].flatten(1).T
    codec = VQCodec(model)
    assert codec.downsample_factor == 4
    codes = codec.encode(images[:1])
    assert codes.tolist() == list(range(16))
    assert torch.equal(codec.decode(codes.view(1, 4, 4)), images[:1])


def test_any_size():
    codec = VQCodec(patch_vq())
    codes = codec.encode([pictures(1, 16)[0], pictures(1, 8)[0]])
    assert codes.shape == (16 + 4,)
    assert codec.decode(codes[16:].view(1, 2, 2)).shape == (1, 3, 8, 8)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = patch_vq()
    torch.nn.init.normal_(model.encoder.inner.conv_out.weight)
    model.save_pretrained(tmp_path)
    loaded = load_vq(tmp_path)
    assert isinstance(loaded, PatchVQ)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(VQCodec(loaded).encode(pictures()), VQCodec(model).encode(pictures()))


def test_as_a_component(tmp_path):
    tiny = tiny_pipeline()
    HybridGenPipeline(tiny.model, tiny.processor, vq_model=patch_vq()).save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.vq_model, PatchVQ)
    assert loaded("a red circle", path="vq", seed=0).images[0].size == (16, 16)
