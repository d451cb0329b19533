"""Precision reaches everything that reads and writes, and what is kept between calls is what the model is now."""

import pytest
import torch

from hybridgen import pipeline_hybridgen
from hybridgen.chat.events import ImagePreview
from hybridgen.sampling import decoder as decoders
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.decoder import Decoder, read_together
from hybridgen.sampling.interleaved import read_document
from hybridgen.sampling.prefix import prefill, read_prompts
from hybridgen.sampling.seeds import image_generators
from hybridgen.serving.drawing import PictureCall
from tests.models import text_config, tiny_config, tiny_model
from tests.pipelines import tiny_pipeline
from tests.pretended_device import pretended_device, put_on
from tests.processors import picture
from tests.sampling.prompts import BEGIN, PAD, PROMPTS, batch, document, prefix_of, worst

COPIES = ("fp32", "bf16", "int8")
NEAR = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}  # of what is compared, as a share; measured 4e-7, 0.008, 0.02
QUESTION = "what color is the circle?"


def share(rough, exact) -> float:
    return float((rough - exact).norm() / exact.norm())


def test_an_answer_is_read_and_written_in_the_precision_that_is_asked_for(monkeypatch):
    """Of an answer, the prompt, every further word and its scores; in the model's own precision none of them."""
    pipe, seen = tiny_pipeline(), []

    def noted(name: str):
        method = getattr(Decoder, name)

        def noting(self, *args, **options):
            seen.append((name, self.precision))
            return method(self, *args, **options)

        return noting

    for name in ("read", "text_logits", "run"):
        monkeypatch.setattr(Decoder, name, noted(name))
    for precision in COPIES:
        seen.clear()
        pipe.answer(picture(), QUESTION, precision=precision, max_new_tokens=3)
        assert {kind for _, kind in seen} == {precision}
        assert seen[0] == ("read", precision)
        assert sum(name == "text_logits" for name, _ in seen) == 1 + sum(name == "run" for name, _ in seen[2:]) > 1
    seen.clear()
    pipe.answer(picture(), QUESTION, max_new_tokens=3)
    assert not any(name == "read" for name, _ in seen)


@torch.no_grad()
@pytest.mark.parametrize("precision", COPIES)
def test_words_are_scored_nearly_as_by_the_model(precision):
    pipe = tiny_pipeline()
    exact, rough = (pipe.decoder(name) for name in ("model", precision))
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact.text_logits(states), pipe.model.lm_head(states))
    assert share(rough.text_logits(states), exact.text_logits(states)) < NEAR[precision]
    handle = pipe.model.lm_head.register_forward_hook(lambda head, args, logits: logits * 0)
    assert not pipe.decoder(precision).text_logits(states).any()  # a head that was changed is asked itself
    handle.remove()
    assert pipe.decoder(precision).text_logits(states).any()


@torch.no_grad()
@pytest.mark.parametrize("precision", COPIES)
@pytest.mark.parametrize("backbone", ["qwen3", "llama"])
def test_prompts_with_pictures_are_read_nearly_as_by_the_model(precision, backbone):
    """And what comes after them; of several lengths, with pictures whose tokens see each other."""
    pipe = tiny_pipeline(backbone=backbone)
    for path in pipe.model.config.paths:
        messages = [{"type": "image", "image": picture()}, {"type": "text", "text": QUESTION}]
        asked = pipe.processor.prompt([{"role": "user", "content": messages}], read=path)
        inputs = pipe.prompt_inputs([asked, pipe.processor.prompt([{"role": "user", "content": "a"}])])
        exact, rough = (prefill(pipe.model, **inputs, decoder=pipe.decoder(name)) for name in ("model", precision))
        assert share(rough.last_state, exact.last_state) < NEAR[precision]
        real = exact.document_ids[:, None, :, None] == 0
        for mine, other in zip(rough.cache.layers, exact.cache.layers, strict=True):
            assert share(mine.keys * real, other.keys * real) < NEAR[precision]
            assert share(mine.values * real, other.values * real) < NEAR[precision]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["model", *COPIES])
def test_rows_of_other_lengths_are_read_apart(precision, monkeypatch):
    """Each as it would be alone, to the bit, whatever stands beside it. In the model's own precision all at once, as
    ever: the short one padded to the long one."""
    model = tiny_model()
    decoder = Decoder(model, precision)
    short, long = document([[5, 6]]), document([[7, 8, 9] * 20])

    def read(*documents):
        return read_prompts(model, list(documents), PAD, BEGIN, torch.device("cpu"), decoder=decoder)

    shapes, original = [], Decoder.read
    monkeypatch.setattr(
        Decoder, "read", lambda self, embeds, *args: (shapes.append(embeds.shape[:2]), original(self, embeds, *args))[1]
    )
    both = read(long, short, long)
    assert shapes == ([] if precision == "model" else [(1, 65), (1, 33)])
    assert (len(both), both.rows) == (65, 3)
    for row, alone in ((0, read(long)), (1, read(short)), (2, read(long))):
        begins = len(both) - len(alone)
        assert (both.document_ids[row, :begins] != 0).all()
        assert torch.equal(both.document_ids[row, begins:], alone.document_ids[0])
        assert torch.equal(both.positions[row], alone.positions[0])
        for mine, other in zip(both.cache.layers, alone.cache.layers, strict=True):
            same = torch.equal(mine.values[row, :, begins:65], other.values[0, :, : len(alone)])
            assert same or precision == "model"
    if precision == "model":
        padded = prefill(model, **batch([[[7, 8, 9] * 20], [[5, 6]]]))
        assert worst(both.last_state[:2], padded.last_state) < 1e-5


def test_a_picture_in_a_precision_is_the_same_in_any_batch():
    """On a CPU, with packed weights of any precision: every kernel makes the same of a row whatever is beside it."""
    pipe, prompts = tiny_pipeline(), ["a red circle", "draw a blue square " * 6, "square"]
    settings = {"seed": 3, "guidance_scale": 2.0, "output_type": "latent", "num_inference_steps": 2}
    for path, precision in (("diffusion", "fp32"), ("vq", "fp32"), ("diffusion", "bf16"), ("vq", "bf16")):
        together = pipe(prompts, path=path, precision=precision, **settings).images
        for number, prompt in enumerate(prompts):
            seed = {**settings, "seed": 3 + number}
            assert torch.equal(pipe(prompt, path=path, precision=precision, **seed).images[0], together[number])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["model", *COPIES])
@pytest.mark.parametrize("inner", [64, 384])
def test_codes_round_alike_whatever_is_read_beside_them(precision, inner):
    """Two rows alone, and among many; a code at a time, and with three behind it. Of 384 numbers oneDNN and BLAS make
    other sums."""
    text = text_config("llama", intermediate_size=inner, hidden_size=32)
    model = tiny_model(tiny_config(text_config=text))
    decoder, embeds = Decoder(model, precision), torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))

    def forward(rows: int, window: bool = False):
        prefix = prefix_of(model, PROMPTS[:1] * rows)
        return decoder.continue_from(prefix, torch.arange(4), causal=not window, is_image=True)

    one = forward(2)
    steps = torch.cat([one(embeds[:, place : place + 1], place) for place in range(4)], dim=1)
    assert worst(forward(2, window=True)(embeds, commit=False), steps) < 1e-6  # measured 4e-7
    assert torch.equal(forward(2, window=True)(embeds[:, :1], commit=False), steps[:, :1])
    many = embeds[:, :1].repeat(3 if precision == "int8" else 9, 1, 1)
    assert torch.equal(forward(len(many))(many)[:2], steps[:, :1])
    beside = [decoders.Read(forward(2), embeds[:, :1]), decoders.Read(forward(1), embeds[:1, :1])]
    assert torch.equal(read_together(beside)[0], steps[:, :1])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["model", *COPIES])
def test_a_denoising_step_is_the_same_whatever_is_written_beside_it(precision):
    """By the kernels that multiply it alone, also where there are few tokens of it."""
    decoder = Decoder(tiny_model(), precision)
    embeds = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))

    def read(*paths: str):
        reads = []
        for path in paths:
            prefix, blocks = prefix_of(decoder.model, PROMPTS[:1]), torch.zeros(2, dtype=torch.long)
            how = {"diffusion": True} if path == "diffusion" else {"causal": True, "is_image": path == "vq"}
            tokens = embeds if path == "diffusion" else embeds[:, :1]
            reads.append(decoders.Read(decoder.continue_from(prefix, blocks, **how), tokens, 0, path != "diffusion"))
        return read_together(reads)

    alone = read("diffusion")[0]
    for beside in (["vq"], ["text", "vq"], ["diffusion"] * 9):
        assert torch.equal(read("diffusion", *beside)[0], alone)
    assert worst(read("diffusion", "vq")[1], read("vq")[0]) < (1e-5 if precision in ("model", "fp32") else 0.05)


@pytest.mark.parametrize("images", [1, 3, 5])
@pytest.mark.parametrize("window", [3, 8])
def test_a_window_changes_no_codes_in_int8(images, window):
    model = tiny_model(tiny_config("llama"))
    torch.nn.init.normal_(model.model.generation_head.vision_head.weight, std=0.5)
    decoder = Decoder(model, "int8")
    made = []
    for size in (1, window):
        prefix, generators = prefix_of(model, PROMPTS[:1] * images * 2), image_generators(images, 5)
        codes = write_codes(model, prefix, 16, generators, CodeSampling(), 2.0, decoder=decoder, window=size)
        made.append(codes)
    assert torch.equal(*made)


def test_a_turn_in_another_precision_reads_all_again():
    pipe = tiny_pipeline()
    chat = pipe.chat(plan=["text"], max_new_tokens=3)
    used = {}
    for precision in ("bf16", "bf16", None, "bf16"):
        usage = list(chat.send(QUESTION, precision=precision))[-1]
        used.setdefault(precision, []).append((usage.cached_tokens, usage.prompt_tokens))
        cond = chat._conversation.cond
        decoder = pipe.decoder(precision or "model")
        alone = read_document(pipe.model, None, cond.tokens, pipe.processor.special_tokens.pad, decoder=decoder)
        assert cond.precision == alone.precision == (precision or "model")
        assert worst(cond.prefix.last_state, alone.prefix.last_state) < (0.03 if precision else 1e-5)
    assert used["bf16"][0][0] == 0 < used["bf16"][1][0]
    assert used[None][0][0] == used["bf16"][2][0] == 0


def test_a_checkpoint_says_what_it_is_asked_in():
    pipe = tiny_pipeline()
    pipe.register_to_config(sampling_defaults={"chat": {"precision": "bf16"}})
    by_default = pipe.answer(picture(), QUESTION, max_new_tokens=4)
    assert pipe._decoders[True].precision == "bf16"
    assert by_default == pipe.answer(picture(), QUESTION, max_new_tokens=4, precision="bf16")
    pipe.drop_decoders()
    pipe.answer(picture(), QUESTION, max_new_tokens=4, precision="model")
    assert True not in pipe._decoders
    with pytest.raises(ValueError, match="precision is 'half'; it must be one of 'model', 'fp32', 'bf16', 'int8'"):
        pipe.answer(picture(), QUESTION, precision="half")
    for wrong in ({"precision": "half"}, {}, {"reread": "vq", "mode": 1}, "bf16", {"precision": ["bf16"]}):
        with pytest.raises(ValueError, match="sampling_defaults has 'chat': .* it must be {'reread': one of"):
            pipeline_hybridgen.check_defaults({"chat": wrong})
    pipeline_hybridgen.check_defaults({"chat": {"precision": "int8", "reread": "drawn"}})


def changes(model) -> dict:
    """What changes what a decoder computes."""
    layer = model.model.language_model.layers[1]
    return {
        "a weight": lambda: layer.mlp.up_proj.weight.data.mul_(2),
        "a weight in place": lambda: torch.nn.init.zeros_(layer.self_attn.o_proj.weight),
        "another weight": lambda: setattr(layer.mlp, "up_proj", torch.nn.Linear(32, 64, bias=False)),
        "a parameter": lambda: setattr(layer.mlp.up_proj, "weight", torch.nn.Parameter(torch.ones(64, 32))),
        "the words' head": lambda: torch.nn.init.zeros_(model.lm_head.weight),
        "a hook": lambda: layer.self_attn.register_forward_hook(lambda module, args, output: output),
        "the dtype": lambda: model.to(torch.bfloat16),
        "a class": lambda: setattr(layer.mlp.up_proj, "__class__", type("Adapted", (torch.nn.Linear,), {})),
        "nothing": lambda: None,
    }


@torch.no_grad()
@pytest.mark.parametrize("precision", ["model", "fp32"])
@pytest.mark.parametrize("change", list(changes(tiny_model())))
def test_a_decoder_is_kept_until_the_model_changes(precision, change):
    pipe = tiny_pipeline()
    first = pipe.decoder(precision)
    assert pipe.decoder(precision) is first
    apply = changes(pipe.model)[change]
    if change == "a weight":  # behind torch's back: its versions do not count that
        apply()
        pipe.drop_decoders()
    else:
        apply()
    if precision != "model" and change in ("a hook", "a class"):  # none of the family's any more
        with pytest.raises(ValueError, match="needs a plain backbone"):
            pipe.decoder(precision)
        return
    now = pipe.decoder(precision)
    assert (now is first) == (change == "nothing")
    assert (now.layers is None) == (change in ("a hook", "a class"))


def test_a_schedule_is_tried_once(monkeypatch):
    pipe, tried = tiny_pipeline(), []
    check = pipeline_hybridgen.check_schedule_draws

    def noting(schedule, *args):
        tried.append(len(schedule))
        check(schedule, *args)

    monkeypatch.setattr(pipeline_hybridgen, "check_schedule_draws", noting)
    draw = lambda **settings: pipe("a", path="diffusion", seed=0, **settings)  # noqa: E731
    draw(num_inference_steps=3)
    draw(num_inference_steps=3, guidance_scale=1.0)
    assert tried == [3]
    draw(num_inference_steps=4)
    draw(num_inference_steps=4, shift=2.0)
    assert tried == [3, 4, 4]
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    draw(num_inference_steps=4, shift=2.0)
    pipe.scheduler.set_shift(3.0)
    draw(num_inference_steps=4, shift=2.0)
    assert tried == [3, 4, 4, 4, 4]
    pipe.scheduler.register_to_config(num_train_timesteps=7)
    with pytest.raises(ValueError, match="counts 7 timesteps"):
        draw(num_inference_steps=4, shift=2.0)


def test_several_codes_are_read_at_once_where_that_costs_little(monkeypatch):
    pipe = tiny_pipeline()
    window = lambda pipe, **settings: pipe.drawing_setup("vq", **settings).window  # noqa: E731
    assert window(pipe) == 8
    assert window(pipe, window=3) == 3
    assert window(tiny_pipeline(backbone="qwen3_moe")) == 1  # run as transformers runs it
    assert PictureCall.of(pipe, "a", path="vq").setup.window == 1  # a server, where others wait
    assert PictureCall.of(pipe, "a", path="vq", window=5).setup.window == 5
    pipe.register_to_config(sampling_defaults={"vq": {"window": 4}})
    assert window(pipe) == PictureCall.of(pipe, "a", path="vq").setup.window == 4
    with pretended_device():
        there = tiny_pipeline()
        put_on(there.model)
        assert window(there) == 1
        assert window(there, window=3) == 3


@pytest.mark.parametrize("path", ["vq", "diffusion"])
def test_previews_and_steps_are_counted_in_codes(path):
    """Whatever is read at once."""
    pipe = tiny_pipeline()
    torch.nn.init.zeros_(pipe.model.model.generation_head.vision_head.weight)  # the guesses are right
    settings = {"path": path, "seed": 0, "plan": ["image"], "preview_every": 6, "num_inference_steps": 16}
    events = list(pipe.stream([{"role": "user", "content": "a"}], **settings, temperature=0))
    steps = [event.step for event in events if isinstance(event, ImagePreview)]
    assert events[-1].steps == 16
    assert len(steps) == 2
    assert all(step // 6 == number for number, step in enumerate(steps, 1))
    assert steps == [6, 12] or path == "vq"
