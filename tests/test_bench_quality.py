"""The race of `scripts/bench_quality.py` at toy size: ours from training to score, its tables, and what it refuses.

transfusion-pytorch is not installed where tests run. What is checked of it is what is ours: patches, names, sizes; the
script itself holds its batched drawing against the library's own `sample_one` in every run.
"""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridgen.evaluation.intervals import wilson, with_interval
from hybridgen.training.config.checks import load_config

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = [
    "model.text_config.hidden_size=32", "model.text_config.intermediate_size=32", "model.text_config.head_dim=16",
    "model.text_config.num_hidden_layers=1", "model.text_config.num_attention_heads=2",
    "model.text_config.num_key_value_heads=2", "model.tokenizer.samples=40", "data.per_device_batch_size=2",
    "compile=false", "log_every=1", "sampling.steps=2",
]  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("bench_quality")


def result(bench, world="dolls", label="hybridgen", seconds=150.0, seed=0, right=(90, 9), n=(100, 10), **more) -> dict:
    """The first of ten pictures have as many parts right as there are."""
    tallies = {}
    for name, r, of in zip(("parts", "whole"), right, n, strict=True):
        each = [[min(max(r - i * of // 10, 0), of // 10), of // 10] for i in range(10)]
        tallies[name] = with_interval({"right": r, "n": of, "share": r / of}, each) | {"each": each}
    run = {"world": world, "label": label, "seconds": seconds, "seed": seed, "scores": tallies, "steps": 400}
    return run | {"compiling": 20.0, "parameters": 1_500_000, "chosen": {"guidance": 1.5}} | more


def test_ours_trains_for_the_seconds_of_the_processor_and_is_scored(bench, tmp_path, monkeypatch):
    """Its clock starts behind the steps that compile, and a run that is trained is not trained again."""
    monkeypatch.setattr(bench, "CHOOSING", 4)
    threads = torch.get_num_threads()
    run = bench.Run("toy", "ours", "ours", "dolls", 1.0, 0, 6, words=TINY)
    try:
        bench.do(run, tmp_path)
        told = json.loads((tmp_path / "result.json").read_text())
        lines = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
        assert told["steps"] == lines[-1]["step"] - bench.WARM > 3
        assert bench.parameters_of(run) == told["parameters"]
        assert told["steps"] <= told["pictures"] <= 6 * told["steps"]
        assert lines[-1]["lr"] < 0.2 * max(line["lr"] for line in lines)  # it falls with the clock
        assert [tried["guidance"] for tried in told["tried"]] == list(bench.GUIDANCE)
        assert told["scores"]["parts"]["n"] == 7 * told["scores"]["whole"]["n"] == 42
        assert told["scores"]["parts"]["groups"] == 6
        for tally in told["scores"].values():
            assert [sum(column) for column in zip(*tally["each"], strict=True)] == [tally["right"], tally["n"]]
        best = told["tried"][bench.best_of(told["tried"])]
        assert told["chosen"] == {"guidance": best["guidance"]}
        if best["guidance"] == 1:
            assert told["without_guidance"] == told["scores"]
        monkeypatch.setattr(bench, "train_ours", None)
        bench.do(run, tmp_path)
        assert json.loads((tmp_path / "result.json").read_text()) == told
    finally:
        torch.set_num_threads(threads)


def test_the_way_to_draw_is_the_best_of_those_tried(bench):
    tried = [{"parts": 0.5, "whole": 0.4}, {"parts": 0.6, "whole": 0.1}, {"parts": 0.6, "whole": 0.2}]
    assert bench.best_of(tried) == 2
    assert bench.best_of(tried[::-1]) == 0


def test_what_is_finished_is_not_run_again(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.subprocess, "run", None)
    (tmp_path / "result.json").write_text(json.dumps({"label": "ours", "steps": 3}))
    run = bench.Run("name", "hybridgen", "ours", "dolls", 1.0, 0, 6)
    assert bench.in_a_process(run, tmp_path, None) == {"label": "hybridgen", "steps": 3}


def test_a_run_that_was_scored_before_pictures_were_counted_singly_is_scored_again(bench, tmp_path):
    assert not bench.is_scored(tmp_path / "result.json")
    for scores, is_scored in (({}, True), (result(bench)["scores"], True), ({"parts": {"right": 3, "n": 4}}, False)):
        (tmp_path / "result.json").write_text(json.dumps({"scores": scores}))
        assert bench.is_scored(tmp_path / "result.json") is is_scored


def test_a_run_that_fails_ends_the_race_with_a_sentence(bench, tmp_path, capfd):
    run = bench.Run("cake", "ours", "ours", "dolls", 1.0, 0, 6, words=["cake=1"])
    with pytest.raises(ValueError, match="the run cake failed; what it printed stands above"):
        bench.in_a_process(run, tmp_path, None)
    assert "cake" in capfd.readouterr().err


def test_every_part_is_a_change_of_the_config_that_training_takes(bench):
    usual = load_config(bench.CONFIG)
    for label, words in bench.PARTS.items():
        words = [word.replace("ROOM", "128").replace("PICTURES", "28") for word in words]
        assert (load_config(bench.CONFIG, words) == usual) == (label == "ours"), label
    for changes in bench.OF_THEIRS.values():
        settings = bench.PeerSettings(**changes)
        assert bench.peer_settings(json.loads(json.dumps(asdict(settings)))) == settings


def test_a_folder_is_named_by_what_decides_its_run(bench):
    options = bench.argparse.Namespace(samples=256)
    usual = asdict(bench.PeerSettings())
    runs = [bench.named(options, "ours", "dolls", 150.0, 0, label, words=words) for label, words in bench.PARTS.items()]
    runs += [
        bench.named(options, "theirs", "dolls", 150.0, 0, label, settings=usual | changes)
        for label, changes in bench.OF_THEIRS.items()
    ]
    runs += [bench.named(options, "ours", "shapes", 150.0, 1, "ours"), bench.named(options, "ours", "dolls", 3, 0, "o")]
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 200
    assert all(Path(name).name == name and " " not in name for name in names)
    assert bench.named(options, "ours", "dolls", 150.0, 0, "hybridgen").name == names[0]


def test_documents_of_theirs_fit_where_ours_stand_alone(bench):
    """The longest document of each world: a picture, its frame, and the caption in at most so many tokens."""
    for name, world in bench.WORLDS.items():
        some = bench.captioned(name, "train", 0, 0, 300)
        assert some.pictures.shape == (300, world.side, world.side, 3)
        tokenizer = bench.build_tokenizer(some.captions, 1024)
        longest = max(map(len, bench.encoded(tokenizer, some.captions)))
        patches = (world.side // bench.PATCH) ** 2
        assert patches + longest + 12 <= world.room < 2 * (patches + 2), (name, longest)


def test_patches_are_cut_and_put_together_again(bench):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    tokens = bench.bench_peer.patches(pictures, 4)
    assert tokens.shape == (3, 8, 8, 48)
    assert torch.equal(tokens[1, 2, 5].view(4, 4, 3), torch.from_numpy(pictures[1, 8:12, 20:24]) / 127.5 - 1)
    assert np.array_equal(bench.bench_peer.pixels(tokens, 4), pictures)


def test_seeds_are_pooled_and_their_spread_is_said(bench):
    results = [result(bench, seed=0), result(bench, seed=1, right=(70, 7)), result(bench, label="other", right=(1, 0))]
    lines = bench.in_table(results)
    assert lines[0] == "- dolls: parts = parts right; whole = all seven parts of a picture right"
    # the same ten captions for both seeds: nine or seven of them right, so eight are both times, and one is once
    captions = [(2, 2)] * 7 + [(1, 2)] * 2 + [(0, 2)]
    both = with_interval({"right": 16, "n": 20, "share": 0.8}, captions)
    low, high = both["low"], both["high"]
    assert low < wilson(16, 20)[0]
    assert high > wilson(16, 20)[1]
    assert lines[-2].split(" | ")[5] == f"80.0 % ({100 * low:.1f} to {100 * high:.1f})"
    assert "| 70.0 to 90.0 | 400 | 20 | 1.50 M | 1.5 |" in lines[-2]
    assert "| dolls | other | 150 | 1 | 1.0 %" in lines[-1]


def test_the_plot_has_a_row_for_each_world_and_a_curve_for_each_of_two(bench):
    results = [
        result(bench, world, label, seconds)
        for world in ("dolls", "shapes")
        for label in ("hybridgen", "transfusion-pytorch")
        for seconds in (150.0, 300.0, 600.0)
    ]
    figure = bench.plotted(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "dolls, held out: parts right", "dolls, held out: all seven parts of a picture right",
        "shapes, held out: prompts right (GenEval's rule)", "shapes, held out: and nothing besides",
    ]  # fmt: skip
    for axes in figure.axes:
        curves = {container.get_label(): container[0] for container in axes.containers}
        assert set(curves) == {"hybridgen", "transfusion-pytorch"}
        assert list(curves["hybridgen"].get_xdata()) == [150, 300, 600]
        assert list(curves["hybridgen"].get_ydata()) == [90, 90, 90]


def test_models_of_unequal_size_do_not_race(bench):
    results = [result(bench), result(bench, label="transfusion-pytorch", parameters=1_640_000)]
    bench.check_sizes(results)
    results[1]["parameters"] = 1_700_000
    with pytest.raises(ValueError, match="1,500,000 and of 1,700,000 parameters would race"):
        bench.check_sizes(results)


def test_sizes_are_counted_before_any_run(bench, monkeypatch, tmp_path, capsys):
    """Once for each kind of run, whatever its seconds and seeds."""
    asked = []

    def counted(run, folder, peer):
        asked.append((run.world, run.what))
        return 1_500_000 if run.what == "ours" else 1_700_000

    monkeypatch.setattr(bench, "require_peer", lambda folder: None)
    monkeypatch.setattr(bench, "counted", counted)
    monkeypatch.setattr(bench, "in_a_process", None)
    words = ["race", "--out", str(tmp_path / "out"), "--worlds", "dolls", "shapes", "--seeds", "0", "1"]
    assert bench.main(words) == 2
    assert "in dolls models of 1,500,000 and of 1,700,000 parameters would race" in capsys.readouterr().err
    assert sorted(asked) == [(world, what) for world in ("dolls", "shapes") for what in ("ours", "theirs")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["race", "--peer", "nowhere"], "transfusion-pytorch is not in nowhere: pip install --no-deps --target FOLDER"),
        (["parts", "--only", "cake"], "--only has 'cake'; the lines are: ours; velocity instead of x0;"),
    ],
)
def test_bad_input_is_one_sentence(bench, arguments, message, tmp_path, capsys):
    assert bench.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
