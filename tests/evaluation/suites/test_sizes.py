"""A size that the checkpoint cannot draw, or prompts that do not fit it, are refused by every suite that draws, before
any other suite has begun."""

import json

import pytest

from hybridgen.evaluation.run import evaluate_suites

COLOURS = "tests.evaluation.suites.test_distribution:colours"
PROMPT = "a red circle"


def prompts_of(suite: str, folder, prompt: str = PROMPT) -> dict[str, str]:
    """Options that name a benchmark's own file with one prompt."""
    file = folder / f"{suite}.json"
    contents = {
        "geneval": {"tag": "single_object", "prompt": prompt, "include": [{"class": "circle", "count": 1}]},
        "geneval2": {"prompt": prompt, "atom_count": 1, "vqa_list": [["Is it red?", "Yes"]], "skills": ["attribute"]},
        "tiif": {"type": "basic", "short_description": PROMPT, "long_description": prompt},
        "wise": [{"Prompt": prompt, "prompt_id": 1}],
    }
    if suite == "dpg":
        file = folder / "dpg"
        file.mkdir()
        (file / "0.txt").write_text(prompt)
    else:
        file.write_text(json.dumps(contents[suite]))
    return {"data": str(file)}


def refused(pipeline, folder, monkeypatch, suite: str, options: dict) -> str:
    monkeypatch.setattr(type(pipeline), "__call__", None)  # nothing is drawn before it is said
    monkeypatch.setattr(type(pipeline), "answer", None)
    options = {f"{suite}:{name}": value for name, value in options.items()}
    with pytest.raises(ValueError) as raised:
        evaluate_suites(pipeline, ["text", suite], samples=1, options=options | {"text": __file__}, out=folder / "out")
    assert not (folder / "out").exists()
    return str(raised.value)


@pytest.mark.parametrize("suite", ["geneval", "geneval2", "dpg", "tiif", "wise"])
def test_prompts_of_others(suite, pipeline, tmp_path, monkeypatch):
    options = prompts_of(suite, tmp_path) | {"size": "33"}
    said = refused(pipeline, tmp_path, monkeypatch, suite, options)
    assert said.startswith(f"suite {suite} cannot be drawn by diffusion: size 33x33 is not divisible by the patch size")


@pytest.mark.parametrize("suite", ["dolls", "emoji", "shapes", "words", "unified"])
@pytest.mark.parametrize(("size", "fault"), [("2", "size 2x2 is not divisible"), ("512", "the model's context is")])
def test_worlds(suite, size, fault, pipeline, tmp_path, monkeypatch):
    """Smaller than a patch; larger than the context, before a single true picture of that size is made."""
    options = {"size": size} | ({"reader": "none"} if suite == "words" else {})
    said = refused(pipeline, tmp_path, monkeypatch, suite, options)
    assert said.startswith(f"suite {suite} cannot be drawn by diffusion: ")
    assert fault in said


def test_distributions(pipeline, tmp_path, monkeypatch):
    options = {"extractor": COLOURS, "data": "dolls", "size": "2"}
    monkeypatch.setattr("hybridgen.evaluation.suites.distribution.LEAST", 1)
    said = refused(pipeline, tmp_path, monkeypatch, "distribution", options)
    assert said.startswith("suite distribution cannot be drawn by diffusion: size 2x2 is not divisible")


@pytest.mark.parametrize("suite", ["geneval", "geneval2", "dpg", "tiif", "wise"])
def test_a_prompt_that_does_not_fit(suite, pipeline, tmp_path, monkeypatch):
    options = prompts_of(suite, tmp_path, "a red circle " * 2000)
    said = refused(pipeline, tmp_path, monkeypatch, suite, options)
    assert said.startswith(f"suite {suite} cannot be drawn by diffusion: prompt 'a red circle")
    assert "context is" in said
