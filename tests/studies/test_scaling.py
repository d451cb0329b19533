"""`hybridgen scale` on ladders of seconds: the points are what the runs did, the laws are those of the points."""

import json
from pathlib import Path

import pytest
import yaml

from hybridgen.cli.main import main
from hybridgen.studies.measuring import sizes
from hybridgen.studies.scaling import parity_sentence, read_ladder
from hybridgen.studies.scaling_law import Point, fit
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
def done(tmp_path_factory) -> tuple[list[Path], Path, list[str]]:
    """Two recipes, the folder of their runs, and what was printed."""
    folder = tmp_path_factory.mktemp("scaling")
    causal = ALONE | {"model": {"diffusion_config": {"bidirectional": False}}}
    files = [write_ladder(folder), write_ladder(folder, "causal", causal)]
    words = ["scale", *map(str, files), "--out", str(folder / "out"), "--bootstrap", "40"]
    assert main(words) == 0
    return files, folder / "out", words


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


def test_ratios_in_words():
    ratio = {"first": "a", "second": "b", "loss": "text", "flops": 2e13, "at_loss": 0.5, "extrapolated": False}
    assert parity_sentence(ratio | {"ratio": 0.5, "low": 0.4, "high": None}).endswith(
        "b takes 0.50 times as many (0.40 to more than any budget)"
    )
    assert parity_sentence(ratio | {"ratio": None, "low": 2.0, "high": None}).endswith("b never gets there by its law")


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
