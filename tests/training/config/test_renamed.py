"""Old names of config keys: refused with the new one by every way in, translated in the states of older runs."""

import copy

import pytest
import yaml

from hybridgen.cli.data import source_config
from hybridgen.training import load_config
from hybridgen.training.config import strict
from hybridgen.training.config.renamed import RENAMED, new_name, with_new_names
from tests.models import MODEL_CONTENT

CONTENT = {
    "output_dir": "run",
    "steps": 10,
    "data": {"sequence_length": 64, "sources": [{"source": "dolls", "task": "draw", "write": "diffusion"}]},
    "validation": {"sources": [{"source": "dolls", "task": "answer", "split": "held_out"}]},
    "model": {key: value for key, value in MODEL_CONTENT.items() if key != "vq_config"},
}
KEYS = {  # old key -> (a value as YAML, the new key)
    "data.rows": ("2", "data.per_device_batch_size"),
    "data.row_length": ("64", "data.sequence_length"),
    "data.workers": ("1", "data.loader_threads"),
    "data.divide": ("true", "data.shard_by_rank"),
    "data.sources.0.twin": ("true", "data.sources.0.clean_copy"),
    "data.sources.0.chances": ("{dwarf: 2}", "data.sources.0.oversampling"),
    "validation.sources.0.twin": ("true", "validation.sources.0.clean_copy"),
    "validation.sources.0.chances": ("{dwarf: 2}", "validation.sources.0.oversampling"),
    "model.diffusion_config.own_layers": ("true", "model.diffusion_config.modality_experts"),
}


def test_every_renamed_key_is_tried_below():
    assert {new_name(key) for key in KEYS} == {new for _, new in KEYS.values()}
    assert {key.rpartition(".")[2] for key in KEYS} == {key.rpartition(".")[2] for key in RENAMED}


@pytest.fixture
def write(tmp_path):
    def written(name: str, content: dict):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return path

    return written


def with_key(key: str, value: str) -> dict:
    content = copy.deepcopy(CONTENT)
    strict.override(content, f"{key}={value}")
    return content


def test_the_config_below_is_sound_and_takes_the_new_keys(write):
    path = write("config.yaml", CONTENT)
    for value, new in KEYS.values():
        load_config(path, [f"{new}={value}"])


@pytest.mark.parametrize("key", KEYS)
def test_refused_with_the_new_name_by_every_way_in(write, key):
    value, new = KEYS[key]
    shown = strict.parse(value, key)
    sentence = f"{key} is called {new} now (value {shown!r}); rename it"
    whole, old = write("whole.yaml", CONTENT), write("old.yaml", with_key(key, value))
    above = write("above.yaml", {"base": "old.yaml", "steps": 5})
    section, _, _ = key.partition(".")
    nested = write("nested.yaml", {"base": "whole.yaml", section: with_key(key, value)[section]})
    for path, words in ((old, []), (whole, [f"{key}={value}"]), (above, []), (nested, []), (old, [f"{new}={value}"])):
        with pytest.raises(ValueError) as caught:
            load_config(path, words)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(("word", "new"), [("twin=true", "clean_copy"), ("chances={dwarf: 2}", "oversampling")])
def test_refused_where_a_command_names_one_source(word, new):
    old, _, value = word.partition("=")
    with pytest.raises(ValueError) as caught:
        source_config("dolls", ["task=draw", word])
    assert str(caught.value) == f"{old} is called {new} now (value {strict.parse(value, old)!r}); rename it"


def test_only_whole_keys_count():
    assert [new_name(key) for key in ("rows", "data.sources.0.rows", "model.text_config.twin", "data.rowss")] == [
        None
    ] * 4


def test_contents_are_translated_whatever_their_depth():
    old, new = copy.deepcopy(CONTENT), copy.deepcopy(CONTENT)
    for key, (value, now) in KEYS.items():
        strict.override(old, f"{key}={value}")
        strict.override(new, f"{now}={value}")
    old["data"].pop("sequence_length")
    old["data"]["sources"][0]["format"], new["data"]["sources"][0]["format"] = "world", "synthetic"
    assert with_new_names(old) == new
    assert with_new_names(new) == new
