"""`hybridgen new`: from pictures to a config that trains as it is, its report, and every stumble in one sentence."""

import json
import re
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from hybridgen.cli import new
from hybridgen.core import recognition
from hybridgen.data import look as looking
from hybridgen.data.synthetic import dolls
from hybridgen.training.config.checks import load_config
from hybridgen.training.planning import fitting, proposal
from hybridgen.training.planning.proposal import Start, machines_of
from tests.januses import save_transformers
from tests.processors import picture

SMALLER = ("steps=4", "log_every=2", "sampling.every=2", "validation.every=2", "save_every=2", "sampling.steps=2",
           "data.per_device_batch_size=1", "schedule.warmup_steps=0", "compile=false")  # fmt: skip


def captioned(folder: Path, count: int, size: tuple[int, int] = (40, 48)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(*size, number).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(f"picture {number} of many colours")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """No step is tried: each takes a second."""
    monkeypatch.setattr(fitting, "measured_seconds", lambda config, data: 1.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return captioned(tmp_path_factory.mktemp("data") / "pictures", 40)


def config_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def test_a_folder_becomes_a_config_that_trains_as_it_is_and_a_page(run, pictures, tmp_path, monkeypatch):
    """With a step tried on this machine; trained from another folder, with what makes it short as the only edit."""
    out = tmp_path / "a run" / "mine"
    code, lines, error = run("new", out, "--data", pictures, "--gpus", 0, "--from", "none")
    assert code == 0, error
    found = "40 records, pictures of 40 to 48 pixels a side, texts of 5 to 5 words"
    assert lines[0] == f"data: {found}; 2 of them are held out to validate"
    assert re.fullmatch(r"time: about .* on this machine's CPU \([\d,]+ steps of \S+ s, measured here\)", lines[2])
    assert lines[-2:] == [f"written: {out}/config.yaml", f"train it: hybridgen train '{out}/config.yaml'"]
    assert [file.name for file in out.iterdir()] == ["config.yaml"]
    text = (out / "config.yaml").read_text()
    assert all(f"# {head}" in text for head in ("command    hybridgen train", "hardware ", "time ", "expected "))
    assert len([line for line in text.splitlines() if "#" in line]) > 25
    config = load_config(out / "config.yaml")
    held_out = {name for source in config.validation.sources for name in source.part}
    assert held_out == {0.95, 1}
    assert len(config.sampling.prompts) == 2  # those that are held out

    monkeypatch.chdir(tmp_path)
    code, lines, error = run("train", out / "config.yaml", *SMALLER)
    assert code == 0, error
    assert lines == [str(out / "run" / "checkpoint"), str(out / "run" / "report.html")]
    page = (out / "run" / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3  # the last sheet, and both in the strip
    assert page.count("<svg") >= 2
    assert f"hybridgen train &#39;{out}/config.yaml&#39; steps=8" in page
    assert "held out" in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    code, lines, error = run("train", out / "config.yaml", *SMALLER[1:], "steps=6")  # as the page says
    assert code == 0, error
    assert "going on from" in error


def test_the_same_command_again_changes_nothing_and_another_one_is_refused(run, quick, pictures, tmp_path):
    words = ("new", tmp_path / "mine", "--data", pictures, "--gpus", 0, "--from", "none")
    assert run(*words)[0] == 0
    before = (tmp_path / "mine" / "config.yaml").read_bytes()
    code, lines, _ = run(*words)
    assert (code, "is there already, made by the same command; train it: hybridgen train" in lines[0]) == (0, True)
    code, lines, error = run(*words[:-3], 2, "--memory", 24)
    assert (code, lines) == (2, [])
    assert "is there already, made by another command (hybridgen new " in error
    assert (tmp_path / "mine" / "config.yaml").read_bytes() == before


def test_every_format_that_data_reads_is_looked_at(quick, tmp_path, monkeypatch):
    """The same records in each; a pattern, and a folder without its slash."""
    monkeypatch.chdir(captioned(tmp_path, 24))
    rows = [{"image": f"{number:03}.png", "text": f"picture {number} of many colours"} for number in range(24)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = [{"image": {"bytes": Path(row["image"]).read_bytes(), "path": None}, "text": row["text"]} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(images), "rows.parquet")
    for part in (0, 1):
        with tarfile.open(f"shard-{part}.tar", "w") as tar:
            for number in range(12 * part, 12 * part + 12):
                for suffix in ("png", "txt"):
                    tar.add(f"{number:03}.{suffix}")
    for data in (str(tmp_path), "rows.jsonl", "rows.parquet", "shard-*.tar"):
        look = looking.look_at(data)
        assert (look.records, dict(look.kinds), look.side) == (24, {"draw": 24}, 40), data
        assert sorted(look.prompts) == sorted(row["text"] for row in rows), data
        assert Path(look.source).is_absolute()


def test_split_folders_validate(quick, tmp_path, run):
    captioned(tmp_path / "data" / "train", 12)
    captioned(tmp_path / "data" / "validation", 3)
    code, lines, error = run("new", tmp_path / "mine", "--data", tmp_path / "data", "--gpus", 0, "--from", "none")
    assert code == 0, error
    assert "12 records" in lines[0]
    assert "the folder validation validates" in lines[0]
    config = config_of(tmp_path / "mine")
    assert [source["split"] for source in config["data"]["sources"]] == ["train", "train"]
    assert [source["split"] for source in config["validation"]["sources"]] == ["validation", "validation"]


def test_questions_are_answered_and_nothing_is_drawn(quick, tmp_path, run):
    source = dolls.Dolls("train", "draw", 0)
    rows = []
    for number in range(24):
        source.picture(number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "what is it?", "answer": f"doll {number}"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "mine"
    code, _, error = run("new", out, "--data", tmp_path / "rows.jsonl", "--gpus", 0, "--from", "none")
    assert code == 0, error
    config = config_of(out)
    assert config["sampling"]["every"] == 0
    assert [(source["name"], source.get("write")) for source in config["data"]["sources"]] == [("answer", None)]
    assert config["model"]["diffusion_config"]["sample_size"] == 32


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_is_gone_on_with(quick, run, tiny_checkpoint, pictures, tmp_path, named, monkeypatch):
    """By the first of its paths that draws; without --from, the model that comes with the installation."""
    monkeypatch.setitem(recognition.PACKAGED, recognition.SMALL, tiny_checkpoint)
    out, start = tmp_path / "mine", ("--from", tiny_checkpoint) if named else ()
    code, lines, error = run("new", out, "--data", pictures, "--gpus", 0, *start)
    assert code == 0, error
    config = config_of(out)
    assert config["model"] == {"from_pretrained": str(tiny_checkpoint)}
    assert config["data"]["sources"][0]["write"] == "diffusion"
    assert config["data"]["sources"][1]["read"] == "understanding"
    assert lines[1].startswith(f"model: {tiny_checkpoint if named else recognition.SMALL} (")
    if named:
        code, _, error = run("train", out / "config.yaml", *SMALLER)
        assert code == 0, error


def test_a_janus_is_converted_beside_the_config(quick, run, pictures, tmp_path):
    save_transformers(tmp_path / "Janus-Pro-1B")
    out = tmp_path / "mine"
    code, lines, error = run("new", out, "--data", pictures, "--gpus", 0, "--from", tmp_path / "Janus-Pro-1B")
    assert code == 0, error
    config = config_of(out)
    assert config["model"]["from_pretrained"] == str(out / "start")
    assert (out / "start" / "model_index.json").is_file()
    assert config["data"]["sources"][0]["write"] == "vq"
    load_config(out / "config.yaml")


def test_more_gpus_and_data_are_a_larger_model_and_what_does_not_fit_is_made_smaller(
    quick, pictures, tmp_path, monkeypatch
):
    look = looking.look_at(str(pictures))
    monkeypatch.setattr(proposal, "SHAPES", [(*shape[:-1], 0) for shape in proposal.SHAPES[:3]])
    monkeypatch.setitem(proposal.TOKENS_A_STEP, "cuda", 8_192)
    look.report.sizes.clear()
    look.report.sizes[(256, 256)] = 100
    nothing = Start(None, "none")
    large = fitting.fitted(look, nothing, machines_of(8, 80), tmp_path)
    assert large.parameters > 25e6
    assert large.content["model"]["diffusion_config"] == {
        "patch_size": 16, "sample_size": 256, "prediction_type": "sample", "noise_schedule": "flow",
    }  # fmt: skip
    assert large.basis == "assuming that each GPU reaches 52 TFLOP/s"
    tight = fitting.fitted(look, nothing, machines_of(8, (large.peak - 1e6) / 1e9), tmp_path)
    assert tight.peak < large.peak
    assert (tight.parameters, tight.content["ema"]) == (large.parameters, {"decay": 0.999, "on_cpu": True})
    for each in (large, tight):  # the file says all of it
        words = new.describe(each, look, nothing, machines_of(8, 80))
        text = new.render(each.content, words, look, file="f", train="t", command="c")
        assert yaml.safe_load(text) == each.content | {"stage": "model", "keep_last": 2}
    tiny = fitting.fitted(look, nothing, machines_of(8, 2.3), tmp_path)
    assert tiny.parameters < large.parameters
    assert tiny.peak <= 2.3e9
    with pytest.raises(ValueError, match=r"the smallest run from none needs 2\.\d GB of memory, and there are 2\.0 GB"):
        fitting.fitted(look, nothing, machines_of(8, 2.001), tmp_path)


def test_weights_that_do_not_fit_stay_and_an_adapter_learns(quick, tiny_checkpoint, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(proposal, "ADAPTED", 10)
    start = Start(tiny_checkpoint, "tiny")
    content = fitting.fitted(looking.look_at(str(pictures)), start, machines_of(0, 8), tmp_path).content
    assert content["lora"]["parts"] == ["backbone", "diffusion"]
    assert "ema" not in content


def spoil(folder: Path, which) -> None:
    for number, file in enumerate(sorted(folder.glob("*.png"))):
        if which(number):
            file.write_bytes(b"\x89PNG and no more")


def empty(place: Path) -> str:
    (place / "data").mkdir()
    return str(place / "data")


def no_captions(place: Path) -> str:
    folder = captioned(place / "data", 3)
    for file in folder.glob("*.txt"):
        file.unlink()
    return str(folder)


def all_broken(place: Path) -> str:
    spoil(captioned(place / "data", 3), lambda number: True)
    return str(place / "data")


def mostly_broken(place: Path) -> str:
    spoil(captioned(place / "data", 10), lambda number: number > 2)
    return str(place / "data")


def texts(place: Path) -> str:
    (place / "texts.jsonl").write_text('{"text": "words alone"}\n' * 5)
    return str(place / "texts.jsonl")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (empty, "holds no picture"),
        (no_captions, "holds no captioned picture"),
        (all_broken, "3 of the 3 records of .* that were read are broken, the first of them"),
        (mostly_broken, "7 of the 10 records of .* that were read are broken"),
        (texts, "none of the 5 records of .* holds a picture"),
        (lambda place: str(place / "none"), "there are no data at .*none"),
        (lambda place: str(place / "none*.tar"), "there is no file .*none"),
        (lambda place: "", "is no path"),
        (lambda place: "dolls", "there are no data at dolls"),
    ],
)
def test_data_that_cannot_be_are_refused_and_nothing_is_written(data, sentence, run, tmp_path):
    code, lines, error = run("new", tmp_path / "mine", "--data", data(tmp_path), "--gpus", 0, "--from", "none")
    assert (code, lines) == (2, [])
    assert re.search(sentence, error), error
    assert len([line for line in error.splitlines() if "looking at" not in line]) == 1
    assert not (tmp_path / "mine").exists()


def test_a_few_broken_records_are_said_and_do_not_stop_the_run(quick, run, tmp_path):
    spoil(captioned(tmp_path / "data", 30), lambda number: number in (3, 7))
    code, lines, error = run("new", tmp_path / "mine", "--data", tmp_path / "data", "--gpus", 0, "--from", "none")
    assert code == 0, error
    assert "2 are broken (" in lines[0]


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ("none/at/all", "--from none/at/all does not exist"),
        ("hybridgen/small", "hybridgen/small is not in this installation"),
        ("{reads}", "has no path that draws \\(it has understanding\\)"),
        ("{data}", "has no model_index.json"),
        ("{file}", "is a file, not a folder"),
        ("{config}", "holds a llama, not a Janus"),
    ],
)
def test_starts_that_cannot_be_are_refused(
    start, sentence, quick, run, tiny_checkpoint, pictures, tmp_path, monkeypatch
):
    monkeypatch.setitem(recognition.PACKAGED, recognition.SMALL, tmp_path / "not here")
    if start == "{reads}":
        monkeypatch.setattr("hybridgen.configuration_hybridgen.HybridGenConfig.paths", ("understanding",))
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "file").write_text("")
    places = {"reads": tiny_checkpoint, "data": pictures, "file": tmp_path / "file", "config": tmp_path / "llama"}
    code, lines, error = run(
        "new", tmp_path / "mine", "--data", pictures, "--gpus", 0, "--from", start.format(**places)
    )  # fmt: skip
    assert (code, lines) == (2, [])
    assert re.search(sentence, error.splitlines()[-1]), error
    assert not (tmp_path / "mine").exists()


def test_folders_that_hold_something_else_are_refused(run, pictures, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for folder, sentence in (
        (tmp_path / "mine", "is not empty and has no config.yaml of `hybridgen new`; choose another DIR"),
        (tmp_path / "mine" / "thesis.txt", "is a file, not a folder; choose another DIR"),
        (pictures, "is in the folder of the data"),
        (pictures / "run", "is in the folder of the data"),
    ):
        code, _, error = run("new", folder, "--data", pictures, "--gpus", 0, "--from", "none")
        assert (code, sentence in error) == (2, True), error
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert not (pictures / "run").exists()


def test_what_stops_it_leaves_nothing(run, pictures, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(new, "fitted", stopped)
    save_transformers(tmp_path / "Janus-Pro-1B")
    code, lines, error = run(
        "new", tmp_path / "mine", "--data", pictures, "--gpus", 0, "--from", tmp_path / "Janus-Pro-1B"
    )
    assert (code, lines) == (130, [])
    assert "stopped; nothing was written" in error
    assert not (tmp_path / "mine").exists()


def test_names_that_need_quotes_are_quoted(quick, run, tmp_path):
    """In YAML, in a shell, and in a comment."""
    data = captioned(tmp_path / 'a "b" #c: ü', 24)
    (data / "000.txt").write_text('a "quoted": # caption\n- with {all} of it')
    out = tmp_path / "it's"
    code, lines, error = run("new", out, "--data", data, "--gpus", 0, "--from", "none")
    assert code == 0, error
    assert load_config(out / "config.yaml").data.sources[0].source == f"{data}/"
    assert Image.open(data / "000.png").size == (40, 48)


def test_times_are_said_roughly():
    said = {95: "95 seconds", 125: "2.1 minutes", 4000: "67 minutes", 9000: "2.5 hours", 500_000: "5.8 days"}
    assert {seconds: new.roughly(seconds) for seconds in said} == said
