"""Drawing held-out prompts: what is asked, that chunks do not change pictures, and that scores are the dataset's."""

import numpy as np
import pytest

from hybridgen.data.synthetic import dolls
from hybridgen.evaluation import generation
from hybridgen.evaluation.generation import DrawSettings


def wrong_of(images: list, specs: list) -> list[list[str]]:
    """What is wrong in each picture; the verdicts' shares are those of the scorer."""
    verdicts = generation.judge(dolls, images, specs)
    for verdict, image, spec in zip(verdicts, images, specs, strict=True):
        scores = generation.score(dolls, [image], [spec])
        assert verdict.shares == {name: tally["share"] for name, tally in scores.items()}
    return [verdict.wrong for verdict in verdicts]


def test_prompts_are_those_of_the_split():
    prompts = generation.held_out_prompts(dolls, "held_out", 5, seed=3)
    source = dolls.Dolls("held_out", "draw", 3)
    assert prompts.captions == [dolls.caption(source.spec(i)) for i in range(5)]
    assert prompts.specs == [source.spec(i) for i in range(5)]
    assert all((spec.base, spec.body) in dolls.held_out_pairs() for spec in prompts.specs)
    for spec, picture in zip(prompts.specs, prompts.pictures, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(dolls.render(spec)))


@pytest.mark.parametrize("samples", [0, -1])
def test_refuses_no_samples(samples):
    with pytest.raises(ValueError, match=f"{samples} samples cannot be taken from split 'held_out'"):
        generation.held_out_prompts(dolls, "held_out", samples, seed=0)


def test_true_pictures_score_everything_and_shifted_ones_do_not():
    prompts = generation.held_out_prompts(dolls, "held_out", 8, seed=0)
    scores = generation.score(dolls, prompts.pictures, prompts.specs)
    assert scores["all_seven"] == {"right": 8, "n": 8, "share": 1, "low": pytest.approx(0.6756, abs=1e-4), "high": 1.0}
    # whether parts of a picture are wrong together is not known where all are right: no more than eight pictures
    assert scores["slots"] == {**scores["all_seven"], "right": 56, "n": 56, "groups": 8}
    assert wrong_of(prompts.pictures, prompts.specs) == [[]] * 8
    wrong = prompts.pictures[1:] + prompts.pictures[:1]
    assert generation.score(dolls, wrong, prompts.specs)["all_seven"]["right"] == 0
    assert all(wrong_of(wrong, prompts.specs))


def test_wrong_categories_name_what_is_wrong():
    spec = generation.held_out_prompts(dolls, "held_out", 1, seed=0).specs[0]
    other = "black" if spec.background != "black" else "white"
    assert wrong_of([dolls.render(spec._replace(background=other))], [spec]) == [["background"]]


def test_reconstruction_keeps_size_and_order(pipeline):
    pictures = generation.held_out_prompts(dolls, "held_out", 3, seed=0).pictures
    decoded = generation.reconstruct(pipeline, pictures)
    alone = generation.reconstruct(pipeline, pictures[2:])
    assert [image.size for image in decoded] == [(32, 32)] * 3
    assert np.abs(np.asarray(decoded[2], int) - np.asarray(alone[0], int)).max() <= 1


def test_settings_name_what_matters_to_a_path():
    assert DrawSettings(steps=5).of_path("diffusion") == {"steps": 5, "guidance": 3.0, "precision": "model"}
    told = {"guidance_scale": 1.2, "guidance_interval": [0.0, 0.5], "shift": 3.0, "temperature": 0.3}
    assert DrawSettings.of("diffusion", told) == DrawSettings(guidance=1.2, guidance_interval=[0.0, 0.5], shift=3.0)
    assert DrawSettings.of("vq", told) == DrawSettings(guidance=1.2, guidance_interval=[0.0, 0.5], temperature=0.3)
    assert "steps" not in DrawSettings().of_path("vq")
    assert DrawSettings(steps=5, top_k=3).arguments("vq") == {
        "guidance_scale": 3.0, "temperature": 1.0, "top_k": 3, "top_p": 1.0, "precision": "model", "window": 1,
    }  # fmt: skip
    assert DrawSettings(steps=5).arguments("diffusion")["num_inference_steps"] == 5


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_frames_end_with_the_picture(pipeline, path):
    pipeline.set_progress_bar_config(disable=True)
    settings = DrawSettings(steps=5, guidance=1.0)
    frames = generation.denoising_frames(pipeline, "an orc", path, 32, 3, settings, frames=4)
    (picture,) = pipeline("an orc", path=path, seed=3, **settings.arguments(path)).images
    assert len(frames) == 4
    assert np.array_equal(np.asarray(frames[-1]), np.asarray(picture))
    assert len({frame.tobytes() for frame in frames}) == 4
    if path == "vq":  # a quarter of the codes: the upper quarter of the picture
        assert np.array_equal(np.asarray(frames[0])[:8], np.asarray(picture)[:8])
        assert (np.asarray(frames[0])[8:] == 128).all()
