"""The attention rule against transformers' masks, by its own definition, and as flex; the building of layouts."""

import itertools
import random

import pytest
import torch
from transformers import Qwen3Config
from transformers.masking_utils import create_causal_mask

from hybridgen.core.layout import (
    IGNORE,
    PADDING_DOCUMENT,
    ImageSegment,
    SpecialTokens,
    TextSegment,
    attention_mask,
    dense_mask,
    flex_mask,
    infer_block_ids,
    lay_out,
    pack,
)

TOKENS = SpecialTokens(begin_image=93, end_image=94, pad=0, understanding=90, diffusion=91, vq=92)


def random_document(rng: random.Random) -> list:
    segments = [TextSegment([rng.randrange(1, 80) for _ in range(rng.randint(1, 5))], loss=rng.random() < 0.5)]
    for _ in range(rng.randint(0, 3)):
        path = rng.choice(["understanding", "diffusion", "vq"])
        write = path != "understanding" and rng.random() < 0.5
        clean_copy = write and path == "diffusion" and rng.random() < 0.5
        bidirectional = path == "diffusion" or (path == "understanding" and rng.random() < 0.5)
        segments.append(ImageSegment(path, rng.randint(1, 6), bidirectional, write, clean_copy))
        segments.append(TextSegment([rng.randrange(1, 80) for _ in range(rng.randint(1, 4))]))
    return segments


def random_rows(seed: int, rows: int = 3, length: int = 96) -> dict[str, torch.Tensor]:
    rng = random.Random(seed)
    batch = []
    for _ in range(rows):
        documents, used = [], 0
        while used + len(document := lay_out(random_document(rng), TOKENS)) <= length - 4:
            documents.append(document)
            used += len(document)
        batch.append(pack(documents, length, TOKENS.pad).tensors())
    return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}


def test_the_picture_in_the_docstring():
    document = torch.zeros(1, 6, dtype=torch.long)
    blocks = torch.tensor([[0, 1, 2, 2, 2, 3]])
    drawn = """x.....
               xx....
               xxxxx.
               xxxxx.
               xxxxx.
               xxxxxx"""
    expected = torch.tensor([[c == "x" for c in line.strip()] for line in drawn.splitlines()])
    assert torch.equal(dense_mask(document, blocks)[0, 0], expected)


@pytest.mark.parametrize("seed", range(5))
def test_dense_mask_equals_the_rule_written_out(seed):
    rows = random_rows(seed)
    mask = dense_mask(rows["document_ids"], rows["block_ids"], rows["noised_mask"])
    document, block, noised_mask = (rows[n].tolist() for n in ("document_ids", "block_ids", "noised_mask"))
    for b, q, k in itertools.product(range(3), range(96), range(96)):
        same = document[b][q] == document[b][k]
        allowed = same and block[b][k] <= block[b][q] and (not noised_mask[b][k] or block[b][k] == block[b][q])
        assert mask[b, 0, q, k] == allowed, (b, q, k)


@pytest.mark.parametrize("seed", range(5))
def test_equals_create_causal_mask_of_transformers(seed):
    """One document, no twins: transformers' own causal-plus-blocks mask is the oracle."""
    rng = random.Random(seed)
    segments = [s for s in random_document(rng) if not getattr(s, "clean_copy", False)]
    row = lay_out(segments, TOKENS).tensors()
    blocks = row["block_ids"][None]
    counts = torch.bincount(blocks[0])
    # transformers numbers image blocks from 0 and marks text -1
    sequence = torch.where(counts[blocks] > 1, blocks, -1)
    config = Qwen3Config(num_hidden_layers=1)
    config._attn_implementation = "sdpa"
    length = blocks.shape[1]
    oracle = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, length, 8),
        attention_mask=torch.ones(1, length, dtype=torch.long),
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=sequence,
    )
    ours = dense_mask(torch.zeros_like(blocks), blocks)
    oracle = torch.ones(length, length).tril().bool()[None, None] if oracle is None else oracle
    assert torch.equal(ours, oracle)


@pytest.mark.parametrize("queries", [None, 7])
def test_flex_mask_equals_dense_mask(queries):
    rows = random_rows(11, rows=2, length=128)
    arguments = (rows["document_ids"], rows["block_ids"], rows["noised_mask"], queries)
    dense = dense_mask(*arguments)
    flex = flex_mask(*arguments)
    q, k = torch.arange(dense.shape[2])[:, None], torch.arange(dense.shape[3])[None]
    for b in range(2):
        assert torch.equal(flex.mask_mod(torch.tensor(b), torch.tensor(0), q, k), dense[b, 0])


def test_flex_attention_equals_dense_forward():
    from torch.nn.attention.flex_attention import flex_attention

    rows = random_rows(3, rows=2, length=128)
    layout = (rows["document_ids"], rows["block_ids"], rows["noised_mask"])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 128, 16, generator=generator) for _ in range(3))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(*layout))
    flex = flex_attention(q, k, v, block_mask=flex_mask(*layout))
    assert (dense - flex).abs().max() < 2e-6  # measured 6e-7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has no backward on CPU")
def test_flex_attention_equals_dense_backward():
    from torch.nn.attention.flex_attention import flex_attention

    rows = {name: value.cuda() for name, value in random_rows(3, rows=2, length=128).items()}
    layout = (rows["document_ids"], rows["block_ids"], rows["noised_mask"])
    gradients = []
    for attend in ("dense", "flex"):
        q, k, v = (torch.randn(2, 2, 128, 16, generator=torch.Generator().manual_seed(i)).cuda() for i in range(3))
        for tensor in (q, k, v):
            tensor.requires_grad_()
        if attend == "dense":
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(*layout))
        else:
            out = torch.compile(flex_attention)(q, k, v, block_mask=flex_mask(*layout))
        out.square().sum().backward()
        gradients.append([tensor.grad for tensor in (q, k, v)])
    for dense, flex in zip(*gradients, strict=True):
        torch.testing.assert_close(dense, flex, atol=2e-2, rtol=2e-2)  # tf32 inside flex


def test_eager_mask_adds_what_sdpa_masks():
    rows = random_rows(1)
    arguments = (rows["document_ids"], rows["block_ids"], rows["noised_mask"])
    additive = attention_mask("eager", torch.float32, *arguments)
    assert torch.equal(additive == 0, dense_mask(*arguments))
    assert additive.min() == torch.finfo(torch.float32).min


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_kernels_that_cannot_express_the_rule_are_refused(name):
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=f"{name}.*sdpa"):
        attention_mask(name, torch.float32, ids, ids)


def test_inferred_blocks_equal_laid_out_blocks():
    segments = [TextSegment([1, 2]), ImageSegment("diffusion", 4, True), ImageSegment("diffusion", 3, True)]
    segments += [TextSegment([3]), ImageSegment("vq", 3, False), ImageSegment("understanding", 2, False)]
    row = lay_out(segments, TOKENS).tensors()
    inferred = infer_block_ids(row["input_ids"][None], (91,))
    assert torch.equal(inferred[0], row["block_ids"])


def test_twin_takes_the_positions_of_what_it_replaces():
    row = lay_out(
        [TextSegment([5, 6]), ImageSegment("diffusion", 3, True, write=True, clean_copy=True), TextSegment([7])], TOKENS
    )
    #        5  6 BOI noised  clean  EOI 7
    assert row.position_ids == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert row.noised_mask == [False] * 3 + [True] * 3 + [False] * 5
    mask = dense_mask(*(row.tensors()[n][None] for n in ("document_ids", "block_ids", "noised_mask")))[0, 0]
    assert mask[3:6, 3:6].all()  # the noised tokens see each other
    assert not mask[6:, 3:6].any()  # and nothing after them does
    assert mask[9:, 6:9].all()  # what follows reads the clean copy


def test_labels_stand_where_losses_are_promised():
    segments = [TextSegment([5, 6], loss=False), ImageSegment("vq", 2, False, write=True), TextSegment([7, 8])]
    row = lay_out(segments, TOKENS)
    assert row.labels == [IGNORE, IGNORE, 93, IGNORE, IGNORE, IGNORE, 7, 8]  # to draw is a decision: BOI is taught
    assert row.code_labels == [IGNORE] * 3 + [0, 0] + [IGNORE] * 3
    read = lay_out([TextSegment([5]), ImageSegment("vq", 2, False)], TOKENS)
    assert set(read.labels[1:]) == {IGNORE}
    assert set(read.code_labels) == {IGNORE}


def test_no_target_crosses_a_boundary():
    rows = random_rows(7)
    starts = torch.ones_like(rows["document_ids"], dtype=torch.bool)
    starts[:, 1:] = rows["document_ids"][:, 1:] != rows["document_ids"][:, :-1]
    assert (rows["labels"][starts] == IGNORE).all()
    assert (rows["code_labels"][starts] == IGNORE).all()
    assert (rows["labels"][rows["document_ids"] == PADDING_DOCUMENT] == IGNORE).all()


def test_positions_step_by_one_or_restart():
    rows = random_rows(8)
    for row in range(3):
        position, noised_mask = rows["position_ids"][row].tolist(), rows["noised_mask"][row].tolist()
        document = rows["document_ids"][row].tolist()
        for i in range(1, len(position)):
            if document[i] != document[i - 1]:
                assert position[i] == 0
            elif noised_mask[i - 1] and not noised_mask[i]:
                assert position[i] <= position[i - 1]  # the clean_copy begins
            else:
                assert position[i] == position[i - 1] + 1


def test_pack_refuses_what_does_not_fit():
    document = lay_out([TextSegment(list(range(1, 11)))], TOKENS)
    with pytest.raises(ValueError, match="2 documents of 20 tokens do not fit a row of 19"):
        pack([document, document], 19, 0)


def test_absent_path_is_refused():
    tokens = SpecialTokens(begin_image=93, end_image=94, pad=0, vq=92)
    with pytest.raises(ValueError, match="no path 'diffusion' here; this model has: vq"):
        lay_out([ImageSegment("diffusion", 4, True)], tokens)
