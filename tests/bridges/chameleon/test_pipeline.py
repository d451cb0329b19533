"""A converted Chameleon beside transformers' own, on tiny random weights of transformers' making: the same words in,
the same logits, codes and answers out. The decoder of pictures, which transformers lacks, beside diffusers'."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from PIL import Image
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from hybridgen.bridges.chameleon.conversion import load_chameleon
from hybridgen.codecs.frozen import VQCodec
from hybridgen.core.messages import check_messages
from hybridgen.paths.vq import tokens_of
from tests.chameleons import BEGIN, CODES, END, IMAGE, VARIANTS, save_transformers, tiny_decoder
from tests.sampling.prompts import worst


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tmp_path_factory) -> SimpleNamespace:
    """transformers' model and processor, and our pipeline, of one folder."""
    variant = request.param
    folder = save_transformers(tmp_path_factory.mktemp("hf") / variant, variant)
    torch.save({"state_dict": tiny_decoder(variant)}, folder.parent / "vqgan.ckpt")
    theirs = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    pipe = load_chameleon(folder, vq_decoder=folder.parent / "vqgan.ckpt")
    pipe.set_progress_bar_config(disable=True)
    return SimpleNamespace(
        variant=variant, theirs=theirs, processor=ChameleonProcessor.from_pretrained(folder), pipe=pipe,
        side=VARIANTS[variant]["resolution"], image_tokens=theirs.model.vocabulary_mapping.image_tokens,
    )  # fmt: skip


def pictures(side: int, count: int = 3) -> list[Image.Image]:
    torch.manual_seed(3)
    return [Image.fromarray(torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()) for _ in range(count)]


def raw_logits(both, **inputs) -> torch.Tensor:
    """transformers' logits before it masks the tokens of codes."""
    with torch.no_grad():
        return both.theirs.lm_head(both.theirs.model(**inputs).last_hidden_state)


def test_logits_of_texts(both):
    ids = torch.tensor([[0, 60, 70, 80, 90, 101], [1, 1, 0, 61, 71, 81]])
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        masked = both.theirs(ids, attention_mask=mask).logits[mask.bool()]
        ours = both.pipe.model(ids, attention_mask=mask).logits[mask.bool()]
    words = [token for token in range(400) if token not in both.image_tokens]
    assert (
        worst(ours[:, words], masked[:, words]) < 1e-5
    )  # measured 2.6e-6: positions of padded rows are counted otherwise
    assert (masked[:, both.image_tokens] == torch.finfo(torch.float32).min).all()
    assert worst(ours, raw_logits(both, input_ids=ids, attention_mask=mask)[mask.bool()]) < 1e-5


def test_prompts_are_the_tokens_of_transformers_processor(both):
    first, second, _ = pictures(both.side)
    for text in (f"{IMAGE}what colour is it?", "a red circle", f"first {IMAGE} then {IMAGE}?"):
        images = [first, second][: text.count(IMAGE)] or None
        expected = both.processor(text=text, images=images, return_tensors="pt")["input_ids"][0].tolist()
        parts = [piece for word in text.split(IMAGE) for piece in (word, None)][:-1]
        given = iter(images or [])
        content = [
            {"type": "image", "image": next(given)} if part is None else {"type": "text", "text": part}
            for part in parts
            if part != ""
        ]
        document = both.pipe.processor.prompt(check_messages([{"role": "user", "content": content}]), read="vq")
        assert list(document.layout.input_ids) == expected


def test_logits_of_words_and_pictures(both):
    given = pictures(both.side)
    text = [f"{IMAGE}what colour is it?", f"{IMAGE}{IMAGE}what?"]
    inputs = both.processor(text=text, images=given, return_tensors="pt", padding=True)
    mask = inputs["attention_mask"].bool()
    codes = both.pipe.vq_codec.encode(inputs["pixel_values"])
    with torch.no_grad():
        ours = both.pipe.model(inputs["input_ids"], attention_mask=inputs["attention_mask"], codes=codes).logits
    assert worst(ours[mask], raw_logits(both, **inputs)[mask]) < 1e-5  # measured 5e-6


def test_codes_and_their_tokens(both):
    given = pictures(both.side)
    pixels = both.processor(text=IMAGE * 3, images=given, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = both.theirs.model.vqmodel.encode(pixels).image_tokens
        tokens = both.theirs.get_image_tokens(pixels).flatten()
    assert torch.equal(both.pipe.vq_codec.encode(pixels), expected)
    assert torch.equal(tokens_of(expected, both.pipe.model.config.vq_config), tokens.long())
    assert len(set(expected.tolist())) > 10


@pytest.mark.parametrize("size", [(0, 0), (31, 20), (15, 29), (50, 50), (5, 9)])
def test_pictures_are_read_as_transformers_reads_them(both, size):
    """Of the tokenizer's size and of others: resized by the same filter to the same side, cut, and made values. Its
    class for Pillow, that is: torchvision's Lanczos is another, which differs by a level."""
    width, height = (side or both.side for side in size)
    torch.manual_seed(4)
    picture = Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())
    images = ChameleonImageProcessorPil.from_dict(both.processor.image_processor.to_dict())
    expected = images(picture, return_tensors="pt")["pixel_values"][0]
    assert (both.pipe.processor.pixels(picture, "vq") - expected).abs().max() < 1e-6  # measured 1.2e-7


def test_answers_are_those_of_transformers(both):
    picture = pictures(both.side)[0]
    inputs = both.processor(text=f"{IMAGE}what colour is it?", images=[picture], return_tensors="pt")
    frames = both.processor.tokenizer.convert_tokens_to_ids([BEGIN, END, IMAGE])
    written = both.theirs.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=frames)
    expected = both.processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert both.pipe.answer(picture, "what colour is it?", path="vq", max_new_tokens=8) == [expected.strip()]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_codes_that_are_drawn_are_those_of_unmasked_logits(both, scale):
    """transformers masks the tokens of codes, so its decoder and head are run step by step, as Meta's code does."""
    tokenizer, mapping = both.processor.tokenizer, both.theirs.model.vocabulary_mapping
    begin = tokenizer.convert_tokens_to_ids(BEGIN)
    prompt = both.processor(text="a red circle", return_tensors="pt")["input_ids"][0].tolist()
    rows, written = [[*prompt, begin], [tokenizer.bos_token_id, begin]], []
    allowed = [mapping.img2bpe[code] for code in range(CODES)]
    for _ in range(4):
        conditional, unconditional = (raw_logits(both, input_ids=torch.tensor([row]))[0, -1, allowed] for row in rows)
        code = (unconditional + scale * (conditional - unconditional)).argmax().item()
        written.append(code)
        rows = [[*row, mapping.img2bpe[code]] for row in rows]
    settings = {"path": "vq", "temperature": 0, "guidance_scale": scale, "output_type": "latent"}
    drawn = both.pipe("a red circle", **settings).images[0]
    assert drawn.flatten()[:4].tolist() == written


def test_the_decoder_is_that_of_taming_transformers(both):
    """diffusers' decoder with the same weights; its blocks have other names, and attention is of linear layers."""
    config, weights = both.pipe.vq_model.config, tiny_decoder(both.variant)
    levels = len(config.channel_multiplier)
    if config.attn_type != "vanilla":
        # diffusers has attention in the middle always: of zeros, which add nothing
        for kind in ("weight", "bias"):
            weights[f"decoder.mid.attn_1.norm.{kind}"] = torch.zeros(32)
            for name in ("q", "k", "v", "proj_out"):
                weights[f"decoder.mid.attn_1.{name}.{kind}"] = torch.zeros((32, 32, 1, 1) if kind == "weight" else 32)
    sides = [config.resolution // 2**level for level in range(levels)]
    attends = [config.attn_type == "vanilla" and side in (config.attn_resolutions or ()) for side in sides]
    oracle = Decoder(
        in_channels=config.latent_channels,
        out_channels=3,
        up_block_types=["AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attends)],
        block_out_channels=[config.base_channels * multiple for multiple in config.channel_multiplier],
        layers_per_block=config.num_res_blocks,
        norm_num_groups=32,
    ).eval()
    oracle.load_state_dict({diffusers_name(name, levels): flat(name, tensor) for name, tensor in weights.items()})
    codec = VQCodec(both.pipe.vq_model)
    codes = torch.arange(32).view(2, 4, 4)
    vectors = both.theirs.model.vqmodel.quantize.embedding(codes).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = oracle(both.theirs.model.vqmodel.post_quant_conv(vectors))
    assert worst(codec.decode(codes), expected) < 1e-5  # measured 6e-6


def diffusers_name(name: str, levels: int) -> str:
    """taming's name of a tensor of the decoder -> diffusers'."""
    name = name.removeprefix("decoder.").replace("norm_out", "conv_norm_out").replace("nin_shortcut", "conv_shortcut")
    for theirs, ours in (
        ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
        ("mid.attn_1", "mid_block.attentions.0"), ("upsample.", "upsamplers.0."), (".block.", ".resnets."),
        (".attn.", ".attentions."),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    for level in range(levels):
        name = name.replace(f"up.{level}.", f"up_blocks.{levels - 1 - level}.")
    if ".attentions." in name:
        for theirs, ours in ((".norm.", ".group_norm."), (".proj_out.", ".to_out.0.")):
            name = name.replace(theirs, ours)
        for kind in "qkv":
            name = name.replace(f".{kind}.", f".to_{kind}.")
    return name


def flat(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A convolution of one pixel as the matrix that it is, where diffusers has one."""
    is_matrix = "attn" in name and tensor.ndim == 4
    return tensor[:, :, 0, 0] if is_matrix else tensor


def test_pictures_are_drawn(both):
    picture = both.pipe("a red circle", path="vq", seed=0).images[0]
    assert picture.size == (both.side, both.side)
    assert both.pipe.sampling_settings("vq")["guidance_scale"] == 3.0
