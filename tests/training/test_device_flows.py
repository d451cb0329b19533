"""Every form of a training step, and every stage, on an accelerator, pretended; how often a step waits for it."""

import contextlib
import threading
from types import SimpleNamespace

import pytest
import torch

from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.core.objectives import total
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.monitor.probes import ActivationProbe
from hybridgen.training.stages import adversarial, vq
from hybridgen.training.stages import model as model_stage
from hybridgen.training.stages.adversarial import Adversary
from hybridgen.training.stages.model import draw_batch_noise
from tests.data.in_memory import drawings, numbered, source_of
from tests.models import text_config
from tests.pretended_device import DEVICE, host_reads, pretended_device, put_on
from tests.training.stages import test_adversarial, test_vae, test_vq
from tests.training.stages.test_model import all_tasks, stage_of
from tests.training.test_devices import moved


def twins() -> list:
    both = ["diffusion", "understanding"]
    return [source_of(drawings(20), name="draw", write="diffusion", clean_copy=True, read=both)]


def of_several_sizes() -> list:
    sizes = [source_of(drawings(20), name=f"of {count}", write="diffusion", image_tokens=count) for count in (4, 9)]
    return [*sizes, source_of(drawings(20), name="vq", write="vq", image_tokens=9)]


DRAWN = {"patch_size": 8, "sample_size": 32, "frequency_embedding_size": 32}
FORMS = {
    "all paths": (all_tasks, {}),
    "z loss": (all_tasks, {"objective": {"z_loss": 1e-4}}),
    "one mean over text and codes": (all_tasks, {"objective": {"token_mean": "joint"}}),
    "cosine, epsilon, min-snr": (
        all_tasks,
        {
            "diffusion": {"noise_schedule": "cosine", "prediction_type": "epsilon"},
            "objective": {"loss_weighting": "min_snr"},
        },
    ),
    "modality experts": (all_tasks, {"diffusion": {"modality_experts": True}}),
    "a U-Net": (all_tasks, {"diffusion": {"unet_channels": [8, 16]}}),
    "aligned": (all_tasks, {"diffusion": {"alignment_layer": 1}}),
    "causal diffusion": (all_tasks, {"diffusion": {"bidirectional": False}}),
    "clean copies, read twice": (twins, {}),
    "several sizes": (of_several_sizes, {}),
    "text alone": (lambda: [source_of(numbered(20), name="text")], {}),
}


def there(form: str = "all paths", rows: int = 4, **changes):
    """A stage on the pretended device, and a batch of it as the trainer sends it."""
    tasks, settings = FORMS[form]
    stage = stage_of(tasks(), rows=rows, **settings, **changes)
    for part in (stage.model, stage.pipeline.vae, stage.pipeline.vq_model):
        if part is not None:
            put_on(part)
    batch, factor = next(stage.loader), stage.latent_codec.downsample_factor
    batch = draw_batch_noise(batch, stage.model.config.diffusion_config, factor, stage.config)
    return stage, moved(batch)


def step(stage, batch: dict) -> dict:
    losses = stage.losses(stage.model, batch)
    total(losses, {kind: count for kind, (_, count) in losses.items()}, stage.weights).backward()
    return {kind: (loss.detach(), count) for kind, (loss, count) in losses.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_training_step_runs_on_another_device(form):
    """And its losses are those of the CPU."""
    stage = stage_of(FORMS[form][0](), **FORMS[form][1])
    batch = next(stage.loader)
    expected = {kind: float(loss) for kind, (loss, _) in step(stage, batch).items()}
    with pretended_device(float64=False):
        losses = step(*there(form))
        found = {kind: float(loss) for kind, (loss, _) in losses.items()}
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_training_step_waits_for_the_device_as_often_for_many_images_as_for_few():
    """16 times of all paths (once 6 an image beside): where tokens of a kind stand is read as a mask, and whether each
    path has as many as its images make."""
    counted = {}
    for rows in (2, 8):
        with pretended_device(float64=False):
            stage, batch = there(rows=rows)
            with host_reads() as seen:
                step(stage, batch)
        counted[len(batch["diffusion_images"])] = len(seen)
    few, many = sorted(counted)
    assert many >= 3 * few
    assert counted[few] == counted[many] <= 16, counted


def test_several_sizes_are_read_no_more_often_than_one():
    with pretended_device(float64=False):
        stage, batch = there("several sizes")
        assert len({image.shape for image in batch["diffusion_images"]}) > 1
        with host_reads() as seen:
            step(stage, batch)
    assert len(seen) <= 16, seen


def test_validation_probes_and_samples_run_on_another_device():
    with pretended_device(float64=False):
        stage, batch = there(sampling={"prompts": ["a red circle"], "steps": 3})
        stage.model.eval()
        with torch.no_grad():
            losses = stage.losses(stage.model, moved(next(iter(stage.validation_batches()))))
            heads, real = {"text": stage.model.lm_head}, batch["document_ids"] != PADDING_DOCUMENT
            with ActivationProbe(stage.model.model.language_model, heads, real) as probe:
                stage.losses(stage.model, batch)
        stage.validation_breakdown.settle()
        assert stage.validation_breakdown.describe(stage.validation_breakdown.pop())
        assert set(losses) == set(stage.kinds)
        assert any(name.startswith("attention_entropy/") for name in probe.numbers())
        assert stage.sample(stage.model).size


def test_cached_inputs_are_read_on_another_device(tmp_path):
    with pretended_device(float64=False):
        stage, batch = there(data={"sources": [], "cache": str(tmp_path)})
        first, again = (float(step(stage, batch)["diffusion"][0]) for _ in range(2))
    assert first == again


# ------------------------------------------------------------------------------------------------------- codec stages


def accelerator():
    """What the codec stages take of accelerate's, for one process on the pretended device."""
    return SimpleNamespace(
        device=DEVICE,
        num_processes=1,
        process_index=0,
        is_main_process=True,
        reduce=lambda values, reduction: values,
        autocast=contextlib.nullcontext,
        register_for_checkpointing=lambda value: None,
    )


def test_a_vq_stage_runs_on_another_device(monkeypatch):
    """Clusters, steps, codes that move, scores and pictures."""
    monkeypatch.setattr(vq, "broadcast", lambda values: values)
    with pretended_device(float64=False):
        stage = test_vq.stage_of(continuous_steps=2, restart_every=3, restart_below=0.5, codebook_decay=0.9)
        put_on(stage.model)
        stage._accelerator = accelerator()
        for number in range(6):
            stage.begin_step(number, 0.1)
            losses = stage.losses(stage.model, moved(next(stage.loader)))
        assert all(torch.isfinite(loss.cpu()) for loss, _ in losses.values())
        assert float(stage.model.usage.sum()) > 0
        stage.model.eval()
        assert stage.sample(stage.model).size
        assert stage.score(stage.model)["psnr"] > 0


def test_a_vae_stage_runs_on_another_device():
    with pretended_device(float64=False):
        stage = test_vae.stage_of()
        put_on(stage.model)
        stage._accelerator = accelerator()
        losses = stage.losses(stage.model.train(), moved(next(stage.loader)))
        losses["l1"][0].backward()
        assert all(torch.isfinite(loss.cpu()) for loss, _ in losses.values())


def test_the_adversarial_term_runs_on_another_device(tmp_path, monkeypatch):
    """Two steps, the discriminator's included: losses and weight are those of the CPU."""

    def steps(judge: Adversary, decoder: torch.nn.Module, device: torch.device) -> list[float]:
        for number in range(2):
            judge.begin_step(number, number / 10)
            features, pictures = (each.to(device) for each in test_adversarial.batch(number))
            decoded = decoder(features)
            errors = (decoded - pictures).abs().flatten(1).mean(1)
            losses = judge.losses(decoded, pictures, errors, training=True)
            (errors + judge.weight * losses["adversarial"]).sum().backward()
        return [judge.weight, *(float(losses[name].detach().mean()) for name in ("adversarial", "discriminator"))]

    here, decoder = test_adversarial.adversary(tmp_path)
    expected = steps(here, decoder, torch.device("cpu"))
    made = adversarial.PatchDiscriminator
    with pretended_device(float64=False):
        monkeypatch.setattr(adversarial, "PatchDiscriminator", lambda *shape: put_on(made(*shape)))
        put_on(decoder)
        there = Adversary(here.settings, here.config, decoder.weight, accelerator())
        assert steps(there, decoder, DEVICE) == pytest.approx(expected, rel=1e-3)


def test_a_run_draws_noise_where_its_batches_are_made(tmp_path, monkeypatch):
    """On the loader's thread in training, and at validation's levels in its loader: `losses` draws none."""
    threads, drawing = [], model_stage.draw_batch_noise

    def watched(*args, **options):
        threads.append((threading.current_thread().name, options["fixed"]))
        return drawing(*args, **options)

    monkeypatch.setattr(model_stage, "draw_batch_noise", watched)
    shape = {name: value for name, value in text_config().items() if not name.endswith(("_id", "vocab_size"))}
    draw = [{"source": "dolls", "task": "draw", "write": "diffusion"}]
    content = {
        "output_dir": str(tmp_path),
        "steps": 1,
        "model": {"tokenizer": {"vocab_size": 400}, "text_config": shape, "diffusion_config": DRAWN},
        "data": {"sequence_length": 256, "per_device_batch_size": 2, "sources": draw},
        "validation": {"every": 1, "batches": 1, "levels": 4, "sources": draw},
    }
    config = strict.build(TrainConfig, content)
    stage = model_stage.build_model_stage(config, make_accelerator(config))
    threads.clear()
    batches = {True: next(iter(stage.validation_batches())), False: next(stage.loader)}
    stage.loader.close()
    made = dict(threads)
    assert made["hybridgen-loader"] is False
    assert made[threading.main_thread().name] is True
    assert (batches[True]["diffusion_timesteps"] % 250 == 125).all()
    before = len(threads)
    with torch.no_grad():
        stage.losses(stage.model, batches[False])
    assert len(threads) == before
