"""Janus in and out: DeepSeek's checkpoints and transformers' <-> ours (Janus-1.3B, Janus-Pro-1B and -7B).

    tensor_names   DeepSeek's names of tensors <-> transformers'
    configs        DeepSeek's config.json <-> `JanusConfig` <-> ours
    prompts        chat templates, tokenizer and image settings of both generations
    checkpoint     a folder of any of the three layouts, described in one way
    report         what a conversion would do, before it does it
    conversion     `load_janus`: a folder -> a pipeline; `convert`: any layout -> any other

Another model's bridge is a folder beside this one with files of the same names.
"""

from hybridgen.bridges.janus.conversion import convert, load_janus

__all__ = ["convert", "load_janus"]
