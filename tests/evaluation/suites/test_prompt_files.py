"""GenEval 2, DPG, TIIF and WISE: read, drawn, laid out as their scorers read pictures, and asked by their rules."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from hybridgen.evaluation.intervals import wilson
from hybridgen.evaluation.suites import dpg, geneval2, open_suite, tiif, wise
from tests.painters import Painter, work_of

COLOURS = ("red", "green", "blue")


# ---- GenEval 2


@pytest.fixture
def geneval2_file(tmp_path):
    file = tmp_path / "geneval2_data.jsonl"
    lines = [
        {
            "prompt": f"a {colour} circle and a star",
            "atom_count": 3,
            "vqa_list": [
                [f"Is there a {colour} circle?", "Yes"],
                ["Is there a star?", "Yes"],
                ["Is there a ring?", "Yes"],
            ],
            "skills": ["attribute", "object", "object"],
        }
        for colour in COLOURS
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_soft_tifa_is_the_references_arithmetic():
    """Means against numpy and scipy, taken as `evaluation.py` and `soft_tifa_analysis.py` take them."""
    from scipy.stats import gmean

    rng = np.random.default_rng(0)
    lines = [
        {"atom_count": 3 + i % 4, "skills": [("object", "count", "verb")[(i + k) % 3] for k in range(3 + i % 4)]}
        for i in range(40)
    ]
    probabilities = [rng.random(len(line["skills"])).tolist() for line in lines]
    scores = geneval2.soft_tifa(lines, probabilities)
    pairs = [
        pair for line, one in zip(lines, probabilities, strict=True) for pair in zip(line["skills"], one, strict=True)
    ]
    assert scores["am"]["value"] == pytest.approx(100 * np.mean([np.mean(one) for one in probabilities]))
    assert scores["gm"]["value"] == pytest.approx(100 * np.mean([gmean(one) for one in probabilities]))
    for skill in ("object", "count", "verb"):
        of_skill = [value for name, value in pairs if name == skill]
        assert scores[f"am, {skill}"]["value"] == pytest.approx(100 * np.mean(of_skill))
    for count in (3, 4, 5, 6):
        of_count = [gmean(one) for one in probabilities if len(one) == count]
        assert scores[f"gm, {count} atoms"]["value"] == pytest.approx(100 * np.mean(of_count))
    assert geneval2.soft_tifa(lines[:1], [[0.0, 1.0, 1.0]])["gm"]["value"] == 0


def test_spellings_are_the_references_but_for_spaces():
    assert geneval2.spellings("How many dogs are in the image?", "four") == ["four", "Four", "4"]
    assert geneval2.spellings("Are there any dogs?", "Yes") == ["Yes", "yes"]
    assert geneval2.spellings("How many dogs are in the image?", "11") == ["11"]  # not twice: they are added


def test_geneval2_is_drawn_asked_and_laid_out(geneval2_file, tmp_path):
    out = tmp_path / "out"
    options = {"data": str(geneval2_file), "instruction": ""}
    work = work_of(Painter(), "geneval2", out, options=options)
    geneval2.check(work)
    result = geneval2.run(work)
    files = json.loads((out / "diffusion-pictures" / "images.json").read_text())
    assert list(files) == [f"a {colour} circle and a star" for colour in COLOURS]
    assert all(Image.open(file).size == (32, 32) for file in files.values())
    scores = result.scores["unified"]["diffusion, asked through understanding"]["scores"]
    # the painter is sure of what is there to 3/4, and there is no ring: 1/4
    assert scores["am"]["value"] == pytest.approx(100 * (0.75 + 0.75 + 0.25) / 3)
    assert scores["gm"]["value"] == pytest.approx(100 * (0.75 * 0.75 * 0.25) ** (1 / 3))
    assert scores["am, object"]["value"] == pytest.approx(50)
    assert "ring" in result.items["unified"]["diffusion, asked through understanding"][0].wrong
    assert "--method soft_tifa_gm" in result.facts["notes"][0]


def test_bad_lines_of_geneval2_are_refused(tmp_path):
    line = {"prompt": "a dog", "atom_count": 1, "vqa_list": [["Is it?", "Yes"]], "skills": ["object"]}
    for change, sentence in [
        ({"skills": []}, "line 1 of .* has 1 questions and 0 skills"),
        ({"vqa_list": [["Is it?"]]}, "vqa_list is"),
        ({"vqa_list": [["What is it?", "dog"]]}, "has the answer 'dog'"),
        ({"vqa_list": [["How many?", 3]]}, "vqa_list is"),
        ({"vqa_list": 3}, "has the vqa_list 3; it must be a list"),
        ({"skills": [1]}, "skills is .*; it is a list of texts"),
        ({"prompt": 5}, "has the prompt 5; it must be a text"),
        ({"atom_count": "two"}, "has the atom_count 'two'; it must be a whole number"),
    ]:
        file = tmp_path / "data.jsonl"
        file.write_text(json.dumps({**line, **change}) + "\n")
        with pytest.raises(ValueError, match=sentence):
            geneval2.read_prompts(file)
    file.write_text(json.dumps({**line, "prompt": "a\u2028dog\x85"}, ensure_ascii=False), encoding="utf-8")
    assert geneval2.read_prompts(file)[0]["prompt"] == "a\u2028dog\x85"  # no line ends in JSON


# ---- DPG


@pytest.fixture
def dpg_files(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    rows = [
        "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
    ]
    for i, colour in enumerate(COLOURS):
        (folder / f"{i}.txt").write_text(f"a {colour} circle\n")
        rows += [
            f'{i},a {colour} circle,,1,0,entity,whole,"entity - whole (ring)",Is there a ring?',
            f'{i},a {colour} circle,,2,1,attribute,color,"attribute - color (ring)",Is there a {colour} circle?',
            f'{i},a {colour} circle,,3,0,entity,whole,"entity - whole (circle)",Is there a circle?',
            f'{i},a {colour} circle,,4,"2, 3",global,,"global - (all)",Is there a circle?',
        ]
    (tmp_path / "dpg_bench.csv").write_text("\n".join(rows) + "\n")
    return folder, tmp_path / "dpg_bench.csv"


def test_a_child_counts_only_if_its_parents_are_right():
    ask = {1: dpg.Proposition("", ""), 2: dpg.Proposition("", "", [1]), 3: dpg.Proposition("", "", [2])}
    assert dpg.share_of_right(ask, {1: True, 2: True, 3: True}) == 1
    assert dpg.share_of_right(ask, {1: False, 2: True, 3: True}) == 0  # and its children's children, too
    assert dpg.share_of_right(ask, {1: True, 2: False, 3: True}) == pytest.approx(1 / 3)


def test_dpg_is_drawn_in_grids_and_asked(dpg_files, tmp_path):
    folder, questions = dpg_files
    out = tmp_path / "out"
    work = work_of(Painter(), "dpg", out, options={"data": str(folder), "questions": str(questions)})
    dpg.check(work)
    result = dpg.run(work)
    for i, colour in enumerate(COLOURS):
        grid = Image.open(out / "diffusion-pictures" / f"{i}.png").convert("RGB")
        assert grid.size == (64, 64)  # four samples, as the official crops are
        for k in range(4):
            left, top = k % 2 * 32, k // 2 * 32
            assert np.array_equal(
                grid.crop((left, top, left + 32, top + 32)), Painter().draw(f"a {colour} circle", k, 32)
            )
    scores = result.scores["unified"]["diffusion, asked through understanding"]["scores"]
    # no ring: its child is wrong, and the child's child; "is there a circle?" alone is right: 1 of 4
    assert scores["dpg"]["value"] == pytest.approx(25)
    assert scores["entity - whole"]["value"] == pytest.approx(50)
    assert scores["attribute - color"]["value"] == pytest.approx(100)  # a category leaves parents aside
    assert "--resolution 32 --pic-num 4" in result.facts["notes"][0]


def test_dpg_without_questions_is_only_drawn(dpg_files, tmp_path):
    work = work_of(Painter(), "dpg", tmp_path / "out", samples=2, options={"data": str(dpg_files[0]), "n_samples": "1"})
    dpg.check(work)
    assert dpg.run(work).scores["generation"]["diffusion"]["scores"] == {}
    names = sorted(file.name for file in (tmp_path / "out" / "diffusion-pictures").iterdir())
    assert names == ["0.png", "1.png"]
    with pytest.raises(ValueError, match="without questions dpg only writes pictures"):
        dpg.check(work_of(Painter(), "dpg", options={"data": str(dpg_files[0])}))


def test_what_is_only_drawn_is_shown_all_the_same(dpg_files, tiif_folders, tmp_path):
    """Each picture is an item, so that the report has a sheet of them."""
    for suite, data, count in ((dpg, dpg_files[0], 3), (tiif, tiif_folders[0], 12)):
        work = work_of(Painter(), suite.__name__, tmp_path / "out", options={"data": str(data)})
        items = suite.run(work).items["generation"]["diffusion"]
        assert len({item.prompt for item in items}) >= 3
        assert len(items) == count
        assert all(item.pictures["diffusion"].size for item in items)


def test_intervals_of_a_category_are_over_prompts(dpg_files, tmp_path):
    """Four samples of a prompt are no four prompts."""
    folder, questions = dpg_files
    counts = []
    for each in ("1", "4"):
        options = {"data": str(folder), "questions": str(questions), "n_samples": each}
        scores = dpg.run(work_of(Painter(), "dpg", options=options)).scores["unified"]
        counts.append(
            {name: tally["n"] for name, tally in scores["diffusion, asked through understanding"]["scores"].items()}
        )
    assert counts[0] == counts[1]
    assert max(counts[0].values()) == 3
    lines = [{"skills": ["count", "count"], "atom_count": 1}] * 2
    am = geneval2.soft_tifa(lines, [[1.0, 0.5], [0.5, 0.0]])["am, count"]
    assert (am["value"], am["n"]) == (50, 2)


def test_bad_files_of_dpg_are_refused(dpg_files, tmp_path):
    folder, questions = dpg_files
    text = questions.read_text()
    for change, sentence in [
        (("dependency", "depends"), "has no column 'dependency'"),
        ((",3,0,", ",three,0,"), "line 4 of .* is no number"),
        ((text.splitlines()[1], "0,1"), "line 2 of .* ends before its proposition_id"),
        (('"2, 3"', '"2, 9"'), "question 4 of prompt 0 follows from 9"),
        (("\n2,", "\n7,"), "has no question about prompt 2"),
    ]:
        questions.write_text(text.replace(*change))
        with pytest.raises(ValueError, match=sentence):
            dpg.check(work_of(Painter(), "dpg", options={"data": str(folder), "questions": str(questions)}))
    (folder / "1.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"1.txt is empty"):
        dpg.read_prompts(folder)
    (folder / "1.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"1.txt is no text in UTF-8"):
        dpg.read_prompts(folder)
    with pytest.raises(ValueError, match="holds no .txt file"):
        dpg.read_prompts(tmp_path)


# ---- TIIF


@pytest.fixture
def tiif_folders(tmp_path):
    prompts, questions = tmp_path / "testmini_prompts", tmp_path / "testmini_eval_prompts"
    prompts.mkdir()
    questions.mkdir()
    for kind in ("color+2d", "negation"):
        lines = [
            {
                "type": kind,
                "short_description": f"a {colour} circle",
                "long_description": f"a {colour} circle and a star",
            }
            for colour in COLOURS
        ]
        asked = [
            {
                "type": kind,
                "yn_question_list": [f"Is there a {colour} circle?  ", "Is there a star?"],
                "yn_answer_list": ["yes", "No" if kind == "negation" else "Yes"],
            }
            for colour in COLOURS
        ]
        (prompts / f"{kind}_prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (questions / f"{kind}_eval_prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    return prompts, questions


def test_tiif_is_drawn_short_and_long_and_asked(tiif_folders, tmp_path):
    prompts, questions = tiif_folders
    out = tmp_path / "out"
    work = work_of(Painter(), "tiif", out, options={"data": str(prompts), "questions": str(questions)})
    tiif.check(work)
    result = tiif.run(work)
    for kind in ("color+2d", "negation"):
        for length in ("short_description", "long_description"):
            folder = out / "diffusion-pictures" / kind / "diffusion" / length
            assert sorted(file.name for file in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    scores = result.scores["unified"]["diffusion, asked through understanding"]["scores"]
    assert f"--jsonl_dir {questions} --image_dir {out / 'diffusion-pictures'}" in result.facts["notes"][0]
    # a star only in what is long: right there where it is wanted, and in the short ones where it is not
    assert scores["all"] == {**scores["all"], "right": 18, "n": 24}
    assert scores["color+2d"]["right"] == scores["negation"]["right"] == 9
    assert scores["short"]["right"] == scores["long"]["right"] == 9
    assert (scores["all"]["groups"], scores["short"]["groups"], scores["negation"]["groups"]) == (6, 6, 3)
    # each prompt has 3 of 4 right, so they are alike: never surer than of independent questions
    assert (scores["all"]["low"], scores["all"]["high"]) == pytest.approx(wilson(18, 24))
    items = result.items["unified"]["diffusion, asked through understanding"]
    assert len({item.group for item in items}) == 6


def test_bad_files_of_tiif_are_refused(tiif_folders, tmp_path):
    prompts, questions = tiif_folders
    file = questions / "negation_eval_prompts.jsonl"
    text = file.read_text()
    options = {"data": str(prompts), "questions": str(questions)}
    for change, sentence in [
        (('"yes", "No"', '"yes"'), "has 2 questions and 1 answers"),
        (('"No"', '"maybe"'), "has the answer 'maybe', not yes or no"),
        (('"type": "negation"', '"type": "action"'), "no questions about line 0 of type negation"),
        (('"yn_answer_list"', '"answers"'), "has no 'yn_answer_list'"),
        (('["yes", "No"]', "[true, 1]"), "line 0 of type negation has True, which is no text"),
        (('["yes", "No"]', '"yes"'), "has the yn_answer_list 'yes'; it must be a list"),
        (('"type": "negation"', '"type": ["negation"]'), "has the type .*; it must be a text"),
        (('"type": "negation"', '"type": "../x"'), "has lines of type '../x', which cannot name a folder"),
    ]:
        file.write_text(text.replace(*change))
        with pytest.raises(ValueError, match=sentence):
            tiif.check(work_of(Painter(), "tiif", options=options))
    with pytest.raises(ValueError, match="only writes pictures"):
        tiif.check(work_of(Painter(), "tiif", options={"data": str(prompts)}))
    with pytest.raises(ValueError, match="holds no .jsonl file"):
        tiif.check(work_of(Painter(), "tiif", tmp_path, options={"data": str(tmp_path)}))


# ---- WISE


def test_wise_is_drawn_by_prompt_id(tmp_path):
    entries = [
        {"Prompt": f"a {colour} circle", "prompt_id": 400 + i, "Category": "x"} for i, colour in enumerate(COLOURS)
    ]
    file = tmp_path / "merge.json"
    file.write_text(json.dumps(entries))
    work = work_of(Painter(), "wise", tmp_path / "out", options={"data": str(file), "size": 64})
    wise.check(work)
    result = wise.run(work)
    folder = tmp_path / "out" / "diffusion-pictures"
    assert sorted(file.name for file in folder.iterdir()) == ["400.png", "401.png", "402.png"]
    assert np.array_equal(Image.open(folder / "401.png").convert("RGB"), Painter().draw("a green circle", 0, 64))
    assert str(folder) in result.facts["notes"][0]
    assert [item.prompt for item in result.items["generation"]["diffusion"]] == [entry["Prompt"] for entry in entries]
    for change, sentence in [
        ([{**entries[0], "prompt_id": "../x"}], "has the prompt_id '../x'"),
        ([{**entries[0], "prompt_id": -1}], "has the prompt_id -1"),
        ([{**entries[0], "Prompt": None}], "has the Prompt None; it must be a text"),
        ([entries[0], entries[0]], "has two prompts with the prompt_id 400"),
        ([{"prompt_id": 1}], "entry 1 of .* has no 'Prompt'"),
        ({}, "holds no list of prompts"),
    ]:
        file.write_text(json.dumps(change))
        with pytest.raises(ValueError, match=sentence):
            wise.check(work_of(Painter(), "wise", tmp_path, options={"data": str(file)}))


# ---- all


def test_who_answers_is_looked_for_before_anything_is_drawn(dpg_files, tiif_folders, geneval2_file, tmp_path):
    for suite, data in ((dpg, dpg_files[0]), (tiif, tiif_folders[0])):
        options = {"data": str(data), "vqa": str(tmp_path)}
        with pytest.raises(ValueError, match="option vqa of suite .* is who answers questions; give questions, too"):
            suite.check(work_of(Painter(), suite.__name__, tmp_path, options=options))
    options = {"data": str(geneval2_file), "vqa": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match="nowhere"):
        geneval2.check(work_of(Painter(), "geneval2", options=options))


@pytest.mark.parametrize("name", ["geneval", "geneval2", "dpg", "tiif", "wise"])
def test_without_its_file_each_says_where_it_is_had(name, tmp_path):
    with pytest.raises(ValueError, match=f"suite {name} needs --option data=FILE: it is .* github.com/"):
        open_suite(name).check(work_of(Painter(), name, tmp_path))


def test_another_checkpoint_answers(geneval2_file, tiny_checkpoint):
    """The questions are asked of the checkpoint that `vqa` names, through each of its reading paths."""
    options = {"data": str(geneval2_file), "vqa": str(tiny_checkpoint)}
    result = geneval2.run(work_of(Painter(), "geneval2", samples=2, options=options))
    assert set(result.scores["unified"]) == {
        f"diffusion, asked through {path}" for path in ("understanding", "diffusion", "vq")
    }
    for of_path in result.scores["unified"].values():
        assert 0 < of_path["scores"]["am"]["value"] < 1  # random weights know no words
        assert not math.isnan(of_path["scores"]["gm"]["value"])
