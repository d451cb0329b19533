"""The attention rule against transformers' masks, by what each token should see, and as flex; building layouts."""

import itertools
import random

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen3Config
from transformers.masking_utils import create_causal_mask

from hybridgen.core.layout import (
    IGNORE,
    PADDING_DOCUMENT,
    PAIRS_AT_ONCE,
    ImageSegment,
    SpecialTokens,
    TextSegment,
    Window,
    additive_mask,
    attend,
    attention_mask,
    dense_mask,
    find_reach,
    flex_mask,
    infer_block_ids,
    lay_out,
    number_noised_images,
    pack,
)
from hybridgen.training.distributed.speed import compiler_found
from tests.live_bytes import LiveBytes

TOKENS = SpecialTokens(begin_image=93, end_image=94, pad=0, understanding=90, diffusion=91, vq=92)


def random_document(rng: random.Random, longest_image: int = 6, longest_text: int = 5) -> list:
    length = rng.randint(1, longest_text)
    segments = [TextSegment([rng.randrange(1, 80) for _ in range(length)], loss=rng.random() < 0.5)]
    for _ in range(rng.randint(0, 3)):
        path = rng.choice(["understanding", "diffusion", "vq"])
        write = path != "understanding" and rng.random() < 0.5
        clean_copy = write and path == "diffusion" and rng.random() < 0.5
        bidirectional = path != "vq" and rng.random() < 0.5
        segments.append(ImageSegment(path, rng.randint(1, longest_image), bidirectional, write, clean_copy))
        segments.append(TextSegment([rng.randrange(1, 80) for _ in range(rng.randint(1, 4))]))
    return segments


def random_rows(
    seed: int, rows: int = 3, length: int = 96, longest_image: int = 6, longest_text: int = 5
) -> dict[str, torch.Tensor]:
    rng = random.Random(seed)
    batch = []
    for _ in range(rows):
        documents, used = [], 0
        while used + len(document := lay_out(random_document(rng, longest_image, longest_text), TOKENS)) <= length - 4:
            documents.append(document)
            used += len(document)
        batch.append(pack(documents, length, TOKENS.pad).tensors())
    return {name: torch.stack([row[name] for row in batch]) for name in batch[0]}


def vectors_of(rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What the attention rule takes."""
    return rows["document_ids"], rows["block_ids"], rows["noised_mask"]


def visible(segments: list) -> torch.Tensor:
    """(N, N) what each token of a document should see, by its meaning and without blocks.

    All that stands before its own segment, but no noised image that has a clean copy; of its own segment all tokens of
    a bidirectional image, and otherwise those up to itself.
    """
    parts = []  # of each: tokens, whether they see each other, whether they are hidden from what follows
    for segment in segments:
        if isinstance(segment, TextSegment):
            parts.append((len(segment.ids), False, False))
            continue
        image = [(segment.length, segment.bidirectional, segment.clean_copy)]
        image += [(segment.length, segment.bidirectional, False)] if segment.clean_copy else []
        parts += [(1, False, False), *image, (1, False, False)]
    starts = list(itertools.accumulate((count for count, _, _ in parts), initial=0))
    seen = torch.zeros(starts[-1], starts[-1], dtype=torch.bool)
    for (start, end), (count, mutual, hidden) in zip(itertools.pairwise(starts), parts, strict=True):
        if not hidden:
            seen[end:, start:end] = True
        everything = torch.ones(count, count, dtype=torch.bool)
        seen[start:end, start:end] = everything if mutual else everything.tril()
    return seen


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


@pytest.mark.parametrize("seed", range(20))
def test_every_token_sees_what_it_should(seed):
    """Documents with images of every path, causal and bidirectional, with and without a clean copy, and packed."""
    rng = random.Random(seed)
    documents = [random_document(rng) for _ in range(3)]
    layouts = [lay_out(segments, TOKENS) for segments in documents]
    expected = torch.block_diag(*[visible(segments) for segments in documents]).bool()
    row = pack(layouts, len(expected) + 5, TOKENS.pad).tensors()
    mask = dense_mask(*(vector[None] for vector in vectors_of(row)))[0, 0]
    assert torch.equal(mask[: len(expected), : len(expected)], expected)
    assert not mask[len(expected) :, : len(expected)].any()  # padding is a document of its own
    assert not mask[: len(expected), len(expected) :].any()


@pytest.mark.parametrize("seed", range(5))
def test_dense_mask_equals_the_rule_written_out(seed):
    rows = random_rows(seed)
    mask = dense_mask(rows["document_ids"], rows["block_ids"], rows["noised_mask"])
    document, block, noised_mask = (rows[n].tolist() for n in ("document_ids", "block_ids", "noised_mask"))
    for b, q, k in itertools.product(range(3), range(96), range(96)):
        same = document[b][q] == document[b][k]
        same_image = noised_mask[b][q] and all(noised_mask[b][min(q, k) : max(q, k) + 1])
        allowed = same and block[b][k] <= block[b][q] and (not noised_mask[b][k] or same_image)
        assert mask[b, 0, q, k] == allowed, (b, q, k)


@pytest.mark.parametrize("seed", range(5))
def test_equals_create_causal_mask_of_transformers(seed):
    """One document, no clean copies: transformers' own causal-plus-blocks mask is the oracle."""
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


LENGTHS = [300, 384, 515]  # several blocks of 128 tokens, the last one of 44, of 128 and of 3
BLOCK = 128


def rows_of_several_blocks(length: int) -> dict[str, torch.Tensor]:
    """A row of many documents, and one with a document of three blocks: of both, blocks of every kind."""
    batch = random_rows(length, rows=1, length=length, longest_image=40, longest_text=60)
    image = ImageSegment("diffusion", 100, True, write=True)  # across the end of a block
    noised = ImageSegment("diffusion", 6, True, write=True, clean_copy=True)
    causal = ImageSegment("diffusion", 5, False, write=True, clean_copy=True)
    segments = [TextSegment([5] * 70), image, TextSegment([6] * 90), noised, causal, TextSegment([7] * 3)]  # 291 tokens
    long = pack([lay_out(segments, TOKENS)], length, TOKENS.pad).tensors()
    return {name: torch.cat([values, long[name][None]]) for name, values in batch.items()}


def read_out(mask: BlockMask) -> tuple[torch.Tensor, set[str]]:
    """(B, Q, K) what attention computes with this table, and the kinds of blocks in it: a full block is never masked,
    a partial one is by `mask_mod`, and what is in neither list is never computed."""
    rows, _, queries, keys = mask.shape
    allowed, kinds = torch.zeros(rows, queries, keys, dtype=torch.bool), set()
    tables = {"full": (mask.full_kv_num_blocks, mask.full_kv_indices), "partial": (mask.kv_num_blocks, mask.kv_indices)}
    blocks = mask.kv_num_blocks.shape[2], mask.kv_indices.shape[3]
    for b, q in itertools.product(range(rows), range(blocks[0])):
        listed = 0
        for kind, (counts, indices) in tables.items():
            for k in indices[b, 0, q, : counts[b, 0, q]].tolist():
                kinds.add(kind)
                listed += 1
                at_q = torch.arange(q * BLOCK, min((q + 1) * BLOCK, queries))[:, None]
                at_k = torch.arange(k * BLOCK, min((k + 1) * BLOCK, keys))[None]
                block = mask.mask_mod(torch.tensor(b), torch.tensor(0), at_q, at_k) if kind == "partial" else True
                allowed[b, at_q, at_k] = block
        kinds |= {"empty"} if listed < blocks[1] else set()
    return allowed, kinds


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("queries", [None, 7, 130])
def test_the_block_table_is_the_dense_mask(length, queries):
    """The table is read out block by block, since attention on a GPU goes by it and not by the rule alone."""
    arguments = (*vectors_of(rows_of_several_blocks(length)), queries)
    allowed, kinds = read_out(flex_mask(*arguments))
    assert torch.equal(allowed, dense_mask(*arguments)[:, 0])
    assert queries or kinds == {"full", "partial", "empty"}


def tables_of(mask: BlockMask) -> list[torch.Tensor]:
    """(B, Q / 128, K / 128) which tiles are computed with the rule, and which without."""
    tables = []
    for counts, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        is_listed = torch.arange(indices.shape[-1]) < counts[..., None]
        tables.append(torch.zeros_like(is_listed).scatter(-1, indices.long(), is_listed)[:, 0])
    return tables


def torch_table(mask: BlockMask, rows: int) -> BlockMask:
    """The table that torch makes of the same rule, by asking it for every pair of tokens."""
    return create_block_mask(mask.mask_mod, rows, None, *mask.seq_lengths, device="cpu")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("window", [None, Window(200), Window(150, chunked=True)])
def test_the_block_table_of_packed_rows_is_that_of_torch(seed, window):
    """Without a window tile for tile; with one, at most 3 tiles more of a row of tiles are computed."""
    rng = random.Random(seed)
    length = rng.choice([384, 515, 1000, 1411])
    longest = {"longest_image": rng.choice([6, 40, 300]), "longest_text": rng.choice([5, 60, 200])}
    vectors = vectors_of(random_rows(seed, 2, length, **longest))
    reach = None if window is None else find_reach(window, vectors[0], noised_mask=vectors[2])
    for queries in (None, 7, 200):
        mask = flex_mask(*vectors, queries, reach)
        (partial, full), (partial_of_torch, full_of_torch) = tables_of(mask), tables_of(torch_table(mask, 2))
        assert torch.equal(full, full_of_torch)
        assert not (partial_of_torch & ~partial).any()
        assert (partial & ~partial_of_torch).sum(-1).max() <= (0 if window is None else 3)


@pytest.mark.parametrize("seed", range(24))
def test_the_block_table_is_never_wrong(seed):
    """Vectors in any order, in which no packed row is: each tile that torch computes is, and none is full but torch's.
    Left-padded rows and noised images across tiles are among them."""
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(130, 700, (), generator=generator))
    document = torch.randint(-1, 3, (2, length), generator=generator)
    block = torch.randint(0, 9, (2, length), generator=generator)
    noised = torch.rand(2, length, generator=generator) < (0.02, 0.5, 0.98, 1.0)[seed % 4]
    document = document.sort(dim=1).values if seed % 3 == 0 else document
    document = torch.zeros_like(document) if seed % 5 == 0 else document
    block = block.sort(dim=1).values if seed % 2 == 0 else block
    reach = None if seed % 7 else find_reach(Window(100), document, noised_mask=noised)
    mask = flex_mask(document, block, noised, None, reach)
    (partial, full), (partial_of_torch, full_of_torch) = tables_of(mask), tables_of(torch_table(mask, 2))
    assert not (partial_of_torch & ~partial).any()
    assert torch.equal(full, full_of_torch)


def long_row(length: int = 32_768) -> tuple[torch.Tensor, ...]:
    """Vectors (1, length) of documents of 300 tokens, and one of 8,000 with images of 1,024, noised and clean."""
    rng = random.Random(0)
    image = ImageSegment("diffusion", 1024, True, write=True, clean_copy=True)
    story = [[TextSegment([5] * rng.randint(100, 700)), image] for _ in range(3)]
    documents = [lay_out(sum(story, []), TOKENS)]
    while sum(map(len, documents)) < length - 500:
        documents.append(lay_out([TextSegment([6] * rng.randint(200, 400))], TOKENS))
    row = pack(documents, length, TOKENS.pad).tensors()
    return tuple(vector[None] for vector in vectors_of(row))


def test_flex_is_dense_at_32k_by_blocks():
    """Of all rows of tiles: what the table computes is what the rule allows, in a table of 6 % of all tiles."""
    vectors = long_row()
    mask = flex_mask(*vectors)
    partial, full = (table[0].repeat_interleave(BLOCK, 1) for table in tables_of(mask))  # tiles, keys
    document, block, noised = *vectors[:2], number_noised_images(vectors[2], vectors[0])
    keys = torch.arange(document.shape[1])[None]
    for tile in range(len(partial)):
        at = torch.arange(tile * BLOCK, (tile + 1) * BLOCK)[:, None]
        allowed = attend(
            document[0][at], document, block[0][at], block, noised[0][at], noised
        )  # 128, keys: the rule, and nothing else
        listed = partial[tile].nonzero()[:, 0]
        computed = full[tile].expand(BLOCK, -1).clone()
        computed[:, listed] = mask.mask_mod(torch.tensor(0), torch.tensor(0), at, keys[:, listed])
        assert torch.equal(computed, allowed), tile
    assert (partial | full).float().mean() < 0.06


@pytest.mark.parametrize("length", [4096, 8192, 32_768])
def test_the_bytes_of_a_mask(length):
    """At the peak of its making, counted on torch's device without memory (`LiveBytes`). In MiB, as tables and numbers
    in bf16; `create_block_mask` and SDPA's own conversion took 7.5 and 3 bytes a pair:

         4 k    .1      48
         8 k    .2     144
        32 k   2.1   2,064
    """
    vectors = [torch.zeros(1, length, dtype=kind, device="meta") for kind in (torch.long, torch.long, torch.bool)]
    peaks = {}
    for implementation in ("flex_attention", "sdpa"):
        with LiveBytes() as counted:
            mask = attention_mask(implementation, torch.bfloat16, *vectors)
        peaks[implementation] = counted.peak
        del mask
        assert counted.now == 0
    pairs = length * length
    assert peaks["flex_attention"] <= 80 * length + 48 * pairs / BLOCK**2
    assert 2 * pairs <= peaks["sdpa"] <= 2 * pairs + 5 * PAIRS_AT_ONCE
    if length == 32_768:
        assert peaks["flex_attention"] < 3e6


def queries_keys_values(length: int, device: str = "cpu") -> list[torch.Tensor]:
    return [torch.randn(2, 2, length, 16, generator=torch.Generator().manual_seed(i)).to(device) for i in range(3)]


@pytest.mark.parametrize("length", LENGTHS)
def test_flex_attention_equals_dense_forward(length):
    vectors = vectors_of(rows_of_several_blocks(length))
    inputs = queries_keys_values(length)
    dense = scaled_dot_product_attention(*inputs, attn_mask=dense_mask(*vectors))
    flex = flex_attention(*inputs, block_mask=flex_mask(*vectors))
    assert (dense - flex).abs().max() < 4e-6  # measured 9e-7


@pytest.mark.skipif(not compiler_found(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_flex_attention_goes_by_the_block_table():
    """Without the compiler, flex_attention computes every block and asks the rule alone. At 32 k against dense
    attention of some blocks of queries."""
    compiled = torch.compile(flex_attention)
    for length in LENGTHS:
        vectors = vectors_of(rows_of_several_blocks(length))
        inputs = queries_keys_values(length)
        dense = scaled_dot_product_attention(*inputs, attn_mask=dense_mask(*vectors))
        with torch.no_grad():
            flex = compiled(*inputs, block_mask=flex_mask(*vectors))
        assert (dense - flex).abs().max() < 4e-6, length
    vectors = [vector.expand(2, -1) for vector in long_row()]
    inputs = queries_keys_values(32_768)
    with torch.no_grad():
        flex = compiled(*inputs, block_mask=flex_mask(*vectors))
    for tile in (0, 7, 20, 46, 100, 255):
        last = min((tile + 1) * BLOCK + 1024, 32_768)  # an image's tokens see what follows them
        some = slice(tile * BLOCK, (tile + 1) * BLOCK)
        dense = dense_mask(*(vector[:, :last] for vector in vectors), last - some.start)[:, :, :BLOCK]
        keys, values = (tensor[:, :, :last] for tensor in inputs[1:])
        expected = scaled_dot_product_attention(inputs[0][:, :, some], keys, values, attn_mask=dense)
        assert (expected - flex[:, :, some]).abs().max() < 4e-6, tile


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has no backward on CPU")
@pytest.mark.parametrize("length", LENGTHS)
def test_flex_attention_equals_dense_backward(length):
    vectors = [vector.cuda() for vector in vectors_of(rows_of_several_blocks(length))]
    gradients = []
    for implementation in ("dense", "flex"):
        inputs = [tensor.requires_grad_() for tensor in queries_keys_values(length, "cuda")]
        if implementation == "dense":
            out = scaled_dot_product_attention(*inputs, attn_mask=dense_mask(*vectors))
        else:
            out = torch.compile(flex_attention)(*inputs, block_mask=flex_mask(*vectors))
        out.square().sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for dense, flex in zip(*gradients, strict=True):
        torch.testing.assert_close(dense, flex, atol=2e-2, rtol=2e-2)  # tf32 inside flex


@pytest.mark.parametrize("at_once", [1, 1000, PAIRS_AT_ONCE])
@pytest.mark.parametrize("queries", [None, 5])
def test_the_additive_mask_is_the_dense_one(monkeypatch, at_once, queries):
    """Made at once, or of a few queries at a time; with the empty slots of a static cache, and with a window."""
    monkeypatch.setattr("hybridgen.core.layout.PAIRS_AT_ONCE", at_once)
    vectors = vectors_of(random_rows(1))
    for reach in (None, find_reach(Window(7), vectors[0], noised_mask=vectors[2])):
        dense = dense_mask(*vectors, queries, reach)
        additive = additive_mask(torch.bfloat16, *vectors, queries, 3, reach)
        assert torch.equal(additive[..., :-3] == 0, dense)
        assert set(additive.unique().tolist()) == {0.0, torch.finfo(torch.bfloat16).min}
        assert (additive[..., -3:] < 0).all()


def test_sdpa_and_eager_add_one_mask_in_the_dtype_of_the_scores():
    vectors = vectors_of(random_rows(1))
    for implementation, dtype in (("sdpa", torch.bfloat16), ("eager", torch.bfloat16), ("sdpa_fp32", torch.float32)):
        mask = attention_mask(implementation, torch.bfloat16, *vectors)
        assert mask.dtype == dtype
        assert torch.equal(mask == 0, dense_mask(*vectors))


def test_an_additive_mask_attends_as_the_boolean_one_does():
    """To the bit, forward and backward, padding included, of which each token sees itself and what stands before."""
    rows = random_rows(3)
    boolean = dense_mask(*vectors_of(rows))
    gradients = []
    for mask in (boolean, attention_mask("sdpa", torch.float32, *vectors_of(rows))):
        inputs = [torch.randn(3, 2, 96, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        seen = scaled_dot_product_attention(*(tensor.requires_grad_() for tensor in inputs), attn_mask=mask)
        assert seen.isfinite().all()
        seen.square().sum().backward()
        gradients.append([seen, *(tensor.grad for tensor in inputs)])
    assert all(map(torch.equal, *gradients))


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


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_clean_copy_takes_the_positions_of_what_it_replaces(bidirectional):
    image = ImageSegment("diffusion", 3, bidirectional, write=True, clean_copy=True)
    row = lay_out([TextSegment([5, 6]), image, TextSegment([7])], TOKENS)
    #        5  6 BOI noised  clean  EOI 7
    assert row.position_ids == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert row.noised_mask == [False] * 3 + [True] * 3 + [False] * 5
    mask = dense_mask(*(row.tensors()[n][None] for n in ("document_ids", "block_ids", "noised_mask")))[0, 0]
    seen = torch.ones(3, 3, dtype=torch.bool)
    assert torch.equal(mask[3:6, 3:6], seen if bidirectional else seen.tril())  # the noised tokens see each other
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
                assert position[i] <= position[i - 1]  # the clean copy begins
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
