"""The suite of distributions: names are those of the networks, values those of the formulas, refusals one sentence."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.data.synthetic import dolls
from hybridgen.evaluation.distances import frechet
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate, evaluate_suites

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
