"""Show that a hybrid writes as its backbone did: `python scripts/same_text.py BACKBONE CHECKPOINT [--gguf-file NAME]`.

For each question the logits of the whole answer are compared bit by bit; then the answer is printed once for both.
Exit code 0 if no bit differs, 1 if any does.
"""

import argparse
import sys

import torch
from transformers import GenerationConfig

import hybridgen  # noqa: F401  first: it mends torchvision beside a CPU build of torch
from hybridgen.bridges.adapters import open_pipeline
from hybridgen.bridges.pretrained_parts import open_backbone

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 7 + 5?",
    "Name a red fruit.",
]


@torch.no_grad()
def compare(backbone: str, gguf_file: str | None, checkpoint: str, new_tokens: int) -> bool:
    """Whether every logit of every answer is the same."""
    before, tokenizer = open_backbone(backbone, gguf_file)
    pipeline = open_pipeline(checkpoint)
    after, extended = pipeline.model.eval(), pipeline.processor.tokenizer
    vocabulary = before.get_input_embeddings().num_embeddings
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    same = True
    for question in QUESTIONS:
        if tokenizer.chat_template is not None:
            turns = [{"role": "user", "content": question}]
            question = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids, again = (
            each(question, return_tensors="pt", add_special_tokens=False).input_ids for each in (tokenizer, extended)
        )
        answers = [model.generate(ids, generation_config=settings) for model in (before, after)]
        logits = [model(answers[0]).logits[..., :vocabulary] for model in (before, after)]
        here = torch.equal(ids, again) and torch.equal(*answers) and torch.equal(*logits)
        difference = float((logits[0] - logits[1]).abs().max())
        written = tokenizer.decode(answers[1][0, ids.shape[1] :], skip_special_tokens=True).strip()
        print(
            f"{'same to the bit' if here else 'DIFFERENT'}, largest difference of a logit {difference:g}: {written!r}"
        )
        same = same and here
    return same


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("checkpoint")
    parser.add_argument("--gguf-file")
    parser.add_argument("--new-tokens", type=int, default=24)
    options = parser.parse_args()
    try:
        sys.exit(0 if compare(options.backbone, options.gguf_file, options.checkpoint, options.new_tokens) else 1)
    except ValueError as error:
        print(f"same_text.py: {error}", file=sys.stderr)
        sys.exit(2)
