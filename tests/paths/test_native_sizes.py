"""Pictures in their own shape (SigLIP 2 NaFlex): sizes and features as transformers has them, wherever one goes."""

import random

import pytest
import torch
from PIL import Image
from transformers import Siglip2VisionModel
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from hybridgen.configuration_understanding import NativeSizes
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from tests.data.in_memory import Listed, source_of
from tests.models import batch_of, inputs_of, tiny_config
from tests.pipelines import tiny_pipeline
from tests.pretended_device import pretended_device, put_on
from tests.processors import assistant, picture, user
from tests.training.stages.test_connectors import backward
from tests.training.stages.test_model import stage_of, sums_of
from tests.training.test_devices import moved

TOWER = {
    "model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_patches": 64, "patch_size": 4, "vision_use_head": False,
}  # fmt: skip
SIZES = [(40, 20), (16, 48), (33, 32), (40, 20)]  # width and height of pictures
KINDS = {
    "a token a patch": {},
    "pixel_shuffle": {"aligner": {"type": "pixel_shuffle"}, "vision_feature_layer": -2},
    "perceiver_resampler": {
        "aligner": {"type": "perceiver_resampler", "num_latents": 3, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "head_dim": 8},
    },
}  # fmt: skip


def pipeline_of(kind: str = "a token a patch") -> HybridGenPipeline:
    return tiny_pipeline(vision_config=TOWER, native_aspect=True, **KINDS[kind])


def pictures() -> list[Image.Image]:
    return [picture(*size, seed=number) for number, size in enumerate(SIZES)]


def shown(image: Image.Image) -> dict:
    return {"type": "image", "image": image}


def test_sizes_are_transformers_own():
    """Of 1,000 random shapes, and of one (1616 x 3967) where the search ends below the best scale."""
    draw = random.Random(0)
    shapes = [[draw.randint(*of) for of in ((1, 4000), (1, 4000), (4, 32), (1, 400))] for _ in range(1000)]
    for width, height, side, most in [*shapes, (1616, 3967, 4, 313)]:
        expected = get_image_size_for_max_num_patches(height, width, side, most)
        assert NativeSizes(side, most).size_of(width, height) == expected


@torch.no_grad()
def test_features_of_unlike_sizes_are_transformers_own():
    """Which pads them to one length and masks it. Worst difference seen: 1e-6."""
    model = pipeline_of().model.model.eval()
    reference = Siglip2VisionModel(model.vision_model.config).eval()
    reference.load_state_dict(model.vision_model.state_dict())
    pixels = [torch.randn(3, height, width) for height, width in ((24, 40), (16, 48), (24, 40))]
    patches = torch.zeros(3, 64, 48)
    mask, shapes = torch.zeros(3, 64, dtype=torch.long), torch.tensor([[6, 10], [4, 12], [6, 10]])
    for number, image in enumerate(pixels):
        cut = image.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 3, 4, 0).flatten(2).flatten(0, 1)
        patches[number, : len(cut)], mask[number, : len(cut)] = cut, 1
    theirs = reference(patches, mask, shapes).last_hidden_state
    ours = model._align_images(pixels)
    for number, count in enumerate((60, 48, 60)):
        assert (ours[number] - model.aligner(theirs[number, :count])).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_answers_to_pictures_of_unlike_shapes(kind, tmp_path):
    """As alone, and as before the model was saved; each picture takes the tokens of its shape."""
    pipe, given = pipeline_of(kind), pictures()
    counts = [pipe.processor.read(image, "understanding")[1] for image in given]
    placeholder = pipe.model.config.image_token_id
    for image, count in zip(given, counts, strict=True):
        document = pipe.processor.prompt([user(shown(image), "what?")])
        assert (
            document.layout.input_ids.count(placeholder)
            == count
            == pipe.processor.count_tokens("understanding", image.height, image.width)
        )
        assert count <= pipe.model.config.image_tokens
    assert (len(set(counts)) > 1) == (kind != "perceiver_resampler")
    asked = [given[:2], given[2], [given[3]]]
    questions = ["what colour?", "is there a square?", "what colour?"]
    together = pipe.answer(asked, questions, max_new_tokens=4)
    alone = [
        pipe.answer([images], question, max_new_tokens=4)[0] for images, question in zip(asked, questions, strict=True)
    ]
    assert together == alone
    pipe.save_pretrained(tmp_path)
    again = HybridGenPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.answer(asked, questions, max_new_tokens=4) == together
    chat = pipe.chat()
    assert chat.ask(questions[0], images=asked[0], max_new_tokens=4) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_packing_and_the_way_of_gradients(kind):
    """Packed states are those of documents alone (worst seen: 5e-7), and no gradient crosses."""
    pipe = pipeline_of(kind)
    one, two, three, _ = pictures()
    messages = [[user(shown(one), shown(two), "what?"), assistant("blue")], [user(shown(three)), assistant("red")]]
    first, second = (pipe.processor.document(each) for each in messages)
    pixels = [image.pixels.requires_grad_() for document in (first, second) for image in document.images]
    model, length = pipe.model.model.eval(), len(first) + len(second)

    def states(layouts: list, images: list) -> torch.Tensor:
        inputs = inputs_of(batch_of([layouts], sum(map(len, layouts))))
        return model(**inputs, pixel_values=images).last_hidden_state[0]

    packed = states([first.layout, second.layout], pixels)
    alone = torch.cat([states([first.layout], pixels[:2]), states([second.layout], pixels[2:])])
    assert (packed - alone).abs().max() < 1e-5
    packed[len(first) : length].square().sum().backward()
    assert [float(each.grad.abs().max()) > 0 for each in pixels] == [False, False, True]


@pytest.mark.parametrize("kind", ["pixel_shuffle"])
def test_training_on_unlike_shapes(kind, tmp_path):
    """With a cache or without, here and on another device, the loss is the same; no features are kept."""
    asked = [[*map(shown, pictures()[i % 4 : i % 4 + 2]), "what?"] for i in range(8)]
    tasks = [source_of(Listed([[user(*parts), assistant("blue")] for parts in asked]), name="ask", shuffle=False)]
    pipe = pipeline_of(kind)
    stage = stage_of(tasks, pipeline=pipe, length=320)
    batch = next(stage.loader)
    assert isinstance(batch["pixel_values"], list)
    expected = backward(stage, batch)
    pipe.model.model.vision_model.requires_grad_(False)
    cached = stage_of(tasks, pipeline=pipe, length=320, data={"sources": [], "cache": str(tmp_path)})
    assert sums_of(cached, batch)["text"][0] == pytest.approx(expected["text"], rel=1e-5)
    assert not list(tmp_path.glob("features*"))
    there = stage_of(tasks, pipeline=pipeline_of(kind), length=320)
    with pretended_device(float64=False):
        for part in (there.model, there.pipeline.vq_model):
            put_on(part)
        assert backward(there, moved(next(there.loader))) == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_is_refused_in_one_sentence():
    siglip = {**TOWER, "model_type": "siglip_vision_model", "image_size": 16}
    del siglip["num_patches"]
    with pytest.raises(
        ValueError, match="native_aspect is true, but the vision tower is a 'siglip_vision_model', which"
    ):
        tiny_config(vision_config=siglip, native_aspect=True)
    with pytest.raises(ValueError, match="native_aspect is true, but there is no vision_config"):
        tiny_config(vision_config=None, native_aspect=True)
    with pytest.raises(
        ValueError, match="aligner.factor is 9, but the tower has 64 patches, fewer than one token needs"
    ):
        tiny_config(vision_config=TOWER, native_aspect=True, aligner={"type": "average_pool", "factor": 9})
    pipe = pipeline_of()
    with pytest.raises(ValueError, match="pictures keep their shape here .native_sizes., which makes unlike numbers"):
        pipe.processor(images=pictures()[:1], text=[pipe.processor.apply_chat_template([user(shown(pictures()[0]))])])
