"""JanusFlow's way into the backbone and out of it: silent at first, blind to other images, the time a token."""

import pytest
import torch

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from tests.models import TOKENS, batch_of, inputs_of, tiny_config, tiny_model
from tests.pipelines import tiny_pipeline
from tests.processors import assistant, image, user

SETTINGS = {
    "patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "convnext_channels": 8, "time_token": True,
    "bidirectional": False,
}  # fmt: skip


def config_of(**changes):
    return tiny_config(diffusion_config={**SETTINGS, **changes})


def row_of(images, text=(5,), **changes):
    """Each image in a document of its own, packed into one row."""
    tokens = config_of(**changes).diffusion_config.tokens
    documents = [
        lay_out([TextSegment(list(text)), ImageSegment("diffusion", tokens(*image.shape[-2:]), False)], TOKENS)
        for image in images
    ]
    return inputs_of(batch_of([documents], sum(map(len, documents))))


def predicted(model, images, times):
    with torch.no_grad():
        return model(**row_of(images), latents=images, timesteps=times).prediction


def test_a_new_model_predicts_nothing():
    model = HybridGenForConditionalGeneration(config_of()).eval()
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([0.0, 700.0])
    assert predicted(model, images, times).abs().max() == 0


def test_packed_images_of_other_sizes_and_times_change_nothing():
    model = tiny_model(config_of())
    images = [torch.randn(3, *size) for size in [(16, 16), (8, 24), (32, 8), (16, 16)]]
    times = torch.tensor([100.0, 500.0, 900.0, 0.0])
    together = predicted(model, images, times)
    for i, one in enumerate(images):
        alone = predicted(model, [one], times[i : i + 1])[0]
        assert alone.shape == one.shape
        assert (together[i] - alone).abs().max() < 1e-5  # measured 1e-6


def test_the_first_token_of_an_image_is_its_timestep():
    """As it leaves the embedder; the prediction does not depend on the backbone's state there."""
    model = tiny_model(config_of()).model
    vectors = model.timestep_embedder(torch.tensor([300.0, 800.0]))
    tokens, skips = model.embed_images(torch.randn(2, 3, 8, 12), vectors)
    assert tokens.shape == (2, 1 + 2 * 3, 32)
    assert torch.equal(tokens[:, 0], vectors)
    states = torch.randn(2, 7, 32)
    made = model.predict_images(states, vectors, skips, (8, 12))
    states[:, 0] += 1
    assert torch.equal(model.predict_images(states, vectors, skips, (8, 12)), made)
    states[:, 1] += 1
    assert not torch.equal(model.predict_images(states, vectors, skips, (8, 12)), made)


def test_details_go_around_the_backbone():
    """With the backbone's states held still, the prediction still follows the noisy image."""
    model = tiny_model(config_of()).model
    images, vectors = torch.randn(1, 3, 16, 16, requires_grad=True), torch.randn(1, 32)
    _, skips = model.embed_images(images, vectors)
    model.predict_images(torch.randn(1, 17, 32), vectors, skips, (16, 16)).sum().backward()
    assert images.grad.abs().min() > 0


def test_a_training_step_reaches_every_weight():
    """With an image, and without one."""
    model = tiny_model(config_of(alignment_layer=1)).train()
    images = torch.randn(2, 3, 16, 16)
    out = model(
        **row_of(images), latents=images, timesteps=torch.tensor([10.0, 20.0]), labels=row_of(images)["input_ids"],
        alignment_pixels=torch.randn(2, 3, 16, 16),
    )  # fmt: skip
    assert out.alignment.shape == (2,)
    (out.loss + out.prediction.sum() + out.alignment.sum()).backward()
    mine = tuple(f"model.{part}." for part in ("patch_embed", "timestep_embedder", "final_layer", "alignment_head"))
    unreached = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {name for name in unreached if name.startswith(mine)}
    model.zero_grad()
    batch = batch_of([[lay_out([TextSegment([5, 6])], TOKENS)]], 8)
    model(**inputs_of(batch), labels=batch["labels"]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_alignment_leaves_the_time_out():
    """The cosines are those of the patches' states alone: other states at the time tokens change nothing."""
    model = tiny_model(config_of(alignment_layer=2))
    images, pixels = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    batch = row_of(images)
    out = model.model(**batch, latents=images, timesteps=torch.tensor([10.0, 20.0]), output_hidden_states=True)
    with torch.no_grad():
        made = model._align(out, images, pixels)
        places = out.diffusion_mask.nonzero()
        for first in (0, 17):  # the time token of each image
            out.hidden_states[2][tuple(places[first])] += 5
        assert torch.equal(model._align(out, images, pixels), made)
        out.hidden_states[2][tuple(places[1])] += 5
        assert not torch.equal(model._align(out, images, pixels), made)


def test_save_load_save_is_byte_equal(tmp_path):
    tiny_model(config_of()).save_pretrained(tmp_path / "a")
    HybridGenForConditionalGeneration.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_pipeline_knows_the_time_token(tmp_path):
    """Its documents have room for it, it draws and reads, and once saved it does both again."""
    pipe = tiny_pipeline(diffusion_config=SETTINGS)
    assert pipe.processor.count_tokens("diffusion") == 17
    document = pipe.processor.document([user("a red circle"), assistant(image())], write="diffusion", read="diffusion")
    assert document.layout.input_ids.count(pipe.processor.special_tokens.diffusion) == 17
    settings = {"path": "diffusion", "num_inference_steps": 3, "output_type": "latent", "guidance_scale": 2.0}
    drawn = pipe(["a red circle", "a"], seed=3, **settings).images
    answer = pipe.answer(image()["image"], "what is it?", path="diffusion", max_new_tokens=3)
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    assert again.processor.diffusion_time_token is True
    assert torch.equal(again(["a red circle", "a"], seed=3, **settings).images, drawn)
    assert again.answer(image()["image"], "what is it?", path="diffusion", max_new_tokens=3) == answer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"convnext_channels": 0}, "convnext_channels is 0; it must be an integer of at least 1"),
        ({"convnext_depth": 0}, "convnext_depth is 0; it must be an integer of at least 1"),
        ({"time_token": 3}, "time_token is 3; it must be true or false"),
        ({"time_token": "yes"}, "time_token is 'yes'; it must be true or false"),
        ({"bidirectional": None}, "bidirectional is None; it must be true or false"),
        ({"modality_experts": "no"}, "modality_experts is 'no'; it must be true or false"),
        ({"convnext_channels": 8, "convnext_depth": 0}, "convnext_depth is 0; it must be an integer of at least 1"),
        ({"convnext_channels": 8, "unet_channels": [8]}, r"convnext_channels is 8 and unet_channels \[8\]; .*keep one"),
    ],
)
def test_what_makes_no_net_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HybridGenDiffusionConfig(**changes)
