"""JanusFlow's published tensors: every one has a place here, of its shape, and ours are all filled; and a toy with
DeepSeek's way of computing draws the same velocity, the other way round in time.

Names and shapes are written down from deepseek-ai/Janus at 1daa72f: `janus/janusflow/models/{modeling_vlm,uvit,
siglip_vit}.py` with the sizes of `demo/app_janusflow.py` (latents 4 x 48 x 48, 576 tokens, 768 channels, width 2,048).
"""

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.uvit_2d import ConvNextBlock, RMSNorm
from torch import nn

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.bridges.janus.flow_names import from_janusflow, janusflow_config
from hybridgen.bridges.weights import StoredTensor, in_memory
from tests.models import BEGIN, DIFFUSION, END, IMAGE, tiny_config, tiny_model

IDS = {
    "image_token_id": 100_581, "diffusion_token_id": 102_400, "begin_image_token_id": 100_016,
    "end_image_token_id": 100_593,
}  # fmt: skip


def published() -> dict[str, tuple[int, ...]]:
    """Name -> shape of each of the 1.3B's tensors."""
    width, channels, tower = 2048, 768, 1024
    shapes = {"beg_of_und_embed": (1, width)}

    def matrix(name: str, rows: int, columns: int, *kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns, *kernel), (rows,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    for side, wide in (("enc", channels), ("dec", 2 * channels)):
        for number in range(2):
            block = f"vision_gen_{side}_model.mid_block.res_blocks.{number}"
            matrix(f"{block}.depthwise", wide, 1, 7, 7)
            shapes[f"{block}.norm.weight"] = (wide,)
            matrix(f"{block}.channelwise_linear_1", 4 * wide, wide)
            shapes[f"{block}.channelwise_norm.weight"] = shapes[f"{block}.channelwise_norm.bias"] = (1, 1, 1, 4 * wide)
            matrix(f"{block}.channelwise_linear_2", wide, 4 * wide)
            matrix(f"{block}.cond_embeds_mapper", 2 * wide, width)
    matrix("vision_gen_enc_model.time_embed.linear_1", width, channels)
    matrix("vision_gen_enc_model.time_embed.linear_2", width, width)
    matrix("vision_gen_enc_model.in_conv", channels, 4, 2, 2)
    shapes["vision_gen_dec_model.input_norm.weight"] = (channels,)
    shapes["vision_gen_dec_model.out_convs.0.norm.weight"] = (2 * channels,)
    matrix("vision_gen_dec_model.out_convs.0.unpatch_conv", 4 * 2 * 2, 2 * channels, 1, 1)
    matrix("vision_gen_enc_aligner", width, channels)
    shapes["vision_gen_dec_aligner_norm.weight"] = (width,)
    matrix("vision_gen_dec_aligner", channels, width)
    matrix("vision_und_enc_aligner", width, tower)

    place = "vision_und_enc_model.vision_tower"
    shapes[f"{place}.pos_embed"] = (1, 576, tower)
    matrix(f"{place}.patch_embed.proj", tower, 3, 16, 16)
    for number in range(24):
        layer = f"{place}.blocks.{number}"
        norm(f"{layer}.norm1", tower)
        matrix(f"{layer}.attn.qkv", 3 * tower, tower)
        matrix(f"{layer}.attn.proj", tower, tower)
        norm(f"{layer}.norm2", tower)
        matrix(f"{layer}.mlp.fc1", 4 * tower, tower)
        matrix(f"{layer}.mlp.fc2", tower, 4 * tower)
    norm(f"{place}.norm", tower)
    pool = f"{place}.attn_pool"
    shapes[f"{pool}.latent"] = (1, 1, tower)
    for part, rows, columns in (("q", 1, 1), ("kv", 2, 1), ("proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
        matrix(f"{pool}.{part}", rows * tower, columns * tower)
    norm(f"{pool}.norm", tower)

    shapes["language_model.model.embed_tokens.weight"] = shapes["language_model.lm_head.weight"] = (102_400, width)
    shapes["language_model.model.norm.weight"] = (width,)
    for number in range(24):
        layer = f"language_model.model.layers.{number}"
        for part in "qkvo":
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = (width, width)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (5632, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, 5632)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
    return shapes


def test_every_published_tensor_has_its_place():
    with torch.device("meta"):
        model = HybridGenForConditionalGeneration(janusflow_config(**IDS))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: StoredTensor(shape, torch.float32, lambda: None) for name, shape in published().items()}
    mapped = {name: tuple(tensor.shape) for name, tensor in from_janusflow(theirs, IDS["begin_image_token_id"]).items()}
    assert mapped == ours
    around = sum(p.numel() for part in ("patch_embed", "final_layer") for p in getattr(model.model, part).parameters())
    assert 65e6 < around < 75e6  # the paper's "about 70 M"


class Blocks(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.res_blocks = nn.ModuleList(ConvNextBlock(channels, 1e-6, True, True, 0.0, width) for _ in range(2))
        for block in self.res_blocks:
            block.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, states, vectors):
        for block in self.res_blocks:
            states = block(states, vectors)
        return states


class Reference(nn.Module):
    """The parts of JanusFlow around the backbone, under its names, with the backbone left out."""

    def __init__(self, channels: int = 8, width: int = 32, frequencies: int = 16):
        super().__init__()
        self.time_proj = Timesteps(frequencies, True, 0)
        self.vision_gen_enc_model, self.vision_gen_dec_model = nn.Module(), nn.Module()
        encoder, decoder = self.vision_gen_enc_model, self.vision_gen_dec_model
        encoder.time_embed = TimestepEmbedding(frequencies, width)
        encoder.in_conv, encoder.mid_block = nn.Conv2d(3, channels, 4, stride=4), Blocks(channels, width)
        decoder.input_norm, decoder.mid_block = RMSNorm(channels, 1e-6), Blocks(2 * channels, width)
        out = nn.Module()
        out.norm, out.unpatch_conv = RMSNorm(2 * channels, 1e-6), nn.Conv2d(2 * channels, 3 * 16, 1)
        decoder.out_convs = nn.ModuleList([out])
        self.vision_gen_enc_aligner = nn.Linear(channels, width)
        self.vision_gen_dec_aligner_norm, self.vision_gen_dec_aligner = RMSNorm(width, 1e-6), nn.Linear(width, channels)

    def forward(self, images, times, backbone):
        encoder, decoder = self.vision_gen_enc_model, self.vision_gen_dec_model
        vectors = encoder.time_embed(self.time_proj(times))
        skip = encoder.mid_block(encoder.in_conv(images), vectors)
        states = backbone(torch.cat([vectors[:, None], self.vision_gen_enc_aligner(skip.flatten(2).mT)], dim=1))[:, 1:]
        states = self.vision_gen_dec_aligner(self.vision_gen_dec_aligner_norm(states))
        grid = decoder.input_norm(states).mT.unflatten(-1, skip.shape[-2:])
        grid = decoder.mid_block(torch.cat([grid, skip], dim=1), vectors)
        (out,) = decoder.out_convs
        grid = out.unpatch_conv(out.norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return nn.functional.pixel_shuffle(grid, 4)


def test_the_same_velocity_the_other_way_round_in_time():
    """Ours leads from the picture to noise, at 1,000 - t. Worst difference seen: 4e-6 of values up to 3."""
    torch.manual_seed(0)
    diffusion = {
        "patch_size": 4, "sample_size": 16, "frequency_embedding_size": 16, "convnext_channels": 8, "time_token": True,
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "diffusion_token_id": DIFFUSION}
    ids |= {"begin_image_token_id": BEGIN, "end_image_token_id": END}
    model = tiny_model(tiny_config(diffusion_config=diffusion, vision_config=None, vq_config=None, **ids)).model
    reference = Reference()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    begin = torch.randn(1, 32)
    theirs = {name: in_memory(tensor) for name, tensor in reference.state_dict().items()}
    theirs |= {"beg_of_und_embed": in_memory(begin)}
    theirs["language_model.model.embed_tokens.weight"] = in_memory(model.get_input_embeddings().weight.detach())
    ours = {name: tensor.read() for name, tensor in from_janusflow(theirs, BEGIN).items()}
    left = model.load_state_dict({name.removeprefix("model."): each for name, each in ours.items()}, strict=False)
    assert left.unexpected_keys == []
    assert not [name for name in left.missing_keys if not name.startswith("language_model.")]
    assert torch.equal(model.get_input_embeddings().weight[BEGIN], begin[0])

    mix = torch.randn(17, 17)
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([120.0, 730.0])
    with torch.no_grad():
        expected = reference(images, times, lambda states: mix @ states)
        vectors = model.timestep_embedder(1000 - times)
        tokens, skips = model.embed_images(images, vectors)
        made = model.predict_images(mix @ tokens, vectors, skips, (16, 16))
    assert expected.abs().max() > 1
    torch.testing.assert_close(made, -expected, rtol=1e-4, atol=1e-4)
