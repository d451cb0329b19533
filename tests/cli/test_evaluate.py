"""`hybridgen evaluate`: scores as lines and as a file."""

import json


def test_evaluate_writes_scores(run, tiny_checkpoint, tmp_path):
    code, lines, _ = run(
        "evaluate", tiny_checkpoint, "--suite", "dolls", "--draw", "diffusion", "--answer", "understanding",
        "--samples", 2, "--steps", 2, "--out", tmp_path / "scores",
    )  # fmt: skip
    assert code == 0
    file = tmp_path / "scores" / "scores.json"
    assert lines[-1] == str(file)
    everything = json.loads(file.read_text())
    scores = everything["suites"]["dolls"]
    assert list(scores["generation"]) == ["diffusion"]
    assert list(scores["understanding"]) == ["understanding"]
    assert scores["generation"]["diffusion"]["steps"] == 2
    assert everything["checkpoint"] == str(tiny_checkpoint)
    assert len(lines) == 1 + sum(
        len(result["scores"]) for task in ("generation", "understanding") for result in scores[task].values()
    )


def test_evaluate_paths_serve_both_tasks(run, tiny_checkpoint, tmp_path):
    _, _, _ = run(
        "evaluate", tiny_checkpoint, "--suite", "dolls", "--paths", "understanding", "vq", "--samples", 1,
        "--out", tmp_path,
    )  # fmt: skip
    scores = json.loads((tmp_path / "scores.json").read_text())["suites"]["dolls"]
    assert (set(scores["generation"]), set(scores["understanding"])) == ({"vq"}, {"understanding", "vq"})
