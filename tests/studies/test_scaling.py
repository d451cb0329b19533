"""`hybridgen scale` on ladders of seconds: the points are what the runs did, the laws are those of the points."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from hybridgen.cli.main import main
from hybridgen.studies import pages, scaling
from hybridgen.studies.measuring import sizes
from hybridgen.studies.runs import Run
from hybridgen.studies.scaling import LOSSES, Ladder, LadderConfig, in_lines, parity_sentence, read_ladder, summarise
from hybridgen.studies.scaling_law import Law, Point, fit
from tests.models import tiny_model
from tests.studies.test_study import ALONE, BASE

ROOT = Path(__file__).parents[2]
SIZES = {
    name: {
        "model.text_config.hidden_size": width,
        "model.text_config.num_attention_heads": width // 8,
        "model.text_config.num_key_value_heads": width // 8,
    }
    for name, width in (("small", 8), ("middle", 16), ("large", 32))
}
LADDER = {"sizes": SIZES, "tokens": [1125, 2250, 4500]}


def write_ladder(folder: Path, name: str = "ladder", config: dict = ALONE, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "joint.yaml").write_text(yaml.safe_dump(BASE, sort_keys=False), encoding="utf-8")
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config | {"ladder": LADDER | changes}), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Iterator[tuple[list[Path], Path, list[str]]]:
    """Two recipes, the folder of their runs, and what was printed."""
    folder = tmp_path_factory.mktemp("scaling")
    causal = ALONE | {"model": {"diffusion_config": {"bidirectional": False}}}
    files = [write_ladder(folder), write_ladder(folder, "causal", causal)]
    words = ["scale", *map(str, files), "--out", str(folder / "out"), "--bootstrap", "40"]
    with mock.patch("hybridgen.studies.runs.LOOKS", 2):  # a ladder takes the last look of a run
        assert main(words) == 0
        yield files, folder / "out", words


@pytest.mark.slow
def test_points_are_what_the_runs_did(done):
    content = json.loads((done[1] / "scaling.json").read_text())
    assert set(content["recipes"]) == {"ladder", "causal"}
    recipe = content["recipes"]["ladder"]
    assert set(recipe["losses"]) == {"text", "diffusion"}  # there is no path of codes
    assert len(recipe["runs"]) == 9
    for number, run in enumerate(recipe["runs"]):
        folder = done[1] / run["name"] / "seed_0"
        lines = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
        last = [line["validation/loss/diffusion"] for line in lines if "validation/loss" in line][-1]
        for count in ("parameters", "without_embeddings"):
            point = recipe["losses"]["diffusion"][count]["points"][number]
            assert point["loss"] == last
            assert point["tokens"] == sum(line.get("tokens", 0) for line in lines)
            assert point["parameters"] == run[count]
    assert len({run["without_embeddings"] for run in recipe["runs"]}) == 3


@pytest.mark.slow
def test_laws_are_those_of_the_points(done):
    content = json.loads((done[1] / "scaling.json").read_text())
    for recipe in content["recipes"].values():
        for counts in recipe["losses"].values():
            for law in counts.values():
                again = fit([Point(**point) for point in law["points"]])
                for name in ("E", "A", "alpha", "B", "beta", "size_exponent"):
                    entry = law[name]
                    assert entry["value"] == pytest.approx(getattr(again, name))
                    assert entry["low"] <= entry["high"]
    assert {(each["second"], each["loss"], each["count"]) for each in content["parity"]} == {
        ("causal", loss, count) for loss in ("text", "diffusion") for count in ("parameters", "without_embeddings")
    }


@pytest.mark.slow
def test_the_same_command_makes_no_run_again(done, capsys):
    _, out, words = done
    before = {file: file.stat().st_mtime_ns for file in out.rglob("result.json")}
    assert main([*words, "--parameters", "all"]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("result.json")} == before
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("ladder, text: E ")
    assert printed[-1] == str(out / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "all weights" in page
    assert {"ladder_text.svg", "ladder_text.png", "causal_diffusion.png"} <= {
        file.name for file in (out / "plots").iterdir()
    }


def refused(capsys, *words: str) -> str:
    assert main(["scale", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": {"one": {}}}, "ladder.sizes has 1; E, A and alpha take at least 3"),
        ({"tokens": [1000, 2000]}, "ladder.tokens has 2; E, B and beta take at least 3"),
        ({"tokens": [2400, 2400, 4800]}, "names a value twice"),
        ({"tokens": [0, 1000, 2000]}, "each must be above 0"),
        ({"sizse": {}}, "unknown key 'ladder.sizse'"),
        ({"sizes": SIZES | {"middle": {"model.text_config.hiden_size": 16}}}, "hiden_size"),
        ({"sizes": SIZES | {"middle": 16}}, "ladder.sizes.middle is 16; give a name and the keys"),
        ({"tokens": [100, 2400, 4800]}, "100 tokens are 0."),
        ({"losses": {"text": "loss/text"}}, "ladder.losses.text is 'loss/text', which no run measures"),
        ({"losses": {"a": "validation/source/raed/text"}}, "validation/source/NAME/KIND of the held-out draw"),
        ({"before": ["codec.yaml"]}, "ladder.before names codec.yaml, which is no file beside it"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused_before_any_run(changes, message, tmp_path, capsys):
    file, out = write_ladder(tmp_path, **changes), tmp_path / "out"
    assert message in refused(capsys, str(file), "--out", str(out))
    assert not out.exists()


def test_a_config_without_a_ladder_or_held_out_data_is_refused(tmp_path):
    write_ladder(tmp_path)
    with pytest.raises(ValueError, match="joint.yaml has no section ladder"):
        read_ladder(tmp_path / "joint.yaml")
    bare = {key: value for key, value in BASE.items() if key != "validation"}
    with pytest.raises(ValueError, match="validation.sources is missing"):
        read_ladder(write_ladder(tmp_path, "bare", bare))


def test_what_weights_count():
    """Embeddings and heads of words and codes are left out, and nothing else."""
    model = tiny_model()
    left_out = ("embed_tokens", "lm_head", "generation_embeddings", "generation_head.vision_head")
    every = dict(model.named_parameters())
    assert sizes(model) == (
        sum(each.numel() for each in every.values()),
        sum(each.numel() for name, each in every.items() if not any(word in name for word in left_out)),
    )


FALLING = Law(1.8, 60, 0.35, 120, 0.37)


def made(folder: Path, name: str, losses: dict, budgets=(3e5, 1e6, 3e6, 1e7), numbers: dict = LOSSES):
    """A ladder whose runs came out as `losses` say (kind -> function of weights and tokens), without any training."""
    runs = []
    for size in (3e4, 1e5, 3e5):
        for tokens in budgets:
            run = Run(f"{name}/{size:.0f}_{tokens:.0f}", 0, folder / name / f"{size:.0f}_{tokens:.0f}", folder, ())
            found = {LOSSES[kind]: float(loss(size, tokens)) for kind, loss in losses.items()}
            result = {"name": run.name, "seed": 0, "parameters": size, "without_embeddings": size, "seconds": None}
            run.folder.mkdir(parents=True)
            run.result_file.write_text(
                json.dumps(result | {"tokens": tokens, "flops": 6 * size * tokens} | {"numbers": found})
            )
            runs.append(run)
    settings = LadderConfig(sizes={}, tokens=list(budgets), losses=dict(numbers))
    return Ladder(name, folder / f"{name}.yaml", {}, settings), runs


def told(folder: Path, *made_ladders, refits: int = 8) -> tuple[dict, list[str], str]:
    """What is fitted, what is printed, and the page."""
    ladders = [ladder for ladder, _ in made_ladders]
    content = summarise(ladders, {ladder.name: runs for ladder, runs in made_ladders}, refits) | {"shown": "parameters"}
    with mock.patch.object(
        pages.plots, "keep", return_value=""
    ):  # which takes most of the time, and is not in question
        page = pages.write_scaling(folder, content).read_text(encoding="utf-8")
    return content, list(in_lines(content)), page


def test_a_number_at_a_bound_is_said_to_be_there(tmp_path):
    """Losses that do not depend on the size: alpha stands at its least, and ratios with that law are unreliable."""
    true = made(tmp_path, "true", {"text": FALLING.loss})
    flat = made(tmp_path, "flat", {"text": lambda size, tokens: 1.9 + 120 * tokens**-0.37})
    content, lines, page = told(tmp_path, true, flat)
    laws = [content["recipes"][name]["losses"]["text"]["parameters"] for name in ("true", "flat")]
    assert laws[0]["at_bounds"] == laws[0]["doubts"] == []
    assert "alpha" in laws[1]["at_bounds"]
    assert laws[1]["alpha"]["value"] == 0.01
    (doubt,) = [line for line in lines if line.startswith("flat, text: at the bounds of the fit: ")]
    assert "alpha 0.01" in doubt
    assert doubt.endswith("and the FLOPs for a loss that follow from it are unreliable")
    assert not any(line.startswith("true, text: ") and "bounds" in line for line in lines)
    assert any("; unreliable: " in line and "alpha of flat" in line for line in lines)
    assert page.count("at the bounds of the fit: ") == 2  # N with and without embeddings
    assert page.count("alpha of flat") == 2


def test_refits_at_a_bound_and_few_runs_are_said(tmp_path):
    noise = iter([0.004, -0.006, 0.001, 0.005, -0.003, 0.002, -0.004, 0.006, -0.001])
    few = made(tmp_path, "few", {"text": lambda *at: FALLING.loss(*at) * (1 + next(noise))}, (3e5, 1e6, 3e6))
    _, lines, page = told(tmp_path, few, refits=40)
    told_few = "9 runs are few for five numbers: how far off they are is told by 4 residuals alone"
    assert f"few, text: {told_few}" in lines
    assert told_few in page
    (refits,) = [line for line in lines if "refits stand at the bounds of the fit" in line]
    shares = dict(word.rsplit(" in ", 1) for word in refits.split(": ")[-1].split(", "))
    assert all(3 <= int(share.removesuffix(" %")) <= 100 for share in shares.values())


def test_what_was_not_measured_or_is_not_finite_is_said(tmp_path):
    """The losses that can be fitted are, all the same."""
    ladder = made(tmp_path, "one", {"text": FALLING.loss, "diffusion": lambda *at: float("nan")})
    content, lines, page = told(tmp_path, ladder)
    assert set(content["recipes"]["one"]["losses"]) == {"text"}
    missing = "nothing is fitted: no run has measured validation/loss/code"
    assert f"one, code: {missing}" in lines
    assert f"code loss: {missing}" in page
    assert any(
        line.startswith("one, diffusion: nothing is fitted: one, diffusion: the loss of 30,000 weights")
        for line in lines
    )


def test_a_ladder_without_any_law_is_refused_after_its_report(tmp_path, monkeypatch, capsys):
    file, out = write_ladder(tmp_path, losses={"text": "validation/loss/code"}), tmp_path / "out"

    def pretend(runs, jobs):
        for number, run in enumerate(runs):
            numbers = {"numbers": {"validation/loss/text": 1.0}, "tokens": 1.0, "flops": 1.0, "seconds": None}
            run.folder.mkdir(parents=True)
            run.result_file.write_text(json.dumps({"name": run.name, "seed": number, **run.about, **numbers}))

    monkeypatch.setattr(scaling, "run_all", pretend)
    assert main(["scale", str(file), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert "ladder, text: nothing is fitted: no run has measured validation/loss/code" in printed.out
    assert "no law could be fitted to any loss of ladder.losses" in printed.err
    assert (out / "report.html").is_file()


def test_a_ratio_outside_of_the_second_ladder_is_said(tmp_path):
    """Above its largest run, or below its smallest."""
    dear = made(tmp_path, "dear", {"text": Law(1.8, 60, 0.35, 120, 0.37).loss})
    cheap = made(tmp_path, "cheap", {"text": Law(0.2, 20, 0.35, 40, 0.37).loss})
    for pair, ratio in (((dear, cheap), "cheap takes 0."), ((dear, dear), "dear takes 1.00 times")):
        _, lines, _ = told(tmp_path, *pair)
        (line,) = [line for line in lines if ratio in line]
        assert ("beyond its ladder" in line) == (pair[0] is not pair[1])


def test_ratios_in_words():
    ratio = {"first": "a", "second": "b", "loss": "text", "flops": 2e13, "at_loss": 0.5, "extrapolated": False}
    ratio["unreliable"] = []
    assert parity_sentence(ratio | {"ratio": 0.5, "low": 0.4, "high": None}).endswith(
        "b takes 0.50 times as many (0.40 to more than any budget)"
    )
    assert parity_sentence(ratio | {"ratio": None, "low": 2.0, "high": None}).endswith("b never gets there by its law")
    doubted = parity_sentence(ratio | {"ratio": 0.5, "low": 0.4, "high": 0.6, "unreliable": ["alpha of a", "E of b"]})
    assert doubted.endswith("(0.40 to 0.60); unreliable: alpha of a, E of b at the bounds of the fit")


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "scaling").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_ladders_in_the_box_are_whole(file):
    ladder = read_ladder(file)
    assert len(ladder.settings.sizes) * len(ladder.settings.tokens) >= 12
    header = file.read_text(encoding="utf-8").split("\n\n")[0].lower()
    assert all(word in header for word in ("command", "hardware", "time", "expected"))


def test_the_two_ladders_differ_in_what_is_asked_alone():
    one, other = (read_ladder(ROOT / "configs" / "scaling" / f"{name}.yaml") for name in ("hybrid", "hybrid_causal"))
    assert one.settings == other.settings
    changed = other.content | {"output_dir": one.content["output_dir"]}
    assert changed["model"]["diffusion_config"].pop("bidirectional") is False
    assert changed == one.content
