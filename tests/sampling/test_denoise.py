"""Denoising: against diffusers' own loops, against whole forwards, and by what must not change a picture."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    PNDMScheduler,
    RePaintScheduler,
    SASolverScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.core.layout import ImageSegment
from hybridgen.core.noise import NoiseProcess, convert
from hybridgen.sampling.denoise import (
    ImagePredictor,
    check_schedule_draws,
    check_scheduler,
    commit_image,
    denoise,
    prepare,
)
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.prefix import extend
from hybridgen.sampling.seeds import draw_noise, image_generators
from tests.models import BEGIN, tiny_config, tiny_model
from tests.sampling.prompts import EMPTY, PROMPTS, document, image, prefix_of, whole, worst

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' schedulers, not ours

COSINE = {"beta_schedule": "squaredcos_cap_v2"}
AS_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW = {
    "euler": FlowMatchEulerDiscreteScheduler(),
    "euler, shifted": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler, stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "heun": FlowMatchHeunDiscreteScheduler(),
    "dpm++": DPMSolverMultistepScheduler(**AS_FLOW),
    "unipc": UniPCMultistepScheduler(**AS_FLOW, flow_shift=2.0),
}
DDPM = {
    "ddpm": DDPMScheduler(**COSINE, clip_sample=False),
    "ddim": DDIMScheduler(**COSINE, clip_sample=False),
    "dpm++": DPMSolverMultistepScheduler(**COSINE),
    "dpm++, karras": DPMSolverMultistepScheduler(**COSINE, use_karras_sigmas=True),
    "dpm++ sde": DPMSolverMultistepScheduler(**COSINE, algorithm_type="sde-dpmsolver++"),
    "dpm++ single": DPMSolverSinglestepScheduler(**COSINE),
    "unipc": UniPCMultistepScheduler(**COSINE),
    "deis": DEISMultistepScheduler(**COSINE),
    "euler": EulerDiscreteScheduler(**COSINE),
    "euler ancestral": EulerAncestralDiscreteScheduler(**COSINE),
    "heun": HeunDiscreteScheduler(**COSINE),
    "pndm": PNDMScheduler(**COSINE, skip_prk_steps=True),
}
EXPERTS, UNET, CONVNEXT = ", modality experts", ", U-Net", ", ConvNeXt"
STEPS = 8
FLOW_CONFIG = HybridGenDiffusionConfig()
X0_CONFIG = HybridGenDiffusionConfig(prediction_type="sample")
COSINE_CONFIG = HybridGenDiffusionConfig(noise_schedule="cosine", prediction_type="epsilon")


def clean_images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1


# ------------------------------------------------------------------------------------------- diffusers as the oracle


def wavy(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A function of x_t and of what the model is told, in place of a model."""
    return torch.sin(3 * x) * 0.3 + torch.cos(timestep / 150) * 0.2


@pytest.mark.parametrize("name", FLOW)
def test_flow_trajectories_are_diffusers(name):
    schedule = prepare(FLOW[name], STEPS, FLOW_CONFIG)
    noise = draw_noise(image_generators(2, 3), (3, 4, 4), "cpu")
    ours = denoise(lambda x, i: wavy(x, schedule.timesteps[i]), noise, schedule, "velocity", image_generators(2, 7))

    theirs = type(FLOW[name]).from_config(FLOW[name].config)
    theirs.sigma_min = 1 / STEPS  # read by Heun alone: the same grid as Euler's
    grid = {"sigmas": torch.linspace(1, 1 / STEPS, STEPS).tolist()} if name.startswith("euler") else {}
    theirs.set_timesteps(**(grid or {"num_inference_steps": STEPS}))
    x, extra = noise, {"generator": image_generators(2, 7)} if schedule.takes_generator else {}
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(wavy(x, theirs.sigmas[i] * 1000), t, x, **extra).prev_sample
    assert torch.equal(ours, x)


@pytest.mark.parametrize("name", DDPM)
def test_ddpm_trajectories_are_diffusers(name):
    schedule = prepare(DDPM[name], STEPS, COSINE_CONFIG)
    noise = draw_noise(image_generators(2, 3), (3, 4, 4), "cpu")
    ours = denoise(lambda x, i: wavy(x, schedule.timesteps[i]), noise, schedule, "epsilon", image_generators(2, 7))

    theirs = type(DDPM[name]).from_config(DDPM[name].config)
    theirs.set_timesteps(STEPS)
    if name == "dpm++, karras":  # two of its rounded timesteps are equal; without this its own loop runs off the end
        theirs.set_begin_index(0)
    x = noise * theirs.init_noise_sigma
    extra = {"generator": image_generators(2, 7)} if schedule.takes_generator else {}
    for t in theirs.timesteps:
        x = theirs.step(wavy(theirs.scale_model_input(x, t), t), t, x, **extra).prev_sample
    assert torch.equal(ours, x)


def oracle(clean: torch.Tensor, kind: str, schedule):
    """A model that knows x_0, and says it as `kind`."""
    return lambda x, i: convert("sample", kind, clean.expand_as(x), x, schedule.alpha[i], schedule.sigma[i])


@pytest.mark.parametrize("kind", ["velocity", "epsilon", "sample"])
@pytest.mark.parametrize("name", FLOW)
def test_flow_samplers_recover_what_the_model_knows(name, kind):
    config = HybridGenDiffusionConfig(prediction_type=kind)
    schedule = prepare(FLOW[name], STEPS, config)
    noise = draw_noise(image_generators(2, 0), (3, 4, 4), "cpu")
    made = denoise(oracle(clean_images(), kind, schedule), noise, schedule, kind, image_generators(2, 1))
    assert worst(made, clean_images()) < 2e-5  # measured 1.2e-7


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("wanted", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", DDPM)
def test_ddpm_samplers_recover_what_the_model_knows(name, wanted, kind):
    """Whatever the model predicts and whatever the scheduler wants."""
    config = HybridGenDiffusionConfig(prediction_type=kind, noise_schedule="cosine")
    scheduler = type(DDPM[name]).from_config(DDPM[name].config, prediction_type=wanted)
    if name in ("euler ancestral", "pndm") and wanted == "sample":
        with pytest.raises(ValueError, match="does not work with prediction_type 'sample'; give it .*'epsilon'"):
            prepare(scheduler, 2 * STEPS, config)
        return
    schedule = prepare(scheduler, 2 * STEPS, config)
    noise = draw_noise(image_generators(2, 0), (3, 4, 4), "cpu")
    made = denoise(oracle(clean_images(), kind, schedule), noise, schedule, kind, image_generators(2, 1))
    ends_noisy = name in ("deis", "pndm")  # at timestep 0, where diffusers' tables still hold a little noise
    assert worst(made, clean_images()) < (2e-2 if ends_noisy else 1e-5)


@pytest.mark.parametrize("noise_schedule", ["cosine", "linear"])
@pytest.mark.parametrize(
    "scheduler_class", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler]
)
def test_the_model_sees_its_own_process(scheduler_class, noise_schedule):
    """x_t as told to the model mixes image and noise as training did at that timestep."""
    config = HybridGenDiffusionConfig(noise_schedule=noise_schedule, prediction_type="epsilon")
    betas = "squaredcos_cap_v2" if noise_schedule == "cosine" else "linear"
    schedule = prepare(scheduler_class(beta_schedule=betas), 20, config)
    below, above = schedule.timesteps.floor(), schedule.timesteps.ceil()
    (most, _), (least, _) = (NoiseProcess.of(config).coefficients(t) for t in (below, above))
    assert (schedule.alpha <= most + 2e-4).all()
    assert (schedule.alpha >= least - 2e-4).all()
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(len(schedule)))


def test_more_steps_than_the_process_has_are_refused():
    for scheduler, config in ((DDPM["ddim"], COSINE_CONFIG), (FLOW["euler"], FLOW_CONFIG)):
        with pytest.raises(ValueError, match="num_inference_steps is 1001; the process has 1000 timesteps, take fewer"):
            prepare(scheduler, 1001, config)


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("steps", [2, 8, 30])
def test_a_mistake_of_the_model_is_drawn_no_larger(name, steps):
    """A model that predicts x_0, wrong by one per cent. Heun's own grid asks it for a velocity at 1/1000, and draws the
    mistake a hundredfold."""
    schedule = prepare(FLOW[name], steps, X0_CONFIG)
    check_schedule_draws(schedule, "sample")  # leaves no trace in the schedule
    wrong = clean_images() + 0.01 * torch.randn(len(schedule), 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    noise = draw_noise(image_generators(2, 0), (3, 4, 4), "cpu")
    made = denoise(lambda x, i: wrong[i], noise, schedule, "sample", image_generators(2, 1))
    assert (made - clean_images()).pow(2).mean().sqrt() < 0.02  # measured 0.011


@pytest.mark.parametrize(
    ("scheduler", "config", "steps", "message"),
    [
        (DDIMInverseScheduler(**COSINE, clip_sample=False), COSINE_CONFIG, 8, "draws another picture than the model"),
        (CMStochasticIterativeScheduler(num_train_timesteps=1000), FLOW_CONFIG, 8, "CMStochasticIterativeScheduler"),
        (KDPM2AncestralDiscreteScheduler(**COSINE), COSINE_CONFIG, 8, "in 15 evaluations draws .* ended nan away"),
        (
            SASolverScheduler(**AS_FLOW),
            FLOW_CONFIG,
            8,
            "SASolverScheduler in 8 .* take more steps or another scheduler",
        ),
    ],
)
def test_a_scheduler_that_draws_something_else_is_refused(scheduler, config, steps, message):
    with pytest.raises(ValueError, match=message):
        check_schedule_draws(prepare(scheduler, steps, config), config.prediction_type)


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (RePaintScheduler(**COSINE), 8, "RePaintScheduler cannot take a step here"),
        (PNDMScheduler(**COSINE), 2, "PNDMScheduler cannot be set to 2 steps .*; take another number of steps or one"),
    ],
)
def test_what_schedulers_raise_becomes_one_sentence(scheduler, steps, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(scheduler, steps, COSINE_CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheduler", "shifted"),
    [
        (FLOW["euler"], FLOW["euler, shifted"]),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), FLOW["euler, shifted"]),
        (DPMSolverMultistepScheduler(**AS_FLOW), DPMSolverMultistepScheduler(**AS_FLOW, flow_shift=3.0)),
    ],
)
def test_shift_is_the_schedulers_own(scheduler, shifted):
    ours, theirs = prepare(scheduler, STEPS, FLOW_CONFIG, shift=3.0), prepare(shifted, STEPS, FLOW_CONFIG)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.sigma, theirs.sigma)
    if shifted is FLOW["euler, shifted"]:
        s = torch.linspace(1, 1 / STEPS, STEPS)
        torch.testing.assert_close(ours.sigma, 3 * s / (1 + 2 * s))


@pytest.mark.parametrize(
    ("scheduler", "shift", "message"),
    [
        (FLOW["euler"], 0.0, "shift is 0.0; it must be a number above 0"),
        (FLOW["euler"], float("nan"), "shift is nan"),
        (DDPM["ddim"], 3.0, "shift moves the noise levels of flow matching, but DDIMScheduler has none; leave it out"),
    ],
)
def test_a_shift_that_means_nothing_is_refused(scheduler, shift, message):
    with pytest.raises(ValueError, match=message):
        prepare(scheduler, STEPS, FLOW_CONFIG, shift=shift)


def test_a_shift_of_one_moves_nothing():
    """Also of a scheduler that has none: so a call undoes a checkpoint's own."""
    for scheduler, config in ((DDPM["ddim"], COSINE_CONFIG), (FLOW["euler"], FLOW_CONFIG)):
        ours, plain = prepare(scheduler, STEPS, config, shift=1.0), prepare(scheduler, STEPS, config)
        assert torch.equal(ours.timesteps, plain.timesteps)
        assert torch.equal(ours.sigma, plain.sigma)


def test_flow_tells_a_thousandfold_of_s():
    schedule = prepare(FLOW["euler"], 4, FLOW_CONFIG)
    assert schedule.timesteps.tolist() == [1000, 750, 500, 250]
    assert schedule.sigma.tolist() == [1, 0.75, 0.5, 0.25]


def test_the_scheduler_handed_over_stays_as_it_was():
    scheduler = DPMSolverMultistepScheduler(**COSINE)
    before = {name: str(value) for name, value in vars(scheduler).items()}
    schedule = prepare(scheduler, STEPS, COSINE_CONFIG)
    denoise(lambda x, i: x, torch.randn(1, 3, 4, 4), schedule, "epsilon")
    assert {name: str(value) for name, value in vars(scheduler).items()} == before


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        (DDIMScheduler(), FLOW_CONFIG, "DDIMScheduler samples a DDPM process, but .* trained .*'flow'.*; take a flow"),
        (FLOW["euler"], COSINE_CONFIG, "samples flow matching, but .*'cosine'.*; take one with .*'squaredcos"),
        (FLOW["unipc"], COSINE_CONFIG, "UniPCMultistepScheduler samples flow matching"),
        (DDPM["unipc"], FLOW_CONFIG, "UniPCMultistepScheduler samples a DDPM process"),
        (DDIMScheduler(), COSINE_CONFIG, "DDIMScheduler has other betas than training had"),
        (DDIMScheduler(**COSINE, num_train_timesteps=500), COSINE_CONFIG, "counts 500 timesteps, but .* on 1000"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), FLOW_CONFIG, "has use_dynamic_shifting, which"),
        (DDIMScheduler(prediction_type="flow_prediction"), FLOW_CONFIG, "DDIMScheduler samples a DDPM process"),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), FLOW_CONFIG, "samples a DDPM process"),
        (ScoreSdeVeScheduler(num_train_timesteps=1000), FLOW_CONFIG, "ScoreSdeVeScheduler takes no steps"),
        (EDMEulerScheduler(), COSINE_CONFIG, "EDMEulerScheduler has no table of alphas"),
        (
            UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="v_prediction"), FLOW_CONFIG,
            "has prediction_type 'v_prediction', unknown to flow matching",
        ),
    ],
)  # fmt: skip
def test_a_scheduler_of_another_process_is_refused(scheduler, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_scheduler(scheduler, config)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- with the model


def config_of(bidirectional: bool = True, backbone: str = "qwen3"):
    settings = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "bidirectional": bidirectional}
    settings["modality_experts"] = backbone.endswith(EXPERTS)
    settings["unet_channels"] = [8, 16] if backbone.endswith(UNET) else None
    if backbone.endswith(CONVNEXT):
        settings |= {"convnext_channels": 8, "time_token": True}
    return tiny_config(backbone.partition(",")[0], diffusion_config=settings)


@pytest.mark.parametrize("size", [(16, 16), (8, 20)])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("backbone", ["qwen3", "llama4_text", "llama" + EXPERTS, "qwen3" + UNET, "qwen3" + CONVNEXT])
def test_cached_denoising_equals_the_whole_forward(bidirectional, size, backbone):
    model = tiny_model(config_of(bidirectional, backbone))
    timesteps, scale = torch.tensor([1000.0, 400.0]), 2.5
    noisy = torch.randn(len(PROMPTS), 3, *size)
    prefix = prefix_of(model, [*PROMPTS, *[EMPTY] * len(PROMPTS)])
    predict = ImagePredictor(model, prefix, len(PROMPTS), size, timesteps, scale)
    for step, timestep in enumerate(timesteps):
        made = predict(noisy, step)
        for row, ids in enumerate(PROMPTS):
            segments = image("diffusion", model, model.config.diffusion_config.tokens(*size))
            told = {"latents": noisy[row : row + 1], "timesteps": timestep[None]}
            conditional, unconditional = (full_prediction(model, [prompt, segments], told) for prompt in (ids, EMPTY))
            expected = unconditional + scale * (conditional - unconditional)
            assert worst(made[row], expected) < 2e-5  # measured 1.2e-6


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("backbone", ["qwen3", "llama" + EXPERTS, "qwen3" + CONVNEXT])
def test_drawing_after_a_committed_picture_equals_a_training_row_with_clean_copies(bidirectional, backbone):
    """What a noised image sees in training, beside its clean copy and after another's, is what the sampler shows it."""
    model, ids, text = tiny_model(config_of(bidirectional, backbone)), PROMPTS[0], [21, 22]
    tokens = model.config.diffusion_config.tokens(16, 16)
    copied = ImageSegment("diffusion", tokens, bidirectional, write=True, clean_copy=True)
    vectors = document([ids, copied, text, copied]).layout.tensors()
    names = ("input_ids", "document_ids", "block_ids", "noised_mask", "position_ids")
    noisy, clean = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    timesteps = torch.tensor([700.0, 300.0])
    told = {
        "latents": torch.stack([noisy[0], clean[0], noisy[1], clean[1]]),
        "timesteps": torch.tensor([700.0, 0.0, 300.0, 0.0]),
    }
    with torch.no_grad():
        expected = model(**{name: vectors[name][None] for name in names}, **told).prediction
    prefix = prefix_of(model, [ids])
    for number in range(2):
        made = ImagePredictor(model, prefix, 1, (16, 16), timesteps)(noisy[number : number + 1], number)
        assert worst(made[0], expected[2 * number]) < 2e-5
        commit_image(model, prefix, clean[number : number + 1])
        extend(model, prefix, torch.tensor([*text, BEGIN]))


def full_prediction(model, segments: list, told: dict) -> torch.Tensor:
    vectors = {name: value[None] for name, value in document(segments).layout.tensors().items()}
    names = ("input_ids", "document_ids", "block_ids", "position_ids")
    with torch.no_grad():
        return model(**{name: vectors[name] for name in names}, **told).prediction[0]


def draw(model, prompts, seeds, guidance=1.0, scheduler=None, steps=4, on_step=None, unconditional=EMPTY):
    """What the pipeline does, with bare functions: prompts and seeds -> latents."""
    generators = image_generators(len(prompts), seeds)
    schedule = prepare(scheduler or FlowMatchEulerDiscreteScheduler(), steps, model.config.diffusion_config)
    prefix = prefix_of(model, prompts + ([] if guidance == 1 else [unconditional] * len(prompts)))
    predict = ImagePredictor(model, prefix, len(prompts), (16, 16), schedule.timesteps, guidance)
    noise = draw_noise(generators, (3, 16, 16), "cpu")
    kind = model.config.diffusion_config.prediction_type
    return denoise(predict, noise, schedule, kind, generators, on_step)


@pytest.mark.parametrize("scheduler", [FLOW["euler"], FLOW["euler, stochastic"], FLOW["unipc"]])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_the_same_alone_and_in_a_batch(scheduler, guidance):
    model, seeds = tiny_model(), [4, 5, 6, 7, 8]
    together = draw(model, PROMPTS, seeds, guidance, scheduler)
    for i, (ids, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        assert worst(together[i], draw(model, [ids], [seed], guidance, scheduler)[0]) < 1e-4  # measured 1e-6
    assert worst(together[0], together[1]) > 0.1


def test_guidance_one_is_unguided_and_costs_one_row():
    model, rows = tiny_model(), []
    handle = model.model.language_model.register_forward_hook(
        lambda m, args, out: rows.append(len(out.last_hidden_state))
    )
    unguided = draw(model, PROMPTS[:2], [1, 2], 1.0, steps=3)
    assert rows == [2, 2, 2, 2]  # the prefix, then three steps
    rows.clear()
    guided = draw(model, PROMPTS[:2], [1, 2], 1.0 + 1e-9, steps=3)
    handle.remove()
    assert rows == [4, 4, 4, 4]
    assert worst(guided, unguided) < 1e-4  # measured 0


def test_outside_its_interval_guidance_costs_one_row_and_changes_nothing():
    model, rows = tiny_model(), []
    handle = model.model.language_model.register_forward_hook(
        lambda m, args, out: rows.append(len(out.last_hidden_state))
    )
    interval = {"start": 0.25, "stop": 0.5}
    made = draw(model, PROMPTS[:2], [1, 2], Guidance(5.0, **interval))
    handle.remove()
    assert rows == [4, 2, 4, 2, 2]  # the prefix, then four steps
    by_hand = draw(model, PROMPTS[:2], [1, 2], lambda step: 5.0 if step == 1 else 1.0)
    assert worst(made, by_hand) < 1e-4  # measured 1e-6


@pytest.mark.parametrize("kind", ["velocity", "sample", "epsilon"])
def test_cfg_zero_star_works_on_velocities_whatever_the_model_predicts(kind):
    """The first step stands still; the second starts from the nearest multiple of the empty prompt's velocity."""
    settings = {**config_of().diffusion_config.to_dict(), "prediction_type": kind}
    model = tiny_model(tiny_config(diffusion_config=settings))
    timesteps, noisy = torch.tensor([900.0, 400.0]), torch.randn(2, 3, 16, 16)
    guidance = Guidance(3.0, method="zero_star", zero_init_steps=1)
    prefix = prefix_of(model, [*PROMPTS[:2], EMPTY, EMPTY])
    made = [ImagePredictor(model, prefix, 2, (16, 16), timesteps, guidance)(noisy, step) for step in (0, 1)]
    alone = [prefix_of(model, prompts) for prompts in (PROMPTS[:2], [EMPTY, EMPTY])]
    mix = torch.tensor(0.6), torch.tensor(0.4)
    full, empty = (
        convert(kind, "velocity", ImagePredictor(model, rows, 2, (16, 16), timesteps)(noisy, 1), noisy, *mix)
        for rows in alone
    )
    share = (full * empty).sum((1, 2, 3), keepdim=True) / (empty**2).sum((1, 2, 3), keepdim=True)
    expected = share * empty + 3 * (full - share * empty)
    assert worst(convert(kind, "velocity", made[1], noisy, *mix), expected) < 1e-3  # of values up to 20
    still = convert(kind, "velocity", made[0], noisy, torch.tensor(0.1), torch.tensor(0.9))
    assert still.abs().max() < 1e-4  # measured 5e-6


def test_guidance_between_equal_prompts_changes_nothing():
    model = tiny_model()
    unguided = draw(model, PROMPTS[:1], [1], 1.0)
    assert worst(draw(model, PROMPTS[:1], [1], 7.0, unconditional=PROMPTS[0]), unguided) < 1e-4  # measured 0


def test_guidance_is_the_same_in_every_space():
    """Guided velocity = velocity of the guided noise or x_0: see `guidance`."""
    torch.manual_seed(0)
    noisy, conditional, unconditional = torch.randn(3, 2, 3, 4, 4)
    for process, kinds in (
        ("flow", ("velocity", "epsilon", "sample")),
        ("cosine", ("epsilon", "sample", "v_prediction")),
    ):
        config = HybridGenDiffusionConfig(noise_schedule=process, prediction_type="epsilon")
        alpha, sigma = NoiseProcess.of(config).coefficients(torch.tensor(400))
        for kind in kinds:
            for other in kinds:
                c, u = (convert(kind, other, each, noisy, alpha, sigma) for each in (conditional, unconditional))
                inside = convert(kind, other, unconditional + 3 * (conditional - unconditional), noisy, alpha, sigma)
                assert worst(inside, u + 3 * (c - u)) < 1e-4  # measured 4e-6


def test_each_step_hands_over_its_latents():
    model, seen = tiny_model(), []

    def replace(step, latents):
        seen.append(step)
        return torch.zeros_like(latents) if step == 3 else latents

    assert draw(model, PROMPTS[:1], [1], on_step=replace).abs().max() == 0
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("backbone", ["qwen3", "qwen3" + EXPERTS])
def test_text_after_a_committed_picture_equals_the_teacher_forced_forward(bidirectional, guided, backbone):
    model = tiny_model(config_of(bidirectional, backbone))
    prompts = [*PROMPTS, *[EMPTY] * len(PROMPTS)] if guided else PROMPTS
    prefix = prefix_of(model, prompts)
    ImagePredictor(model, prefix, len(PROMPTS), (16, 16), torch.tensor([500.0]))(torch.randn(5, 3, 16, 16), 0)
    finished = torch.randn(len(PROMPTS), 3, 16, 16)
    committed = commit_image(model, prefix, finished)
    after = extend(model, prefix, torch.tensor([21, 22]))
    for row, ids in enumerate(prompts):
        clean = {"latents": finished[row % 5][None], "timesteps": torch.zeros(1)}
        expected = whole(model, [ids, image("diffusion", model), [21, 22]], **clean)[len(ids) + 1 :]
        assert worst(torch.cat([committed[row], after[row]]), expected) < 2e-5  # measured 5e-7
