"""`hybridgen sample --prompts`: rows with settings, a folder that is a data set, killed and gone on with."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hybridgen.cli import sample
from hybridgen.cli.arguments.parser import parse
from hybridgen.cli.main import main
from hybridgen.cli.prompt_file import read_prompts
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.training.processes import ProcessGroup

ROWS = [
    {"prompt": "an orc wearing a purple robe", "path": "diffusion", "steps": 2, "guidance": 1.5},
    {"prompt": "an elf", "path": "vq", "temperature": 0.5, "seed": 40, "num_images": 2},
    {"prompt": "Ünïcode, 猫", "path": "diffusion", "steps": 2, "guidance": 1.5, "height": 16, "width": 48},
    {"prompt": " an elf ", "path": "vq", "guidance": 1, "temperature": None},
    {"prompt": "an orc wearing a purple robe", "path": "diffusion", "steps": 2, "guidance": 1.5, "seed": 0},
]
SEEDS = [0, 40, 41, 42, 43, 0]  # after one that is given, the next ones
BATCH = 2  # so that few rows are several batches


def written(folder: Path, rows: list[dict] = ROWS) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def draw(checkpoint: str, prompts: str, out: str) -> int:
    """In a process of its own."""
    sample.BATCH = BATCH
    return main(["sample", checkpoint, "--prompts", prompts, "--out", out])


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory) -> Path:
    """A folder that was drawn without a stop; its parent has the prompts."""
    place = tmp_path_factory.mktemp("whole")
    before, sample.BATCH = sample.BATCH, BATCH
    try:
        assert draw(str(tiny_checkpoint), str(written(place)), str(place / "out")) == 0
    finally:
        sample.BATCH = before
    return place / "out"


def test_each_row_is_drawn_with_its_own_settings(whole, run, tiny_checkpoint, tmp_path):
    """As the same prompt is without a file: by its path, seed, size and settings, to the pixel."""
    names = [f"{number:06d}.png" for number in range(6)]
    assert sorted(bytes_in(whole)) == sorted([*names, "manifest.json", "metadata.jsonl"])
    manifests = [json.loads(Image.open(whole / name).text["manifest"]) for name in names]
    assert [each["seed"] for each in manifests] == SEEDS
    assert [each["path"] for each in manifests] == ["diffusion", "vq", "vq", "diffusion", "vq", "diffusion"]
    assert manifests[1]["settings"]["temperature"] == 0.5
    assert Image.open(whole / "000003.png").size == (48, 16)
    assert (whole / "000000.png").read_bytes() == (whole / "000005.png").read_bytes()
    for number, words in (
        (2, ("--prompt", "an elf", "--path", "vq", "--temperature", 0.5, "--seed", 41)),
        (3, ("--prompt", "Ünïcode, 猫", "--steps", 2, "--guidance", 1.5, "--height", 16, "--width", 48, "--seed", 42)),
        (4, ("--prompt", " an elf ", "--path", "vq", "--guidance", 1, "--seed", 43)),
    ):
        _, (alone,), _ = run("sample", tiny_checkpoint, *words, "--out", tmp_path / str(number))
        assert np.array_equal(pixels(alone), pixels(whole / names[number])), number
    assert run("replay", whole / "000002.png")[0] == 0


def test_rows_may_edit_pictures(run, tiny_checkpoint, tmp_path):
    """As without a file; one half of each stays; it is drawn again from its manifest."""
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "edit.png")
    half = Image.new("1", (32, 32))
    half.paste(1, (16, 0, 32, 32))
    half.save(tmp_path / "mask.png")
    edit = {"edit": "edit.png", "mask": "mask.png", "steps": 3}
    rows = [
        {"prompt": "an elf", **edit, "seed": 5, "strength": 0.7},
        {"prompt": "an orc", **edit, "seed": 6},
        {"prompt": "an elf", "path": "vq", "edit": "edit.png", "mask": "mask.png", "seed": 7},
        {"prompt": "an elf", "steps": 3, "seed": 8},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ("--prompts", tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    code, _, error = run("sample", tiny_checkpoint, *words)
    assert code == 0, error
    before = pixels(tmp_path / "edit.png")
    made = [pixels(tmp_path / "out" / f"{number:06d}.png") for number in range(4)]
    assert [bool((one[:, :16] == before[:, :16]).all()) for one in made] == [True, True, True, False]
    given = ("--edit", tmp_path / "edit.png", "--mask", tmp_path / "mask.png")
    _, (alone,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", *given, "--steps", 3, "--seed", 6, "--out",
                         tmp_path / "alone")  # fmt: skip
    assert np.array_equal(pixels(alone), made[1])
    assert run("replay", tmp_path / "out" / "000000.png")[0] == 0
    drawn = json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[0])["drawn"]
    assert (drawn["edit"], drawn["strength"]) == (str(tmp_path / "edit.png"), 0.7)


def test_the_folder_is_a_data_set(whole, run, tmp_path):
    source = open_source(SourceConfig(str(whole), write="diffusion"))
    messages = [source[index]["messages"] for index in range(len(source))]
    prompts = [row["prompt"] for row in ROWS for _ in range(row.get("num_images", 1))]
    assert [each[0]["content"][0]["text"].strip() for each in messages] == [prompt.strip() for prompt in prompts]
    assert messages[2][1]["content"][0]["image"].tobytes() == Image.open(whole / "000002.png").tobytes()
    code, lines, _ = run("data", "inspect", whole, "--out", tmp_path / "inspected")
    assert code == 0
    assert lines[1].split()[1] == "6"
    first = json.loads((whole / "metadata.jsonl").read_text().splitlines()[0])
    assert first["drawn"]["from"].endswith("prompts.jsonl:1")


def test_killed_and_gone_on_with_is_to_the_byte_as_if_nothing_was(whole, tiny_checkpoint, tmp_path):
    """By SIGKILL within a batch, and by two processes for the rest."""
    out, prompts = tmp_path / "out", str(whole.parent / "prompts.jsonl")
    arguments = {"checkpoint": str(tiny_checkpoint), "prompts": prompts, "out": str(out)}
    process = ProcessGroup(tmp_path / "logs", draw, 1, "single", **arguments)
    process.wait_for(out / "000000.png")
    process.kill()
    process.wait()
    assert not (out / "metadata.jsonl").exists()
    for name in ("000001.png", "000005.png"):
        (out / name).unlink(missing_ok=True)
    (out / ".000001.0123abcd.png").write_bytes(b"half")  # what a killed process was writing
    group = ProcessGroup(tmp_path / "logs", draw, 2, "ddp", **arguments)
    group.finish()
    assert bytes_in(out) == bytes_in(whole)
    assert group.output(1) == ""
    assert group.output(0).splitlines()[-1] == str(out / "metadata.jsonl")


def test_again_nothing_is_drawn_and_nothing_else_is_mixed_in(whole, run, tiny_checkpoint, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "out")
    prompts = whole.parent / "prompts.jsonl"
    monkeypatch.setattr("hybridgen.pipeline_hybridgen.HybridGenPipeline.__call__", None)
    assert run("sample", tiny_checkpoint, "--prompts", prompts, "--out", out)[0] == 0
    assert bytes_in(out) == bytes_in(whole)
    code, _, error = run("sample", tiny_checkpoint, "--prompts", prompts, "--seed", 1, "--out", out)
    assert (code, "holds pictures with options.seed 0, not 1; give the same" in error) == (2, True)
    code, _, error = run("sample", tiny_checkpoint, "--prompts", written(tmp_path, ROWS[:2]), "--out", out)
    assert (code, "holds pictures with pictures 6, not 3" in error) == (2, True)
    code, _, error = run("sample", tiny_checkpoint, "--prompts", prompts, "--out", tmp_path)
    assert (code, "did not write; choose another --out" in error) == (2, True)
    assert bytes_in(out) == bytes_in(whole)


def options(*words) -> Namespace:
    return parse(["sample", *map(str, words)])


def test_all_three_formats_say_the_same(tiny_checkpoint, tmp_path):
    """A null, and a column that other rows have, is not given; the command line fills in what rows leave open."""
    rows = [{"prompt": "an elf", "seed": 3, "temperature": None}, {"prompt": "an orc", "temperature": 0.5}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\ufeffan elf\r\n\n  an orc \n", encoding="utf-8")
    read = {}
    for suffix in ("jsonl", "parquet", "txt"):
        file = tmp_path / f"a.{suffix}"
        given = options(tiny_checkpoint, "--prompts", file, "--path", "vq", "--width", 64, "--out", tmp_path / "x")
        read[suffix] = read_prompts(file, given)
        assert [row.prompt for row in read[suffix]] == ["an elf", "an orc"]
        assert {(row.path, row.width, row.height) for row in read[suffix]} == {("vq", 64, None)}
    assert [(row.seed, row.settings) for row in read["jsonl"]] == [(3, {}), (None, {"temperature": 0.5})]
    assert [(row.seed, row.settings) for row in read["parquet"]] == [(3, {}), (None, {"temperature": 0.5})]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"prompt": "a", "stepz": 3}', "unknown key 'stepz'; a row has prompt, "),
        ('{"steps": 3}', "there is no prompt; give one"),
        ('{"prompt": " "}', "prompt is ' '; give words"),
        ('{"prompt": 3}', "prompt is 3; give a text"),
        ('["a"]', "['a'] is no object"),
        ('{"prompt": "a"', "not a JSON object"),
        ('{"prompt": "a", "steps": "3"}', "steps is '3'; it must be a whole number"),
        ('{"prompt": "a", "guidance": [1, 2]}', "guidance is [1, 2]; a row has one"),
        ('{"prompt": "a", "seed": -1}', "seed is -1; it must be a whole number"),
        ('{"prompt": "a", "path": "understanding"}', "path is 'understanding'; it must be one of 'diffusion', 'vq'"),
        (
            '{"prompt": "a", "path": "vq", "steps": 3}',
            "steps is for the diffusion path, but the pictures are drawn by vq",
        ),
        ('{"prompt": "a", "temperature": 1}', "temperature is for the vq path"),
        ('{"prompt": "a", "size": 30}', "30"),
        ('{"prompt": "a", "size": 32, "width": 32}', "size is given, and so are height or width"),
        ('{"prompt": "a", "image": "none.png"}', "there is no image"),
        ('{"prompt": "a", "read": "vq"}', "read is about the picture before the prompt"),
        ('{"prompt": "a", "mask": "prompts.jsonl"}', "mask is about the picture that is redrawn, but there is no edit"),
        ('{"prompt": "a", "strength": 2}', "strength is 2; it must be a number above 0"),
        ('{"prompt": "a", "strength": 0.5}', "strength is about the picture that is redrawn"),
        ('{"prompt": "a", "edit": 3}', "edit is 3; give a text"),
        ('{"prompt": "a", "edit": "none.png"}', "there is no image"),
        ('{"prompt": "a", "guider": "cake"}', "guider is 'cake'"),
        ('{"prompt": "\\ud83d"}', "prompt is not UTF-8 text"),
        ('{"prompt": "' + "word " * 3000 + '"}', "the model's context is 512"),
    ],
)
def test_a_row_that_means_nothing_is_named_before_anything_is_drawn(row, sentence, run, tiny_checkpoint, tmp_path):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "an elf"}\n' + row + "\n")
    code, lines, error = run("sample", tiny_checkpoint, "--prompts", file, "--out", out)
    assert (code, lines) == (2, [])
    assert f"hybridgen: {file}:2: " in error
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give --prompt, or --prompts FILE with one a row"),
        (("--prompt", "a", "--prompts", "a.txt"), "FILE with one a row, not both"),
        (("--prompts", "a.txt", "--height", 32, "--height", 64), "--height is given 2 times, but --prompts has rows"),
        (("--prompts", "a.csv"), "does not end with .txt, .jsonl, .parquet"),
        (("--prompts", "none.txt"), "file of prompts none.txt does not exist"),
        (("--prompts", "."), "is a folder, not a file"),
        (("--prompts", "blank.txt"), "holds no prompt"),
        (("--prompts", "bad.parquet"), "bad.parquet"),
        (("--prompts", "a.txt", "--path", "vq", "--steps", 3), "--steps is for the diffusion path"),
    ],
)
def test_files_and_options_that_cannot_be_are_refused(words, sentence, run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.txt", "a"), ("a.csv", "a"), ("blank.txt", "\n \n"), ("bad.parquet", "PAR1 and no more")):
        (tmp_path / name).write_text(text)
    code, lines, error = run("sample", tiny_checkpoint, *words, "--out", "out")
    assert (code, lines) == (2, [])
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not Path("out").exists()


def test_several_processes_draw_from_a_file_alone(run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = run("sample", tiny_checkpoint, "--prompt", "an elf", "--out", tmp_path / "out")
    assert (code, "several processes draw from a file; give --prompts FILE" in error) == (2, True)
