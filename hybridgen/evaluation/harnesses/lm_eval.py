"""The model `hybridgen` of EleutherAI's lm-evaluation-harness (lm_eval 0.4): the text that a checkpoint has learnt.

    python -m hybridgen.evaluation.harnesses.lm_eval --model hybridgen --model_args pretrained=CHECKPOINT --tasks piqa

lm_eval asks no plugins, so its command has to be started by whoever brings a model: this module is that command, with
all of its arguments, after `hybridgen` is registered. In Python: `register()`, then `lm_eval.simple_evaluate`.

It is lm_eval's own model for transformers (`HFLM`) but for what is said here: where weights, tokenizer and template
come from, and that tokens which stand for pictures and codes, and rows of the vocabulary that no token has, are never
words. So a backbone scores what it scores alone, whatever was added to its vocabulary.
"""

import sys

import torch
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.sampling.text import unwritable_tokens

NAME = "hybridgen"
_OF_HFLM = (  # arguments of HFLM that mean the same here
    "truncation", "logits_cache", "max_length", "softmax_dtype", "add_bos_token", "prefix_token_id", "think_end_token",
    "enable_thinking", "chat_template_args",
)  # fmt: skip


class HybridGenLM(HFLM):
    """
    Args:
        pretrained: a checkpoint of hybridgen, or an adapter.
        device: None = the best of this machine; with several processes that of each.
        batch_size, max_batch_size: as in HFLM, `auto` too.
        options: further arguments of HFLM, of those in `_OF_HFLM`.

    Raises:
        ValueError: in one sentence, what is wrong.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = "cuda",
        batch_size: int | str = 1,
        max_batch_size: int | None = 64,
        **options,
    ):
        if unknown := sorted(set(options) - set(_OF_HFLM)):
            known = ", ".join(("pretrained", *_OF_HFLM))
            raise ValueError(f"--model_args has {unknown[0]!r}, which is not known to hybridgen; there are {known}")
        if pretrained is None:
            raise ValueError("--model_args names no checkpoint; add pretrained=FOLDER")
        batches = {"batch_size": batch_size, "max_batch_size": max_batch_size}
        super().__init__(pretrained=str(pretrained), backend="causal", device=device or "cuda", **batches, **options)
        if (accelerator := getattr(self, "accelerator", None)) is not None:  # on CPUs HFLM would leave it at one
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        rows = self._model.lm_head.out_features  # some may be no token's
        processor, vocabulary = self.pipeline.processor, self.tokenizer.get_vocab()
        frames = processor.begin_image_token, processor.end_image_token  # also of paths that the model has not
        placeholders = processor.image_token, processor.diffusion_token, processor.vq_token
        tokens = set(unwritable_tokens(self._model, processor.special_tokens).tolist())
        tokens |= {vocabulary[name] for name in (*frames, *placeholders) if name in vocabulary}
        tokens |= set(range(len(vocabulary), rows))
        self._unwritable = torch.tensor(sorted(tokens), device=self.device)

    # ------------------------------------------------------------------------- where its parts come from: HFLM's hooks

    def _get_config(self, pretrained: str, **kwargs) -> None:
        self.pipeline = open_pipeline(pretrained)
        self._config = self.pipeline.model.config

    def _create_tokenizer(self, *args, add_bos_token: bool | None = None, **kwargs) -> None:
        self.tokenizer = self.pipeline.processor.tokenizer
        if add_bos_token is not None:
            self.tokenizer.add_bos_token = add_bos_token

    def _create_model(self, *args, **kwargs) -> None:
        self._model = self.pipeline.model.to(self.device)

    # ----------------------------------------------------------------------------------------- what is no word, is none

    def _model_call(self, inps: torch.Tensor, attn_mask=None, labels=None) -> torch.Tensor:
        return super()._model_call(inps, attn_mask, labels).index_fill_(-1, self._unwritable, -torch.inf)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs) -> torch.Tensor:
        suppress = SuppressTokensLogitsProcessor(self._unwritable.tolist(), device=self.device)
        kwargs["logits_processor"] = LogitsProcessorList([suppress])
        return super()._model_generate(context, max_length, stop, **kwargs)

    # ---------------------------------------------------------------------------------------------------- chat template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        options = {} if add_generation_prompt else {"continue_final_message": True}
        return str(
            self.pipeline.processor.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt, **options,
                **self.chat_template_args,
            )
        )  # fmt: skip

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """For lm_eval's log of a run. Raises ValueError where the checkpoint has none, or not one of that name."""
        if not chat_template:
            return None
        own = self.pipeline.processor.chat_template
        named = own if isinstance(own, dict) else {} if own is None else {"default": own}
        name = chat_template if isinstance(chat_template, str) else "default"
        if name not in named:
            there_are = f"there is {', '.join(named)}" if named else "it has none: leave --apply_chat_template out"
            raise ValueError(f"the checkpoint has no chat template {name!r}; {there_are}")
        return named[name]


def register() -> None:
    """Make lm_eval know the model `hybridgen`; once is enough, more do no harm."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=f"{__spec__.name if __spec__ else __name__}:HybridGenLM")


def main() -> int:
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
