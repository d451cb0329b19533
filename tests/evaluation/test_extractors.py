"""Networks for distances of distributions: they compute what their libraries do; what is missing is said."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.evaluation.extractors import Clip, inception, own_extractor
from tests.clips import save_clip
from tests.metrics import FeatureExtractorInceptionV3


def pictures(n=3, size=(20, 24), seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(n)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clips") / "tiny-clip")


def test_captions_that_are_longer_than_what_is_read_are_known(clip_folder):
    """By the tokenizer's own count, the two that frame a caption with it, if it has them."""
    clip = Clip(clip_folder)
    for words in range(1, 12):
        caption = " ".join(["red"] * words)
        assert clip.is_cut(caption) == (len(clip._tokenizer(caption)["input_ids"]) > 8)
    assert clip.is_cut("red " * 20)
    assert not clip.is_cut("red")


def test_clip_scores_are_the_cosines_of_transformers(clip_folder):
    clip = Clip(clip_folder)
    captions = ["a red square", "blue ground", "a red square on a blue ground on a red square"]  # the last one is cut
    tokens = clip._tokenizer(captions, padding=True, truncation=True, max_length=8, return_tensors="pt")
    seen = clip._processor(pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = clip._model(**tokens, pixel_values=seen)
        cosines = (out.logits_per_image / clip._model.logit_scale.exp()).diagonal()
        if cosines.max() < 0.01:  # random weights: turned round, so that not all scores are 0
            clip._model.visual_projection.weight.neg_()
            cosines = -cosines
    found = clip.fit(pictures(), captions)
    assert found == pytest.approx((100 * cosines).clamp(min=0).tolist(), abs=1e-4)
    assert len(set(found)) > 1


def test_embeddings_are_of_length_one_and_of_the_whole_picture(clip_folder):
    clip = Clip(clip_folder)
    features = clip.extractor()(pictures())
    assert features.shape == (3, 12)
    assert torch.allclose(features.norm(dim=1), torch.ones(3, dtype=torch.float64), atol=1e-6)
    changed = pictures()
    changed[0].paste((0, 0, 0), (22, 0, 24, 20))  # a rim that CLIP's own processor cuts off
    assert not torch.allclose(clip.extractor()(changed)[0], features[0])
    assert not clip.is_of_cmmd
    pixels = torch.stack([torch.from_numpy(np.asarray(picture) / np.float32(255)) for picture in pictures()])
    resized = torch.nn.functional.interpolate(pixels.permute(0, 3, 1, 2), size=(16, 16), mode="bicubic")
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (clip._processor.image_mean, clip._processor.image_std)
    )
    with torch.no_grad():
        out = clip._model(input_ids=torch.zeros(1, 2, dtype=torch.long), pixel_values=(resized - mean) / std)
    assert torch.allclose(features, out.image_embeds.double(), atol=1e-5)


def test_inception_is_that_of_torch_fidelity(tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.save({}, tmp_path / "none.pth")
    torch.manual_seed(0)
    reference = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth"))
    monkeypatch.undo()
    file = tmp_path / "weights.pth"
    torch.save(reference.state_dict(), file)
    extractor = inception(file)
    pixels = torch.from_numpy(np.asarray(pictures(1)[0])[None].copy()).permute(0, 3, 1, 2)
    expected = reference(pixels)[0].double()
    assert torch.equal(extractor(pictures(1)), expected)
    assert extractor.facts["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    smooth = inception(file, "antialiased")(pictures(1))
    assert not torch.allclose(smooth, expected)
    assert torch.equal(smooth, extractor([pictures(1)[0].resize((299, 299), Image.Resampling.BICUBIC)]))
    mixed = extractor([*pictures(1), *pictures(1, (30, 30))])  # of two sizes
    assert torch.allclose(mixed[0], expected[0], atol=1e-5)


def test_other_weights_are_refused(tmp_path, clip_folder):
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="does not hold the weights of FID's Inception; give weights-inception-2015"):
        inception(file)
    file.write_text("no weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
        inception(file)
    with pytest.raises(ValueError, match="no resizing 'nearest'; choose original or antialiased"):
        inception(file, "nearest")
    with pytest.raises(ValueError, match="holds no CLIP with its tokenizer; give a folder of transformers"):
        Clip(tmp_path)


def test_an_extractor_of_ones_own():
    assert own_extractor("tests.evaluation.test_extractors:mean_colours")(pictures()).shape == (3, 3)
    for name, fault in (
        ("mean_colours", "extractor 'mean_colours' is no MODULE:NAME"),
        ("no.such:thing", "cannot be loaded"),
        ("hashlib:nothing", "cannot be loaded"),
        ("hybridgen.version:__version__", "is of type str; it must be callable"),
    ):
        with pytest.raises(ValueError, match=fault):
            own_extractor(name)
    with pytest.raises(ValueError, match="a row for each picture; for 3 pictures it gave"):
        own_extractor("builtins:len")(pictures())


def mean_colours(some):
    return np.stack([np.asarray(picture, float).mean((0, 1)) for picture in some])
