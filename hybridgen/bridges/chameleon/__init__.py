"""Chameleon in and out: transformers' checkpoints (facebook/chameleon-7b and -30b, Anole) <-> ours.

tensor_names   transformers' names of tensors <-> those of our model and of its VQ tokenizer
configs        `ChameleonConfig` <-> ours; which token each code of the VQ tokenizer is
prompts        the chat template, the tokenizer's tokens, the settings of pictures
checkpoint     a folder of either layout, described in one way
report         what a conversion would do, before it does it
conversion     `load_chameleon`: a folder -> a pipeline; the writers of both layouts
"""
