"""The suite of distributions: names are those of the networks, values those of the formulas, refusals one sentence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.core import pictures as pictures_module
from hybridgen.data.synthetic import dolls
from hybridgen.evaluation.distances import frechet
from hybridgen.evaluation.extractors import Extractor
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate, evaluate_suites
from hybridgen.evaluation.suites import distribution
from tests.clips import save_clip

FAST = {"diffusion": DrawSettings(steps=2, guidance=1.0)}
COLOURS = "tests.evaluation.suites.test_distribution:colours"


def colours(pictures):
    """An extractor of the tests: the means of the four quarters."""
    return np.stack([np.asarray(picture.resize((2, 2), Image.Resampling.BOX), float).ravel() for picture in pictures])


Inception = colours  # a name that is taken


def run(pipeline, samples, **options):
    return evaluate(
        pipeline,
        "distribution",
        samples=samples,
        draw_paths=["diffusion"],
        answer_paths=[],
        settings=FAST,
        options=options,
    )


def test_a_small_extractor_is_never_called_inception(pipeline):
    result = run(pipeline, 6, extractor=COLOURS, data="dolls")
    entry = result.scores["generation"]["diffusion"]["scores"]
    assert set(entry) == {"frechet_colours", "kernel_colours", "precision_colours", "recall_colours"}
    assert result.label("frechet_colours") == "Frechet distance on colours"
    assert not any(name in json.dumps(result.as_json()) for name in ("FID", "fid", "KID"))
    items = result.items["generation"]["diffusion"]
    features = [
        torch.from_numpy(colours([item.pictures[which] for item in items])) for which in ("diffusion", "true picture")
    ]
    assert entry["frechet_colours"]["value"] == pytest.approx(frechet(*features)["value"], rel=1e-9)
    assert all(value["n"] == 6 for value in entry.values())
    source = dolls.Source("held_out", "draw", 0)
    assert [item.pictures["true picture"].tobytes() for item in items] == [
        source.picture(i).tobytes() for i in range(6)
    ]


def test_ones_own_captioned_pictures(pipeline, tmp_path):
    lines = []
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
        turns = [("user", {"type": "text", "text": f"red {i}"}), ("assistant", {"type": "image", "image": f"{i}.png"})]
        lines.append(json.dumps({"messages": [{"role": role, "content": [part]} for role, part in turns]}))
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    result = run(pipeline, None, extractor=COLOURS, data=str(tmp_path / "own.jsonl"))
    assert [item.prompt for item in result.items["generation"]["diffusion"]] == [f"red {i}" for i in range(5)]
    assert "notes" not in result.facts
    words_only = json.dumps(
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    )
    (tmp_path / "more.jsonl").write_text("\n".join([words_only, *lines]))
    result = run(pipeline, None, extractor=COLOURS, data=str(tmp_path / "more.jsonl"))
    assert result.facts["notes"] == [
        "1 records are left out: each must be words of the user and one picture after them"
    ]
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:3]))
    with pytest.raises(ValueError, match="holds 3 captioned pictures; give 4 or more"):
        run(pipeline, None, extractor=COLOURS, data=str(tmp_path / "few.jsonl"))


def captioned(folder, captions, name="own.jsonl"):
    """A file of captioned pictures: picture i is red to the degree 10 i."""
    lines = []
    for i, caption in enumerate(captions):
        Image.new("RGB", (40, 30), (10 * i, 0, 0)).save(folder / f"{i}.png")
        turns = [("user", {"type": "text", "text": caption}), ("assistant", {"type": "image", "image": f"{i}.png"})]
        lines.append(json.dumps({"messages": [{"role": role, "content": [part]} for role, part in turns]}))
    (folder / name).write_text("\n".join(lines))
    return folder / name


def test_samples_are_taken_evenly_and_pictures_one_after_the_other(pipeline, tmp_path, monkeypatch):
    """Of a file, from its beginning to its end; what is not taken is never decoded, and nothing twice."""
    file, decoded = captioned(tmp_path, [f"red {i}" for i in range(12)]), []
    read_picture = pictures_module.read_picture
    monkeypatch.setattr(pictures_module, "read_picture", lambda *one: decoded.append(one[0]) or read_picture(*one))
    result = run(pipeline, 5, extractor=COLOURS, data=str(file))
    items = result.items["generation"]["diffusion"]
    assert [item.prompt for item in items] == [f"red {i}" for i in (0, 2, 4, 7, 9)]
    assert [item.pictures["true picture"].getpixel((0, 0)) for item in items] == [
        (10 * i, 0, 0) for i in (0, 2, 4, 7, 9)
    ]
    assert [one for one in decoded if str(one).endswith(".png")] == [f"{i}.png" for i in (0, 2, 4, 7, 9)]


def test_records_that_are_broken_are_counted_and_pictures_that_are_none_refused(pipeline, tmp_path, monkeypatch):
    file = captioned(tmp_path, [f"red {i}" for i in range(5)])
    whole = file.read_text()
    file.write_text(whole + "\n" + json.dumps({"messages": [{"role": "nobody", "content": "x"}]}))
    result = run(pipeline, None, extractor=COLOURS, data=str(file))
    assert result.facts["notes"] == ["1 records are broken, and left out"]
    (tmp_path / "3.png").write_text("no picture")
    monkeypatch.setattr(type(pipeline), "__call__", None)  # nothing is drawn before it is said
    with pytest.raises(ValueError, match="3.png"):
        run(pipeline, None, extractor=COLOURS, data=str(file))


def test_features_are_kept_and_gone_on_with(pipeline, tmp_path, monkeypatch):
    """Stopped in the second batch of a path's features: what was computed is not computed again, and the numbers are
    those of an uninterrupted run, in memory and in a folder."""
    monkeypatch.setattr(distribution, "AT_ONCE", 2)
    asked, stop_at = [], {4}

    class Counting(Extractor):
        def __call__(self, pictures):
            asked.append(len(pictures))
            if len(asked) in stop_at:
                stop_at.clear()
                raise KeyboardInterrupt
            return super().__call__(pictures)

    monkeypatch.setattr(distribution, "own_extractor", lambda name: Counting("colours", colours))

    def evaluated(out):
        options = {"extractor": COLOURS, "data": "dolls"}
        how = {"draw_paths": ["diffusion"], "answer_paths": [], "settings": FAST, "options": options, "samples": 5}
        return evaluate(pipeline, "distribution", **how, out=out).scores["generation"]["diffusion"]["scores"]

    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path / "out")
    assert asked == [2, 2, 1, 2]
    resumed = evaluated(tmp_path / "out")
    assert asked[4:] == [2, 2, 1]  # the true pictures' are there
    assert resumed == evaluated(tmp_path / "again") == evaluated(None)
    folder = tmp_path / "out" / "distribution" / "features-true-colours"
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"00000{i}.{suffix}" for i in range(3) for suffix in ("json", "npy")
    )
    assert np.load(folder / "000002.npy").shape == (1, 12)


def test_pictures_of_a_folder_are_not_held_in_memory(pipeline, tmp_path):
    options = {"extractor": COLOURS, "data": "dolls"}
    how = {"draw_paths": ["diffusion"], "answer_paths": [], "settings": FAST, "options": options, "samples": 4}
    result = evaluate(pipeline, "distribution", **how, out=tmp_path)
    for item in result.items["generation"]["diffusion"]:
        assert all(isinstance(picture, Path) and picture.is_file() for picture in item.pictures.values())
    kept = [json.loads(line) for line in (tmp_path / "distribution" / "items.jsonl").read_text().splitlines()]
    assert kept[3]["pictures"] == {"true picture": "true/000003.png", "diffusion": "draw-diffusion/000003.png"}


def test_captions_that_clip_cuts_are_counted(pipeline, tmp_path):
    folder = save_clip(tmp_path / "tiny-clip")
    words = ["red", "red " * 90, "a red one", "red " * 80, "red"]
    file = captioned(tmp_path, words)
    result = run(pipeline, None, clip=str(folder), data=str(file))
    (note,) = result.facts["notes"]
    assert re.match(r"2 of 5 captions are longer than the \d+ tokens that tiny-clip reads; what stands beyond", note)
    score = result.scores["generation"]["diffusion"]["scores"]["clip_score"]
    assert score["n"] == 5
    assert result.label("clip_score") == "CLIP score by tiny-clip"


def test_what_judges_is_loaded_once(pipeline, monkeypatch):
    loaded = []
    monkeypatch.setattr(distribution, "own_extractor", lambda name: loaded.append(name) or Extractor("mine", colours))
    run(pipeline, 4, extractor=COLOURS)
    assert loaded == [COLOURS]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, r"needs weights from your disk: --option inception=FILE \(weights-inception-2015"),
        ({"inception": "no.pth"}, "there is no .*no.pth; weights-inception-2015.* of torch-fidelity on GitHub"),
        ({"clip": "no-clip"}, "there is no .*no-clip; a folder of transformers .* openai/clip-vit-large-patch14-336"),
        ({"extractor": COLOURS, "data": "cats"}, "neither a dataset nor a file cats; the datasets are dolls"),
        ({"extractor": f"{__name__}:Inception"}, "is called Inception, as Inception is, whose numbers have names of"),
        ({"extractor": COLOURS, "resize": "antialiased"}, "option resize of suite distribution is of Inception's"),
        ({"extractor": "colours"}, "extractor 'colours' is no MODULE:NAME"),
    ],
)
def test_what_is_missing_is_named(pipeline, options, fault):
    with pytest.raises(ValueError, match=fault):
        run(pipeline, 4, **options)


def test_too_few_are_refused_before_anything_is_drawn(pipeline, monkeypatch):
    monkeypatch.setattr(type(pipeline), "__call__", None)
    with pytest.raises(ValueError, match="3 pictures are too few for suite distribution; take 4 or more"):
        run(pipeline, 3, extractor=COLOURS, data="dolls")


def test_what_judges_is_loaded_before_other_suites_draw(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(type(pipeline), "__call__", None)
    for option, fault in (("clip", "holds no CLIP"), ("extractor", "is no MODULE:NAME")):
        options = {f"distribution:{option}": str(tmp_path)}
        with pytest.raises(ValueError, match=fault):
            evaluate_suites(pipeline, ["dolls", "distribution"], samples=4, options=options)


def test_other_pictures_are_another_evaluation(pipeline, tmp_path):
    """Their names and the file stay. Of those that are not taken, nothing is known; a dataset's are its own."""
    (tmp_path / "data").mkdir()
    file, out = captioned(tmp_path / "data", [f"red {i}" for i in range(10)]), tmp_path / "out"
    options = {"extractor": COLOURS, "data": str(file)}
    how = {"draw_paths": ["diffusion"], "answer_paths": [], "settings": FAST, "options": options, "samples": 5}
    first = evaluate(pipeline, "distribution", out=out, **how)
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "data" / "1.png")
    assert evaluate(pipeline, "distribution", out=out, **how).scores == first.scores
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "data" / "2.png")
    with pytest.raises(ValueError, match="holds an evaluation with contents.distribution '.*', not '.*'; give the"):
        evaluate(pipeline, "distribution", out=out, **how)
    evaluate(pipeline, "distribution", out=tmp_path / "dolls", **how | {"options": options | {"data": "dolls"}})
    assert "contents" not in json.loads((tmp_path / "dolls" / "evaluation.json").read_text())
