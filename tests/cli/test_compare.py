"""`hybridgen compare`: two evaluations on one page, and what cannot be compared."""

import json

QUICK = ("--suite", "dolls", "--draw", "diffusion", "--answer", "understanding", "--samples", "2")


def test_two_evaluations_side_by_side(run, tiny_checkpoint, tmp_path):
    for name, steps in (("a", 1), ("b", 2)):
        assert run("evaluate", tiny_checkpoint, *QUICK, "--steps", steps, "--out", tmp_path / name)[0] == 0
    code, lines, error = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "page.html")
    assert code == 0, error
    assert lines[-1] == str(tmp_path / "page.html")
    scores = json.loads((tmp_path / "a" / "scores.json").read_text())["suites"]["dolls"]
    counted = sum(
        len(of_path["scores"]) for task in ("generation", "understanding") for of_path in scores[task].values()
    )
    assert len(lines) == counted + 1
    assert sum(line.startswith("dolls, drawing by diffusion, creature: ") for line in lines) == 1
    page = (tmp_path / "page.html").read_text()
    assert "settings.diffusion.steps: A, B" in page
    other = run("evaluate", tiny_checkpoint, *QUICK, "--seed", 1, "--steps", 1, "--out", tmp_path / "c")
    assert other[0] == 0
    code, lines, error = run("compare", tmp_path / "a", tmp_path / "c", "--out", tmp_path / "no.html")
    assert (code, lines) == (2, [])
    assert "were not evaluated on the same: seed is 0 in the first and 1 in the second" in error
    assert not (tmp_path / "no.html").exists()


def test_two_checkpoints_are_evaluated_first(run, pipeline, tiny_checkpoint, tmp_path):
    pipeline.save_pretrained(tmp_path / "copy")
    words = (tiny_checkpoint, tmp_path / "copy", *QUICK, "--steps", 1, "--out", tmp_path / "page.html")
    code, lines, error = run("compare", *words)
    assert code == 0, error
    assert all(line.endswith("no difference shown") for line in lines[:-1])
    assert (tmp_path / "page" / "b" / "scores.json").is_file()


def test_mistakes_are_one_sentence(run, tiny_checkpoint, tmp_path):
    for words, sentence in (
        ((tmp_path, tmp_path), "is given twice; name two evaluations, or two checkpoints"),
        ((tmp_path / "x", tmp_path / "y"), "give a folder that `hybridgen evaluate` wrote"),
        ((tiny_checkpoint, tmp_path), "has no evaluation.json; give a folder that `hybridgen evaluate` wrote"),
        ((tiny_checkpoint, tmp_path, "--suite", "cats"), "there is no suite 'cats'; choose dolls or emoji"),
        ((tiny_checkpoint, tmp_path, "--suite", "dolls"), "give a folder that training or save_pretrained wrote"),
        ((tiny_checkpoint, tmp_path, "--samples", 2), "without --suite two evaluations are compared as they are"),
        ((tiny_checkpoint, tmp_path, "--guidance", 2), "without --suite two evaluations are compared as they are"),
        ((tiny_checkpoint, tmp_path, "--out", tmp_path / "a.pdf"), "name a file that ends with .html"),
    ):
        code, lines, error = run("compare", *words)
        assert (code, lines) == (2, [])
        assert len(error.splitlines()) == 1
        assert sentence in error
