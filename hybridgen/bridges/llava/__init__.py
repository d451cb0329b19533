"""LLaVA 1.5 in and out: transformers' checkpoints (llava-hf/llava-1.5-7b-hf and its kin) <-> ours.

tensor_names   transformers' names of tensors, on disk and in memory, <-> ours
configs        `LlavaConfig` <-> ours
prompts        the chat template, the tokenizer's token of images, the settings of pictures
checkpoint     a folder of either layout, described in one way
report         what a conversion would do, before it does it
conversion     `load_llava`: a folder -> a pipeline; the writers of both layouts
"""
