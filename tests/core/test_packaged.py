"""A checkpoint that comes with the package is found by its name at every door, and by no other."""

import shutil

import pytest

from hybridgen import HybridGenForConditionalGeneration, HybridGenPipeline, HybridGenProcessor
from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import checkpoint_hashes
from hybridgen.cli.arguments.parser import parse
from hybridgen.cli.main import main
from hybridgen.core import recognition
from hybridgen.core.recognition import SMALL, checkpoint_path, packaged_name
from hybridgen.training.config.parts import codec_folders
from hybridgen.training.config.schema import CodecPaths
from tests.pipelines import tiny_pipeline


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A tiny checkpoint in the place of the package's own, and a working directory without a folder of its name."""
    folder = tmp_path / "site-packages" / "hybridgen" / "small"
    tiny_pipeline().save_pretrained(folder)
    monkeypatch.setitem(recognition.PACKAGED, SMALL, folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_it_opens_by_name_at_every_door(packaged):
    for opened in (HybridGenPipeline.from_pretrained(SMALL), open_pipeline(SMALL)):
        assert opened.model.config.to_dict() == HybridGenPipeline.from_pretrained(packaged).model.config.to_dict()
    assert HybridGenForConditionalGeneration.from_pretrained(SMALL).num_parameters() > 0
    assert HybridGenProcessor.from_pretrained(SMALL).tokenizer is not None
    assert codec_folders(CodecPaths(), SMALL)["vq"] == packaged / "vq_model"


def test_a_folder_of_that_name_comes_first(packaged, tmp_path):
    shutil.copytree(packaged, tmp_path / "elsewhere" / "hybridgen" / "small")
    assert checkpoint_path(SMALL) == recognition.user_path(SMALL)
    assert packaged_name(checkpoint_path(SMALL).absolute()) is None


def test_a_manifest_names_it_as_it_is_called_everywhere(packaged):
    assert checkpoint_hashes(SMALL)["checkpoint"] == SMALL
    assert checkpoint_hashes(packaged)["checkpoint"] == SMALL


def test_commands_draw_with_it_where_no_checkpoint_is_named(packaged, capsys):
    assert main(["sample", "--prompt", "a word", "--path", "diffusion", "--steps", "1"]) == 0
    drawn = capsys.readouterr().out.split()
    assert drawn
    assert drawn[0].startswith("pictures")
    assert main(["replay", drawn[0]]) == 0
    assert main(["ask", "--image", drawn[0], "--question", "what is it?", "--max-new-tokens", "1"]) == 0


def test_two_of_which_one_is_named_are_compared(packaged, tmp_path):
    other = shutil.copytree(packaged, tmp_path / "other")
    options = parse(["compare", SMALL, str(other), "--suite", "dolls"])
    assert (options.a, options.b) == (packaged, other)


def test_an_installation_without_it_asks_for_a_checkpoint(packaged, capsys):
    shutil.rmtree(packaged)
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "--prompt", "a word"])
    assert "CHECKPOINT" in capsys.readouterr().err
