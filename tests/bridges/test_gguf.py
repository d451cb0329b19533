"""GGUF backbones: a decoder out of llama.cpp's format is the one that was put in, and grafts like any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from hybridgen.cli import main as cli
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.bridges.test_assemble import save_backbone, text_tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is an optional extra")

PARTS = {  # transformers' names of a layer's parts -> llama.cpp's
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def ggufs_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{PARTS['.'.join(parts[2:-1])]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]] + ".weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries and keys as llama.cpp wants them: what rotates together stands together."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(file: Path, model: LlamaForCausalLM) -> None:
    config, tokenizer = model.config, text_tokenizer()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        part = name.split(".")[-2]
        weight = interleaved(weight, heads[part]) if part in heads else weight
        writer.add_tensor(ggufs_name(name), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nothing but a GGUF file, as llama.cpp's users have it."""
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", save_backbone(tmp_path / "llama"))
    return tmp_path / "gguf"


def test_a_gguf_backbone_writes_as_the_model_it_was_made_of(folder, tmp_path, capsys):
    given = ["--backbone", folder, "--gguf-file", "tiny.gguf", "--paths", "diffusion", "--image-size", 16]
    assert cli.main([str(argument) for argument in ("init", tmp_path / "start", *given)]) == 0, capsys.readouterr().err
    pipeline = load_pipeline(tmp_path / "start")
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()
    tokenizer, rows = text_tokenizer(), reference.config.vocab_size
    ids = tokenizer("a red circle on a blue square", return_tensors="pt")["input_ids"]
    assert pipeline.processor.tokenizer("a red circle on a blue square")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        logits = pipeline.model(ids).logits[..., :rows]
        torch.testing.assert_close(logits, reference(ids).logits, rtol=0, atol=1e-5)  # measured 0: float32 inside
    assert pipeline.model.config.text_config.num_key_value_heads == 2
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle", num_inference_steps=1).images[0].size == (16, 16)


def test_gguf_files_that_cannot_be_read(folder, tmp_path, capsys):
    def said(name: str) -> str:
        given = ["--backbone", folder, "--gguf-file", name, "--paths", "diffusion", "--image-size", 16]
        assert cli.main([str(argument) for argument in ("init", tmp_path / "start", *given)]) == 2
        assert not (tmp_path / "start").exists()
        return capsys.readouterr().err.splitlines()[-1]

    assert "has no file other.gguf" in said("other.gguf")
    cut = shutil.copy(folder / "tiny.gguf", folder / "cut.gguf")
    Path(cut).write_bytes(Path(cut).read_bytes()[:2000])
    assert "gguf cannot be loaded" in said("cut.gguf")
    (folder / "not.gguf").write_text("nothing of the kind")
    assert "not.gguf is no GGUF file" in said("not.gguf")
