"""Two evaluations side by side: what differs is found, what only looks so is not, what is not the same is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import compare as module
from hybridgen.evaluation.folder import save_items
from hybridgen.evaluation.intervals import bootstrap_mean, with_interval
from hybridgen.evaluation.page import render_comparison
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.run import scores_of
from hybridgen.evaluation.scores import save_scores

IDENTITY = {
    "format": 1,
    "suites": ["toy"],
    "samples": 60,
    "seed": 0,
    "options": {},
    "files": {},
    "settings": {"steps": 3},
}


def colour(*values: int) -> Image.Image:
    return Image.new("RGB", (8, 8), values)


def result_of(right: np.ndarray, said: np.ndarray, path: str = "vq", distance: float = 3.0) -> Result:
    """Drawn: picture i is right or wrong. Asked: two questions about each picture, answered right or wrong."""
    result, n = Result(labels={"all": "all of it"}), len(right)
    drawn = [
        Item(f"<caption> {i}", {"true picture": colour(i, 0, 0), path: colour(i, 255 * int(ok), 9)}, None, "",
             {"all": float(ok)}, "" if ok else "wrong <part>")
        for i, ok in enumerate(right)
    ]  # fmt: skip
    asked = [
        Item(f"question {i}", {"shown": colour(i // 2, 0, 0)}, "yes" if ok else "no", "yes", {"all": float(ok)})
        for i, ok in enumerate(said)
    ]
    whole = {"value": distance, "n": n, "low": distance - 1, "high": distance + 1, "unit": ""}
    scores = {"all": with_interval(tally(right.sum(), n)), "distance": whole}
    result.add("generation", path, scores, drawn, seconds=1.0)
    result.add("understanding", path, {"all": with_interval(tally(said.sum(), len(said)))}, asked)
    return result


def write(folder, result: Result, **changes):
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({**IDENTITY, **changes}))
    save_items(folder / "toy", result.items)
    save_scores(scores_of({"toy": result}, 0) | {"checkpoint": "x"}, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """B draws eight more of 60 right, and one less; its answers are A's, moved by one."""
    root, rng = tmp_path_factory.mktemp("compared"), np.random.default_rng(0)
    right, said = np.arange(60) < 30, rng.random(120) < 0.5
    better = right.copy()
    better[30:38], better[0] = True, False
    first = write(root / "a", result_of(right, said))
    return first, write(root / "b", result_of(better, np.roll(said, 1), distance=6.0), settings={"steps": 9})


def test_differences_are_those_of_the_items(folders):
    comparison = module.compare(*folders)
    drawing, answering = comparison.suites["toy"]
    assert [part.task for part in (drawing, answering)] == ["generation", "understanding"]
    whole, line = drawing.lines  # the total last
    assert (line.label, line.n, line.is_shown, line.verdict) == ("all of it", 60, True, "B is higher")
    assert line.difference.startswith("+11.67 points (")
    assert "p = 0.039" in line.difference  # 2 (1 + 9) / 2^9
    assert line.first.startswith("50.0 % (")
    assert (whole.verdict, whole.is_shown) == ("the intervals lie apart", True)
    (said,) = answering.lines
    assert (said.verdict, said.is_shown) == ("no difference shown", False)
    assert "bootstrap" in said.difference  # two questions about each picture: McNemar does not apply
    assert comparison.facts["settings.steps: A, B"] == "3, 9"


def test_what_differs_stands_first(folders):
    drawing, answering = module.compare(*folders).suites["toy"]
    differ = [first.mean != second.mean for first, second in drawing.pairs]
    assert differ == [True] * 9 + [False] * 51
    assert all(first.prompt == second.prompt for first, second in drawing.pairs + answering.pairs)


def test_lines_and_page_say_it(folders):
    comparison = module.compare(*folders)
    lines = list(comparison.in_lines())
    assert len(lines) == 3
    assert lines[1].startswith("toy, drawing by vq, all of it: 50.0 % (")
    assert lines[1].endswith(": B is higher")
    page = render_comparison(comparison)
    assert "B is higher" in page
    assert "no difference shown" in page
    assert "&lt;caption&gt; 30" in page
    assert "<caption>" not in page
    assert page.index("&lt;caption&gt; 30") < page.index("&lt;caption&gt; 45")
    assert page.count("true picture: &lt;caption&gt; 30") == 1  # the same in both, so shown once
    assert "A vq" in page


def test_an_evaluation_beside_itself_shows_no_difference(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "copy")
    for part in module.compare(folders[0], tmp_path / "copy").suites["toy"]:
        assert not any(line.is_shown for line in part.lines)
        assert all(line.difference.startswith("+0") for line in part.lines)


def test_values_are_compared_by_the_bootstrap(tmp_path):
    rng, folders = np.random.default_rng(1), []
    for name, shift in (("a", 0.0), ("b", 0.3)):
        values, result = rng.normal(size=200) * 0.5 + shift, Result()
        items = [Item(f"text {i}", verdict={"bits": value}) for i, value in enumerate(values)]
        result.add("text", "text", {"bits": bootstrap_mean(values, "bits per byte")}, items)
        folders.append(write(tmp_path / name, result))
    ((part,),) = module.compare(*folders).suites.values()
    assert part.lines[0].is_shown
    assert "bits per byte" in part.lines[0].difference


def test_a_value_in_percent_differs_by_points_and_one_that_items_do_not_make_is_compared_as_a_whole(tmp_path):
    """Verdicts are shares: of Soft-TIFA in percent they are a hundredth, of a CIDEr (0 to 10) something else."""
    rng, folders = np.random.default_rng(1), []
    for name, shift in (("a", 0.0), ("b", 0.2)):
        shares, result = 0.3 + shift + 0.2 * rng.random(100), Result()
        items = [Item(f"prompt {i}", verdict={"am": share, "caption": share}) for i, share in enumerate(shares)]
        scores = {"am": bootstrap_mean(100 * shares, "%"), "caption": bootstrap_mean(12 * shares, "CIDEr")}
        result.add("unified", "vq", scores, items)
        folders.append((write(tmp_path / name, result), shares.mean()))
    (first, low), (second, high) = folders
    (part,) = module.compare(first, second).suites["toy"]
    am, caption = part.lines
    assert am.difference.startswith(f"{100 * (high - low):+.4g} points (")
    assert "bootstrap" in am.difference
    assert (caption.difference, caption.verdict) == (f"{12 * (high - low):+.4g}", "the intervals lie apart")


def test_versions_that_differ_are_shown(folders, tmp_path):
    assert not any("torch" in fact or "hybridgen" in fact for fact in module.compare(*folders).facts)
    other = shutil.copytree(folders[1], tmp_path / "other")
    scores = json.loads((other / "scores.json").read_text())
    scores["versions"] |= {"hybridgen": "0.0.1", "torch": "2.0"}
    (other / "scores.json").write_text(json.dumps(scores))
    facts = module.compare(folders[0], other).facts
    assert facts["hybridgen: A, B"].endswith(", '0.0.1'")
    assert facts["torch: A, B"].endswith(", '2.0'")
    page = render_comparison(module.compare(folders[0], other))
    assert "0.0.1" in page
    del scores["versions"]  # of a file that somebody wrote by hand
    (other / "scores.json").write_text(json.dumps(scores))
    assert "None" in module.compare(folders[0], other).facts["torch: A, B"]


def test_samples_of_a_prompt_are_drawn_again_together(tmp_path):
    """Items of one group, whose pictures differ: eight samples each of five prompts are five things, too few to say."""
    folders = []
    for name, right in (("a", 0.0), ("b", 1.0)):
        items = [
            Item(f"prompt {i // 8}", {"vq": colour(i, 0, 0)}, verdict={"all": right}, group=f"prompt {i // 8}")
            for i in range(40)
        ]
        result = Result()
        result.add("generation", "vq", {"all": with_interval(tally(40 * right, 40), [(8 * right, 8)] * 5)}, items)
        folders.append(write(tmp_path / name, result))
    ((part,),) = module.compare(*folders).suites.values()
    assert (part.lines[0].verdict, part.lines[0].n) == ("no difference shown", 40)
    for folder in folders:  # of older ones, where items had no groups, each picture stands alone
        file = folder / "toy" / "items.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{json.dumps({k: v for k, v in line.items() if k != 'group'})}\n" for line in lines))
    ((part,),) = module.compare(*folders).suites.values()
    assert part.lines[0].verdict == "B is higher"


def test_a_part_of_which_one_has_no_items_is_compared_as_a_whole(folders, tmp_path):
    """As older evaluations of chats in suite unified."""
    other = shutil.copytree(folders[1], tmp_path / "other")
    (other / "toy" / "items.jsonl").write_text("")
    for part in module.compare(folders[0], other).suites["toy"]:
        assert part.pairs == []
        assert all("intervals" in line.verdict for line in part.lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contents": {"toy": "ab"}}, None),
        ({"samples": 59}, "were not evaluated on the same: samples is 60 in the first and 59 in the second"),
        ({"seed": 4}, "were not evaluated on the same: seed is 0 in the first and 4 in the second"),
        ({"options": {"size": "64"}}, "options.size is None in the first and '64' in the second"),
        ({"files": {"w.pt": "ab"}}, "files.w.pt is None in the first"),
    ],
)
def test_what_was_not_asked_the_same_is_refused(folders, tmp_path, changes, message):
    other = write(tmp_path / "other", result_of(np.arange(60) < 9, np.arange(120) < 9), **changes)
    if message is None:  # what an older evaluation does not tell
        module.compare(folders[0], other)
        return
    with pytest.raises(ValueError, match=message):
        module.compare(folders[0], other)


def test_other_pictures_of_own_data_are_refused(folders, tmp_path):
    some = [
        write(tmp_path / name, result_of(np.arange(60) < 9, np.arange(120) < 9), contents={"own": name})
        for name in ("a", "b")
    ]
    with pytest.raises(ValueError, match="not evaluated on the same: contents.own is 'a' in the first and 'b'"):
        module.compare(*some)


def test_other_suites_paths_and_prompts_are_refused(folders, tmp_path):
    renamed = shutil.copytree(folders[1], tmp_path / "renamed")
    scores = json.loads((renamed / "scores.json").read_text())
    (renamed / "scores.json").write_text(json.dumps({**scores, "suites": {"other": scores["suites"]["toy"]}}))
    with pytest.raises(ValueError, match="the suites are toy in the first and other in the second"):
        module.compare(folders[0], renamed)
    other_path = write(tmp_path / "path", result_of(np.arange(60) < 9, np.arange(120) < 9, path="diffusion"))
    with pytest.raises(ValueError, match="have no task in common that both did by the same path"):
        module.compare(folders[0], other_path)
    items = (renamed / "toy" / "items.jsonl").read_text()
    prompts = shutil.copytree(folders[1], tmp_path / "prompts")
    (prompts / "toy" / "items.jsonl").write_text(items.replace("question 7", "question seven"))
    with pytest.raises(ValueError, match="suite toy asked other things in the two evaluations"):
        module.compare(folders[0], prompts)


def test_what_is_no_evaluation_that_is_done_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="has no evaluation.json; give a folder that `hybridgen evaluate` wrote"):
        module.compare(folders[0], tmp_path)
    unfinished = shutil.copytree(folders[1], tmp_path / "unfinished")
    (unfinished / "scores.json").unlink()
    with pytest.raises(ValueError, match="has no scores.json: the evaluation is not done"):
        module.compare(folders[0], unfinished)


def test_what_only_one_has_is_told(folders, tmp_path):
    more = result_of(np.arange(60) < 30, np.arange(120) < 60)
    more.scores["generation"]["diffusion"] = more.scores["generation"]["vq"]
    more.items["generation"]["diffusion"] = more.items["generation"]["vq"]
    comparison = module.compare(folders[0], write(tmp_path / "more", more))
    assert comparison.facts["only in one of them"] == "toy, drawing by diffusion"
