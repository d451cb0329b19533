"""Other people's harnesses: how lmms-eval and lm-eval see a checkpoint. Neither is imported unless it runs.

Each file is one adapter: the harness keeps data sets, prompts and scores, the adapter hands its requests to the
pipeline. How they are run is in docs/harnesses.md.
"""
