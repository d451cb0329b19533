"""Chat templates by name or file, in a training config and in `init`, for tokenizers that bring none."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hybridgen.bridges.assemble import AssemblyOptions, assemble
from hybridgen.bridges.chat_templates import BARE, VICUNA, check_template, load_template
from hybridgen.cli import main as cli
from hybridgen.core.messages import DEFAULT_CHAT_TEMPLATE
from hybridgen.core.names import CHAT_TEMPLATES
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.tokenization_hybridgen import ROLE_TOKENS
from hybridgen.training.config.checks import load_config
from hybridgen.training.stages import building
from hybridgen.training.stages.building import build_parts, build_processor
from tests.foreign_tokenizers import FAMILIES
from tests.processors import CHATML, assistant, image, tiny_processor, user

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
TEXTS = [{"text": f"a red circle, number {number}"} for number in range(6)]
CHATS = [{"messages": [user("is it?"), assistant("a red circle")]} for _ in range(6)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a decoder whose tokenizer has no chat template, texts, and conversations."""
    monkeypatch.chdir(tmp_path)
    tokenizer = FAMILIES["qwen"]()
    tokenizer.chat_template = None
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer))).save_pretrained("llm")
    tokenizer.save_pretrained("llm")
    for name, rows in (("texts", TEXTS), ("chats", CHATS), ("mixed", [*TEXTS, *CHATS])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(place, source: str, model: dict | None = None, **others) -> str:
    content = {
        "output_dir": "run", "stage": "model", "steps": 2, "model": {"language_model": "llm", **(model or {})},
        "data": {"sources": [{"source": source}], "per_device_batch_size": 2, "sequence_length": 400, "prefetch": 0},
    }  # fmt: skip
    (place / "run.yaml").write_text(yaml.safe_dump({**content, **others}))
    return "run.yaml"


@pytest.mark.parametrize("source", ["chats.jsonl", "mixed.jsonl"])
def test_conversations_without_a_template_are_refused_before_a_model_is_made(place, source, monkeypatch, capsys):
    monkeypatch.setattr(building, "build_model", lambda *_: pytest.fail("a model is made"))
    file = config(place, source)
    assert cli.main(["train", file]) == 2
    assert cli.main(["data", "inspect", file, "--out", "inspected"]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert f"{source}:" in line
        assert "a conversation needs a chat template, and the tokenizer of llm has none; give model.chat_temp" in line
        assert "hybridgen, bare, vicuna, janus, janus-pro" in line


def test_prompts_to_sample_without_a_template_are_refused(place, capsys):
    drawn = {"sampling": {"every": 1, "prompts": ["red"], "paths": ["diffusion"]}}
    diffusion = {"diffusion_config": {"sample_size": 16, "patch_size": 4, "in_channels": 3}}
    assert cli.main(["train", config(place, "texts.jsonl", diffusion, **drawn)]) == 2
    assert "sampling.every is 1: a prompt needs a chat template" in capsys.readouterr().err


def test_texts_need_no_template(place):
    assert cli.main(["train", config(place, "texts.jsonl")]) == 0
    processor = HybridGenProcessor.from_pretrained("run/checkpoint")
    assert processor.chat_template is None
    with pytest.raises(ValueError, match="a conversation needs one"):
        processor.document([user("a"), assistant("b")])


@pytest.mark.parametrize("name", [*CHAT_TEMPLATES, "file"])
def test_a_template_by_name_or_file_is_used_and_saved(place, name):
    if name == "file":
        name = "mine.jinja"
        (place / name).write_text(CHATML)
    file = config(place, "chats.jsonl", {"chat_template": name})
    assert cli.main(["train", file]) == 0
    processor = HybridGenProcessor.from_pretrained("run/checkpoint")
    assert processor.chat_template == load_template(name, processor.tokenizer)
    known = set(processor.tokenizer.get_vocab())
    assert (set(ROLE_TOKENS) <= known) == (name == "hybridgen")  # tokens, not spelled in characters
    inspected = build_processor(load_config(file), [])
    assert inspected.chat_template == processor.chat_template


def test_a_run_that_goes_on_from_texts_gains_a_template(place):
    assert cli.main(["train", config(place, "texts.jsonl")]) == 0
    (place / "run").rename(place / "texts")
    going_on = {"language_model": None, "from_pretrained": "texts/checkpoint"}
    file = config(place, "chats.jsonl", going_on)
    with pytest.raises(ValueError, match="the tokenizer of texts/checkpoint has none; give model.chat_template"):
        build_parts(load_config(file))
    file = config(place, "chats.jsonl", {**going_on, "chat_template": "hybridgen"})
    with pytest.raises(
        ValueError, match=r"model.chat_template: .*'hybridgen' writes <\|system\|>.* name another \(bare, vic"
    ):
        build_parts(load_config(file))
    file = config(place, "chats.jsonl", {**going_on, "chat_template": "vicuna"})
    assert build_parts(load_config(file)).pipeline.processor.chat_template == VICUNA
    assert build_processor(load_config(file), []).chat_template == VICUNA


@pytest.mark.parametrize(
    ("template", "content", "sentence"),
    [
        (
            "none.jinja",
            None,
            "model.chat_template.*'none.jinja' is no file that is there, and no name of a template; the ",
        ),
        ("chatml", None, "model.chat_template.*names are hybridgen, bare, vicuna, janus, janus-pro"),
        ("bad.jinja", b"{% if %}", "model.chat_template.*the chat template cannot be read.*line 1"),
        ("bytes.jinja", b"\xff\xfe", "model.chat_template.*is not UTF-8"),
        ("mute.jinja", b"nothing at all", "model.chat_template.*does not write '<image_placeholder>'"),
        ("llm", None, "model.chat_template.*'llm' is no file"),
    ],
)
def test_templates_that_are_none_are_refused_with_the_config(place, template, content, sentence, capsys):
    if content is not None:
        (place / template).write_bytes(content)
    assert cli.main(["train", config(place, "chats.jsonl", {"chat_template": template})]) == 2
    assert cli.main(["init", "new", "--backbone", "llm", "--paths", "diffusion", "--image-size", "16",
                     "--chat-template", template]) == 2  # fmt: skip
    trained, initialised = capsys.readouterr().err.splitlines()
    assert re.search(sentence, trained)
    assert re.search(sentence.removeprefix("model.chat_template.*"), initialised)


def test_init_needs_a_template_and_takes_one_by_name(place, capsys):
    words = ["init", "new", "--backbone", "llm", "--paths", "diffusion", "--image-size", "16"]
    assert cli.main(words) == 2
    assert "the backbone's tokenizer has no chat template, and prompts need one; say" in capsys.readouterr().err
    assert cli.main([*words, "--chat-template", "hybridgen"]) == 0
    processor = HybridGenProcessor.from_pretrained("new")
    assert processor.chat_template == DEFAULT_CHAT_TEMPLATE
    assert set(ROLE_TOKENS) <= set(processor.tokenizer.get_vocab())
    pipeline = assemble(["diffusion"], backbone="llm", options=AssemblyOptions(image_size=16, chat_template=CHATML))
    assert pipeline.processor.chat_template == CHATML
    assert len(AutoTokenizer.from_pretrained("llm")) < len(processor.tokenizer)


def test_how_pictures_are_read_is_saved_with_the_checkpoint(place):
    """Not about templates, but a setting of the processor likewise."""
    file = config(place, "texts.jsonl", {"fit": "pad"})
    assert build_processor(load_config(file), []).fit == "pad"
    assert cli.main(["train", file]) == 0
    assert HybridGenProcessor.from_pretrained("run/checkpoint").fit == "pad"
    going_on = {"language_model": None, "from_pretrained": "run/checkpoint"}
    for given, expected in ((None, "pad"), ("crop", "crop")):
        file = config(place, "texts.jsonl", {**going_on, "fit": given})
        assert build_parts(load_config(file)).pipeline.processor.fit == expected
    with pytest.raises(ValueError, match="model.fit is 'stretch'; it must be one of 'crop', 'pad'"):
        load_config(config(place, "texts.jsonl", {"fit": "stretch"}))


# --------------------------------------------------------------------------------------------------- the templates


def test_every_name_is_a_template_that_training_and_sampling_can_use():
    for name in CHAT_TEMPLATES:
        check_template(name)
        processor = tiny_processor(chat_template=load_template(name, tiny_processor().tokenizer))
        turns = [user(image(), "what is it?"), assistant("red"), user("draw it"), assistant(image())]
        document = processor.document(turns, write="vq")
        prompt = processor.prompt(turns[:1]).layout.input_ids
        assert document.layout.input_ids[: len(prompt)] == prompt


def test_vicuna_is_written_as_llava_writes_it():
    """haotian-liu/LLaVA, llava/conversation.py: conv_vicuna_v1, SeparatorStyle.TWO with " " and "</s>"."""
    processor = tiny_processor(chat_template=VICUNA)
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    turns = [user(image(), "what is it?"), assistant("red"), user("sure?"), assistant("yes")]
    names = processor.tokenizer
    expected = f"{system} USER: <image>\nwhat is it? ASSISTANT: red</s>USER: sure? ASSISTANT: yes</s>"
    expected = expected.replace("</s>", names.eos_token).replace("<image>", "<image_placeholder>")
    assert processor.apply_chat_template(turns, tokenize=False) == names.bos_token + expected
    asked = processor.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("what is it? ASSISTANT:")
    own = [{"role": "system", "content": "be brief"}, *turns]
    assert processor.apply_chat_template(own, tokenize=False).startswith(f"{names.bos_token}be brief USER: ")


def test_bare_writes_no_word_of_its_own():
    """So a caption and its picture are Transfusion's documents, and prompts for them can be given."""
    processor = tiny_processor(chat_template=BARE)
    for turns in ([user("a red circle"), assistant(image())], [user(image()), assistant("red")]):
        for loss_on in ("assistant", "all"):
            document = processor.document(turns, write="vq", loss_on=loss_on)
            plain = processor.document(turns, write="vq", loss_on=loss_on, plain=True)
            assert document.layout == plain.layout
    prompt = processor.prompt([user("a red circle")]).layout.input_ids
    tokenizer = processor.tokenizer
    assert prompt == [tokenizer.bos_token_id, *tokenizer("a red circle")["input_ids"]]
