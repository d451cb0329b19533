"""Tiny random LLaVAs as transformers' own code builds and saves them, which tests share. Not a test itself."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
TEXTS = ["a red circle on a blue ground", "what colour is it?", "USER: ASSISTANT:"]
TEMPLATE = (  # as llava-hf/llava-1.5-7b-hf has it
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

VARIANTS = {  # LLaVA 1.5; several layers, another backbone, tied; SigLIP, whose tower has no token of its own
    "clip": {"text": {"model_type": "llama"}, "layer": -2, "strategy": "default"},
    "layers": {
        "text": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}, "layer": [-3, 1, -1],
        "strategy": "default",
    },
    "siglip": {"text": {"model_type": "mistral", "sliding_window": None}, "layer": -1, "strategy": "full"},
}  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with LLaVA's token of images, which begins every text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[BOS, EOS, PAD, IMAGE], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left",
        model_specific_special_tokens={"image_token": IMAGE},
    )  # fmt: skip


def tiny_llava(variant: str = "clip", seed: int = 0) -> LlavaForConditionalGeneration:
    """Random weights, large enough that layers and pictures make a difference."""
    torch.manual_seed(seed)
    chosen, tokenizer = VARIANTS[variant], tiny_tokenizer()
    kind = "siglip_vision_model" if variant == "siglip" else "clip_vision_model"
    vision = {"model_type": kind, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 2, "image_size": 24, "patch_size": 8}
    vision |= {"vision_use_head": False} if variant == "siglip" else {"projection_dim": 8}
    text = {"vocab_size": 330, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlavaConfig(
        text_config={**text, "initializer_range": 0.2, **chosen["text"]},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=9,
        vision_feature_layer=chosen["layer"],
        vision_feature_select_strategy=chosen["strategy"],
    )
    model = LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "vision_tower" in name or "projector" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    for name in ("bos", "eos", "pad"):
        setattr(model.generation_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return model


def tiny_processor(variant: str = "clip") -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    return LlavaProcessor(
        images, tiny_tokenizer(), patch_size=8, vision_feature_select_strategy=VARIANTS[variant]["strategy"],
        chat_template=TEMPLATE, num_additional_image_tokens=0 if variant == "siglip" else 1,
    )  # fmt: skip


def save_transformers(folder: Path, variant: str = "clip", dtype: torch.dtype = torch.float32, **kwargs) -> Path:
    """A folder as `llava-hf/llava-1.5-7b-hf` is one; returns it."""
    tiny_llava(variant).to(dtype).save_pretrained(folder, **kwargs)
    tiny_processor(variant).save_pretrained(folder)
    return folder
