"""The code loop against whole forwards and transformers' filters, and by what must not change a code."""

import itertools

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from hybridgen.sampling import codes, decoder, tasks
from hybridgen.sampling.codes import CodeSampling, _Width, commit_codes, write_codes
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.prefix import extend
from hybridgen.sampling.seeds import draw_gumbel, image_generators
from tests.models import tiny_config, tiny_model
from tests.sampling.prompts import EMPTY, PROMPTS, document, image, prefix_of, whole, worst

GREEDY = CodeSampling(temperature=0)
COUNT = 12


@pytest.fixture(scope="module")
def model():
    """With code logits far enough apart that codes are a matter of the model and not of rounding."""
    model = tiny_model()
    for parameter in model.model.generation_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.model.generation_embeddings.weight)
    for parameter in model.model.generation_aligner.parameters():  # quiet, so that prompts and seeds are still heard
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def draw(model, prompts, seeds, guidance=1.0, sampling=None, on_step=None):
    generators = image_generators(len(prompts), seeds)
    prefix = prefix_of(model, prompts + ([] if guidance == 1 else [EMPTY] * len(prompts)))
    return write_codes(model, prefix, COUNT, generators, sampling or CodeSampling(), guidance, on_step)


def whole_logits(model, ids: list[int], codes: torch.Tensor) -> torch.Tensor:
    """Teacher-forced code logits (T, V) of a prompt followed by an image of these codes."""
    layout = document([ids, image("vq", model, len(codes))]).layout
    vectors = {name: value[None] for name, value in layout.tensors().items()}
    is_code = vectors["input_ids"] == model.config.vq_token_id
    names = ("input_ids", "document_ids", "block_ids", "position_ids")
    with torch.no_grad():
        return model(
            **{name: vectors[name] for name in names}, codes=codes, codes_to_keep=is_code.roll(-1, dims=1)
        ).code_logits


@pytest.mark.parametrize("backbone", ["qwen3", "llama4_text"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_greedy_codes_are_the_likeliest_of_the_whole_forward(guidance, backbone):
    """Teacher-forced on the codes drawn, every one of them is the argmax there too."""
    model = tiny_model(tiny_config(backbone))
    codes = draw(model, PROMPTS, 0, guidance, GREEDY)
    for row, ids in enumerate(PROMPTS):
        conditional, unconditional = (whole_logits(model, prompt, codes[row]) for prompt in (ids, EMPTY))
        guided = unconditional + guidance * (conditional - unconditional)
        chosen = guided.gather(1, codes[row][:, None])[:, 0]
        assert worst(chosen, guided.max(1).values) < 1e-5  # measured 0
    assert len(codes.unique()) > 2


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampling", [CodeSampling(), CodeSampling(temperature=0.7, top_k=20, top_p=0.9), GREEDY])
def test_codes_are_the_same_alone_and_in_a_batch(model, guidance, sampling):
    seeds = [4, 5, 6, 7, 8]
    together = draw(model, PROMPTS, seeds, guidance, sampling)
    for i, (ids, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        assert torch.equal(together[i], draw(model, [ids], [seed], guidance, sampling)[0])
    assert not torch.equal(together[0], together[1])


def test_other_seeds_draw_other_codes_and_equal_seeds_equal_ones(model):
    drawn = draw(model, [PROMPTS[0]] * 3, [1, 2, 1])
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_guidance_one_is_unguided_and_costs_one_row(model):
    rows = []
    handle = model.model.language_model.register_forward_hook(
        lambda m, args, out: rows.append(len(out.last_hidden_state))
    )
    unguided = draw(model, PROMPTS[:2], 0)
    assert rows == [2] * COUNT  # the prefix, then every code but the last
    rows.clear()
    guided = draw(model, PROMPTS[:2], 0, 1.0 + 1e-9)
    handle.remove()
    assert rows == [4] * COUNT
    assert torch.equal(guided, unguided)


@pytest.mark.parametrize("guided", [True, False])
def test_text_after_committed_codes_equals_the_teacher_forced_forward(model, guided):
    prompts = [*PROMPTS, *[EMPTY] * len(PROMPTS)] if guided else PROMPTS
    prefix = prefix_of(model, prompts)
    codes = write_codes(model, prefix, COUNT, image_generators(len(PROMPTS), 3), CodeSampling(), 2.0)
    committed = commit_codes(model, prefix, codes)
    after = extend(model, prefix, torch.tensor([21, 22]))
    for row, ids in enumerate(prompts):
        expected = whole(model, [ids, image("vq", model, COUNT), [21, 22]], codes=codes[row % 5])[len(ids) + COUNT :]
        assert worst(torch.cat([committed[row], after[row]]), expected) < 2e-5  # measured 1e-6


def test_each_step_hands_over_the_codes_so_far(model):
    seen = []

    def replace(step, codes):
        seen.append(tuple(codes.shape))
        return torch.full_like(codes, 7) if step == COUNT - 1 else codes

    assert (draw(model, PROMPTS[:2], 0, on_step=replace) == 7).all()
    assert seen == [(2, step + 1) for step in range(COUNT)]


# ----------------------------------------------------------------------------------------------- drawing one code


def test_codes_are_drawn_as_often_as_their_probability_says():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    draws = 20000
    noise = draw_gumbel(image_generators(draws, 0), 1, 4, "cpu")
    codes = CodeSampling(temperature=1.5).draw(logits.expand(draws, -1), noise)
    expected = (logits[0] / 1.5).softmax(-1) * draws
    counts = torch.bincount(codes, minlength=4)
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 16.3  # 99.9 % of fair draws, 3 degrees of freedom; measured 2.6


@pytest.mark.parametrize("sampling", [CodeSampling(1.3), CodeSampling(0.8, top_k=3), CodeSampling(1.2, top_p=0.8)])
def test_the_whole_loop_draws_from_the_models_own_distribution(sampling):
    """Two codes of four: the 16 pairs against p(a) p(b | a), computed from whole forwards, guided and filtered."""
    model = tiny_model(tiny_config(vq_config={"num_embeddings": 4, "embed_dim": 8, "sample_size": 4}))
    for parameter in model.model.generation_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    draws, scale, prompt = 4000, 2.0, PROMPTS[0]
    prefix = prefix_of(model, [prompt, EMPTY]).select(torch.tensor([0] * draws + [1] * draws))
    drawn = write_codes(model, prefix, 2, image_generators(draws, 0), sampling, scale)
    expected = torch.zeros(4, 4)
    for first in range(4):
        full, empty = (whole_logits(model, ids, torch.tensor([first, 0])) for ids in (prompt, EMPTY))
        shares = sampling.filter(empty + scale * (full - empty)).softmax(-1)  # 2, 4
        expected[first] = shares[0, first] * shares[1]
    counts = torch.zeros(4, 4).index_put_((drawn[:, 0], drawn[:, 1]), torch.ones(draws), accumulate=True)
    possible = expected > 0
    assert counts[~possible].sum() == 0  # what the filters leave out is never drawn
    wanted = expected[possible] * draws
    chi_squared = ((counts[possible] - wanted) ** 2 / wanted).sum()
    assert chi_squared < 37.7  # 99.9 % of fair draws with 15 degrees of freedom, and more with fewer


@pytest.mark.parametrize("method", ["apg", "zero_star"])
def test_guidance_of_codes_does_not_depend_on_a_constant_in_the_logits(model, method):
    guidance = Guidance(3.0, method=method, eta=0.3)
    before = draw(model, PROMPTS[:2], 0, guidance)
    bias = model.model.generation_head.vision_head.bias
    with torch.no_grad():
        bias += 5
        after = draw(model, PROMPTS[:2], 0, guidance)
        bias -= 5
    assert torch.equal(before, after)
    assert not torch.equal(before, draw(model, PROMPTS[:2], 0, 3.0))


@pytest.mark.parametrize("temperature", [1e-44, 1e-38, 1e-20])
def test_the_lower_the_temperature_the_likelier_the_code(temperature):
    """As at 0, in the end: no logit over it is infinite."""
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, -2.0]])
    drawn = CodeSampling(temperature=temperature, top_p=0.9).draw(logits, iter([torch.zeros(2, 3)]))
    assert drawn.tolist() == [1, 0]


@pytest.mark.parametrize("top_k", [1, 5, 50, 0, 1000])
def test_top_k_keeps_what_transformers_keeps(top_k):
    logits = torch.randn(3, 50)
    kept = CodeSampling(top_k=top_k).filter(logits)
    assert torch.equal(kept, TopKLogitsWarper(top_k)(None, logits) if top_k > 0 else logits)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
def test_top_p_keeps_what_transformers_keeps(top_p):
    logits = 3 * torch.randn(3, 50)
    kept = CodeSampling(top_p=top_p).filter(logits)
    assert torch.equal(kept, TopPLogitsWarper(top_p)(None, logits) if top_p < 1 else logits)
    assert (kept > -torch.inf).any(-1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be a number above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CodeSampling(**settings)


# ----------------------------------------------------------------------------------------------------- several at once


@pytest.mark.parametrize("window", [2, 4, COUNT, 50])
@pytest.mark.parametrize("sampling", [GREEDY, CodeSampling(), CodeSampling(temperature=0.5, top_k=10)])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_a_window_draws_the_same_codes(model, prompts, sampling, window):
    """And leaves the same prefix: what is read next is read alike."""
    made, states = [], []
    for size in (1, window):
        prefix = prefix_of(model, prompts + [EMPTY] * len(prompts))
        generators = image_generators(len(prompts), 3)
        codes = write_codes(model, prefix, COUNT, generators, sampling, 2.0, window=size)
        made.append(codes)
        states.append(commit_codes(model, prefix, codes))
    assert torch.equal(*made)
    assert worst(*states) < 1e-4  # measured 2e-6


def test_right_guesses_save_reading(model):
    """Where every code is the one above it, most guesses are right."""
    flat = tiny_model()
    torch.nn.init.zeros_(flat.model.generation_head.vision_head.weight)  # the bias alone decides
    reads = []
    prefix = prefix_of(flat, PROMPTS[:1])
    original = prefix.cache.advance
    prefix.cache.advance = lambda count: (reads.append(count), original(count))
    write_codes(flat, prefix, COUNT, image_generators(1, 0), GREEDY, window=4)
    assert len(reads) <= 5
    assert sum(reads) == COUNT - 1


def test_logits_and_steps_are_told_once_in_order(model):
    told, logits = [], []
    prefix = prefix_of(model, PROMPTS[:2])
    codes = write_codes(
        model, prefix, COUNT, image_generators(2, 0), CodeSampling(),
        on_step=lambda step, so_far: (told.append((step, so_far.shape[1])), so_far)[1],
        on_logits=lambda step, scores: logits.append((step, scores)), window=3,
    )  # fmt: skip
    assert told == [(step, step + 1) for step in range(COUNT)]
    assert [step for step, _ in logits] == list(range(COUNT))
    expected = whole_logits(model, PROMPTS[1], codes[1])
    assert worst(torch.stack([scores[1] for _, scores in logits]), expected) < 1e-4  # measured 2e-6


def test_what_a_step_changes_is_read_and_not_guessed(model):
    def zeros(step, so_far):
        return so_far * 0 if step == 2 else so_far

    made = []
    for window in (1, 4):
        prefix = prefix_of(model, PROMPTS[:1])
        made.append(
            write_codes(model, prefix, COUNT, image_generators(1, 0), CodeSampling(), on_step=zeros, window=window)
        )
    assert torch.equal(*made)


def test_windows_that_mean_nothing_are_refused(model):
    prefix = prefix_of(model, PROMPTS[:1] + [EMPTY])
    for window in (0, 1.5, True):
        with pytest.raises(ValueError, match="window is"):
            write_codes(model, prefix, COUNT, image_generators(1, 0), GREEDY, 2.0, window=window)
    guidance = Guidance(2.0, method="apg", momentum=0.5)
    with pytest.raises(ValueError, match="momentum"):
        write_codes(model, prefix, COUNT, image_generators(1, 0), GREEDY, guidance, window=2)


def test_as_many_codes_are_read_at_once_as_pay():
    """All where guesses are right, one where they are wrong, and more again where they turn out right once more."""
    width = _Width(8, 0.12)
    assert width.best() > 4  # a good opinion at first
    for _ in range(20):
        width.note(7, 7)
    assert width.best() == 8
    sizes = []
    for _ in range(40):
        sizes.append(width.best())
        width.note(0, 1)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    for _ in range(40):  # guesses that are watched, though only one code is read at a time
        width.note(1, 1)
    assert width.best() == 8
    for right, cost in itertools.product((0.1, 0.5, 0.8), (0.05, 0.4)):  # by the definition
        width = _Width(6, cost)
        width._right, width._tested = right, 1.0
        gains = [sum(right**k for k in range(n)) / (1 + cost * (n - 1)) for n in range(1, 7)]
        assert width.best() == 1 + gains.index(max(gains))
    assert [_Width(1, 0.05).best(), _Width(1, 0.05).watched, _Width(8, 0.05).watched] == [1, 1, 2]


def test_wrong_guesses_are_read_no_more(model, monkeypatch):
    """Where none is ever right, after a few forwards one code is read at a time, and the codes are the same."""
    wild, read = tiny_model(), []
    original = decoder.read_together
    never = wild.model.generation_head.vision_head.bias
    never.data[0] = -1e9  # the code that is guessed is never drawn
    monkeypatch.setattr(codes, "_guess_codes", lambda drawn, last, guesses, count: drawn.new_zeros(len(drawn), count))
    counted = lambda reads: (read.append(reads[0].embeds.shape[1]), original(reads))[1]  # noqa: E731
    monkeypatch.setitem(tasks._TOGETHER, decoder.Read, counted)
    made = []
    for window in (8, 1):
        read.clear()
        prefix = prefix_of(wild, PROMPTS[:1])
        made.append(write_codes(wild, prefix, 64, image_generators(1, 0), CodeSampling(), window=window))
        assert len(read) == 63
        assert read[0] == window
        assert set(read[40:]) == {1}
    assert torch.equal(*made)
