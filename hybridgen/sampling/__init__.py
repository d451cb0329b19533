"""Sampling: functions over (model, prefix, schedule); some extend the prefix.

A prompt's keys and values are computed once (`prefix`); an image is then denoised (`denoise`) or written code by code
(`codes`) against them, conditional and unconditional rows in one batch (`guidance`), each image with a random stream
of its own (`seeds`). A finished image is committed clean, so that the tokens after it read it as in training.
"""
