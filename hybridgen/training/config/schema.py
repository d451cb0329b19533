"""The settings of a training run: one dataclass per component, with names, types and defaults, and no code.

How YAML becomes these classes is `strict`; which combinations cannot work is `checks`, where `load_config` stands too.
Settings of other rooms are their own classes: `ObjectiveConfig` in `core.objectives`, `SourceConfig` in
`data.source_config`, `LoraConfig` in `bridges.lora_config`; those of codecs are in `codec`.

An optimizer step takes `data.per_device_batch_size` rows x `accumulation` micro-batches x processes.
"""

from dataclasses import dataclass, field
from typing import Literal

from hybridgen.bridges.lora_config import LoraConfig
from hybridgen.core.objectives import ObjectiveConfig
from hybridgen.core.recognition import FilePath
from hybridgen.data.source_config import SourceConfig
from hybridgen.training.config.codec import VAETrainingConfig, VQTrainingConfig


@dataclass
class TokenizerConfig:
    """The text tokenizer of a model from scratch.

    Args:
        vocab_size: tokens, at most, of one trained on texts of the sources.
        samples: how many records those texts are taken from.
        path: a folder with a tokenizer to use instead; image tokens that it lacks are added.
    """

    vocab_size: int = 4096
    samples: int = 4000
    path: FilePath | None = None


@dataclass
class ModelConfig:
    """Stage `model`: weights to go on from, or the arguments of a `HybridGenConfig` (its docstring explains them).

    Args:
        from_pretrained: a pipeline folder of hybridgen; nothing else may be given then.
        grow_from: a pipeline folder of hybridgen that the model outgrows: `diffusion_config` and `vq_config` add paths
            that it lacks, `text_config: {num_hidden_layers: N}` more layers, N a multiple of its own
            (`bridges.block_expansion`). All else is the checkpoint's. `alignment_layer` counts those of the new model.
        language_model: a folder of a transformers decoder with its tokenizer: config, weights and tokens come from it.
        vision_model: a folder of a transformers vision tower, or a checkpoint of hybridgen for that in it: config and
            weights come from it.
        text_config, vision_config, diffusion_config, vq_config, ...: as in `HybridGenConfig`. Token ids and the
            vocabulary's size come from the tokenizer, `vq_config.num_embeddings` has to be the codec's. None = its
            default or, with `grow_from`, the checkpoint's.
        embedding_std: standard deviation that text embeddings start with; None = the backbone's own (0.02 in most).
            Training from 0.02 soon makes words of one kind indistinguishable, from 1 it does not.
        codes_from_codebook: start code embeddings and the rows of the generation head from the codec's codebook.
        shared_vocabulary: codes are tokens of the language model, behind those of the tokenizer (Chameleon); of
            `vq_config` only `num_embeddings` and `sample_size` count then.
        chat_template: for a tokenizer that brings none, or instead of its own: a file of Jinja, or one of
            `bridges.chat_templates.NAMES`; it is saved with the checkpoint. None = the tokenizer's own. Where there is
            none, texts without a template can be trained on, and conversations are refused.
        fit: how pictures of other shapes are read by the paths diffusion and vq: `crop` = they fill the frame, and what
            stands out is cut off, `pad` = they are whole, on gray; saved with the checkpoint. None = that of
            the checkpoint, else `crop`. Pictures that are drawn fill their frame; `image_tokens` of a source keeps
            the shape of either.
        unconditional: what stands in place of a prompt that is dropped, and of the one that guidance leads away from:
            see `HybridGenProcessor`; None = as the checkpoint has it, from scratch `empty`.
    """

    from_pretrained: FilePath | None = None
    grow_from: FilePath | None = None
    language_model: FilePath | None = None
    vision_model: FilePath | None = None
    text_config: dict | None = None
    vision_config: dict | None = None
    diffusion_config: dict | None = None
    vq_config: dict | None = None
    understanding_bidirectional: bool | None = None
    vision_feature_layer: int | list | None = None
    aligner: dict | None = None
    native_aspect: bool | None = None
    aligner_depth: int | None = None
    aligner_hidden_act: str | None = None
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    embedding_std: float | None = None
    codes_from_codebook: bool = False
    shared_vocabulary: bool = False
    chat_template: FilePath | None = None
    fit: str | None = None
    unconditional: str | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    @property
    def start(self) -> str | None:
        """The checkpoint of hybridgen that the model is, or grows from."""
        return self.from_pretrained or self.grow_from


@dataclass
class CodecPaths:
    """Folders of frozen codecs: a VQ tokenizer (JanusVQVAE, VQModel or PatchVQ) and a VAE (AutoencoderKL and its kin).

    A pipeline folder's `vq_model` or `vae`, or one that the codec stage wrote. No VAE: the diffusion path sees pixels.
    """

    vq: FilePath | None = None
    vae: FilePath | None = None


@dataclass
class DataConfig:
    """What is trained on.

    Args:
        sources: see `SourceConfig`; weights are shares of tokens (of pictures, in the codec stage).
        per_device_batch_size: rows of a batch, per process (pictures, in the codec stage).
        sequence_length: tokens of a row; documents are packed into rows first-fit.
        prefetch: batches made ahead in a background thread.
        temperature: shares are weights to the power of 1 / temperature: above 1, small ones gain.
        max_broken: broken records are skipped and listed in output_dir/broken.jsonl; more than so many of them (below
            1: than this share of a source) stop the run with the list.
        loader_threads: threads that read and decode ahead; their number changes nothing but the time.
        shard_by_rank: each process has its own part of the files or records, instead of taking what its rows need out
            of all of them. The run then depends on the number of processes; without it, two processes equal one.
        cache: a folder that keeps the latents and codes of pictures, and their features while the tower is
            frozen and whole (not under FSDP2).
    """

    sources: list[SourceConfig]
    per_device_batch_size: int = 8
    sequence_length: int = 1024
    prefetch: int = 2
    temperature: float = 1.0
    max_broken: float = 100
    loader_threads: int = 0
    shard_by_rank: bool = False
    cache: FilePath | None = None


@dataclass
class ValidationConfig:
    """Loss on the same rows with the same noise every `every` steps (0 = never).

    Args:
        sources: held-out data.
        batches: how many batches of `data.per_device_batch_size` rows.
        levels: noise levels of the fixed grid that drawn diffusion images go round (`core.objectives.corrupt`).
    """

    every: int = 0
    sources: list[SourceConfig] = field(default_factory=list)
    batches: int = 4
    levels: int = 8


@dataclass
class SamplingConfig:
    """How the checkpoint draws by default; and pictures drawn so, from fixed prompts with fixed seeds, every `every`
    steps (0 = never).

    A setting that is not given is that of the checkpoint that training goes on from; from scratch, `FROM_SCRATCH`'s.

    Args:
        prompts: what to draw.
        paths: by which paths; empty = all that write.
        steps, guidance: of the diffusion path.
        guidance_vq, temperature_vq: of the vq path.
        diffusion, vq: further settings of a path, named as a call of the pipeline names them: {shift: 3.0}.
        scheduler: the class of diffusers that denoises, such as DDIMScheduler; None = the checkpoint's, from scratch
            the noise process' own (DDPM, and Euler for flow matching).
        reread: path by which chats read their own pictures; None = as they were drawn (`chat.settings.TurnSettings`).
    """

    every: int = 0
    prompts: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    steps: int | None = None
    guidance: float | None = None
    guidance_vq: float | None = None
    temperature_vq: float | None = None
    diffusion: dict = field(default_factory=dict)
    vq: dict = field(default_factory=dict)
    scheduler: str | None = None
    reread: str | None = None

    def given(self, path: str) -> dict:
        """The settings of one path that are given, as the pipeline names them."""
        if path == "vq":
            named = {"guidance_scale": self.guidance_vq, "temperature": self.temperature_vq}
        else:
            named = {"guidance_scale": self.guidance, "num_inference_steps": self.steps}
        return {name: value for name, value in named.items() if value is not None} | getattr(self, path)

    def of_path(self, path: str) -> dict:
        """The settings of one path in a checkpoint that is trained from scratch."""
        return FROM_SCRATCH[path] | self.given(path)


UNSAID = {"steps": 20, "guidance": 2.0, "guidance_vq": 1.0, "temperature_vq": 1.0}  # of `SamplingConfig`, from scratch
FROM_SCRATCH = {
    "diffusion": {"guidance_scale": UNSAID["guidance"], "num_inference_steps": UNSAID["steps"]},
    "vq": {"guidance_scale": UNSAID["guidance_vq"], "temperature": UNSAID["temperature_vq"]},
}


@dataclass
class OptimizerConfig:
    """AdamW, or Muon on the matrices inside the transformer stacks and AdamW on all else.

    Args:
        lr, betas, eps, weight_decay: AdamW's.
        decay_all: biases, norms and embeddings decay as well, as in a plain AdamW over all parameters.
        muon_lr: None = lr, which fits with `match_rms_adamw`.
        muon_weight_decay: None = weight_decay.
        muon_momentum, muon_steps: Nesterov momentum, and Newton-Schulz iterations.
        muon_scale: how a matrix' update is scaled: `match_rms_adamw` (0.2 sqrt(longest side), arXiv 2502.16982) or
            `original` (sqrt(rows / columns), never below 1).
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_all: bool = False
    muon_lr: float | None = None
    muon_weight_decay: float | None = None
    muon_momentum: float = 0.95
    muon_steps: int = 5
    muon_scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"


@dataclass
class GroupConfig:
    """Other settings for a part of the model. The first group that matches a parameter holds.

    Args:
        match: start of the parameter's name, or a regular expression that matches from its start:
            `model.vision_model`, `model\\.language_model\\.layers\\.[0-3]\\.`.
        lr_scale: the learning rate is multiplied by it.
        frozen: no gradient, no update, no average: bit for bit as it was.
        weight_decay: instead of the optimizer's.
        rows: `image_tokens`: of a table over the vocabulary (embeddings, `lm_head`) only the rows of the tokens that
            frame pictures and stand for them learn, without decay; all others stay bit for bit as they were.
    """

    match: str
    lr_scale: float = 1.0
    frozen: bool = False
    weight_decay: float | None = None
    rows: Literal["all", "image_tokens"] = "all"


@dataclass
class ScheduleConfig:
    """The learning rate over the run: linear warmup, then `constant`, `cosine` down to `min_ratio`, or `wsd`:
    constant, then linear to `min_ratio` over the last `decay_fraction` of the run; or `exponential`, down to
    `min_ratio` by the same factor each step."""

    name: Literal["constant", "cosine", "wsd", "exponential"] = "cosine"
    warmup_steps: int = 0
    min_ratio: float = 0.0
    decay_fraction: float = 0.2


@dataclass
class EMAConfig:
    """An average of the trainable weights, with decay min(decay, (1 + t) / (10 + t)). It is what is saved.

    Sharded where the weights are; `on_cpu` keeps it in main memory, and copies the weights there each step.
    """

    decay: float = 0.999
    on_cpu: bool = False


@dataclass
class SpikeConfig:
    """Steps that are skipped: the weights stay, the data moves on, `skipped.jsonl` names the records.

    A step is skipped when its loss or gradient is not finite, or when its loss jumps.

    Args:
        factor: a loss jumps when it is above this many times the median of the last `window` losses; null = no loss
            that is finite does.
        window: steps; until so many were taken no loss jumps.
        limit: the run ends when so many of the last `window` steps were skipped.
    """

    factor: float | None = None
    window: int = 100
    limit: int = 10


@dataclass
class DiagnosticsConfig:
    """What is logged of a run beside its losses; no weight depends on it.

    Args:
        every: steps between two probes (0 = never): gradients by part and their angles, activations, attention.
            Each takes about as long as two steps more.
        peak_tflops: what one device can do at most, in 1e12 FLOP/s, for model FLOPs utilisation; null = what a matrix
            product reaches here.
    """

    every: int = 0
    peak_tflops: float | None = None


@dataclass
class ShardingConfig:
    """What FSDP2 sends, and what it holds (configs/accelerate/fsdp2*.yaml, hsdp*.yaml; other launchers ignore it).

    Args:
        param_dtype: in which the weights of layers, embedding and head are gathered: the run's precision, or `fp32`.
            The rows that a process keeps are fp32 in any case.
        reduce_dtype: in which their gradients are summed over processes: the run's precision, or `fp32`.
        gradients: with several micro-batches a step (`accumulation`), `sharded` sends gradients with each of them and
            keeps this process' rows, `whole` sends them once a step and keeps all (4 bytes a parameter) until then.
    """

    param_dtype: Literal["auto", "fp32"] = "auto"
    reduce_dtype: Literal["auto", "fp32"] = "auto"
    gradients: Literal["sharded", "whole"] = "sharded"


@dataclass
class WandbConfig:
    """Weights & Biases. It never stops a run: without a key or a network, metrics.jsonl alone is written."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "hybridgen"
    name: str | None = None


@dataclass
class TrainConfig:
    """A training run.

    Args:
        output_dir: gets `config.yaml`, `metrics.jsonl`, `diagnostics.png`, `samples/`, `state/step_N` and at the end
            `checkpoint/`.
        steps: optimizer steps.
        max_seconds: end by this many seconds of training, schedule included: progress is the larger of steps taken
            over `steps` and seconds over `max_seconds`. A resumed run is then no longer the same bit for bit.
        lora: train an adapter on a pretrained pipeline instead of its weights; `checkpoint/` is then that adapter.
        resume: `auto` continues from the newest intact state in output_dir, `never` starts over (and removes the old
            states), a path continues from that state.
        precision: `bf16` runs the model under autocast (weights and losses stay fp32); `auto` does where it pays.
        attention: `auto` (on CUDA flex attention, elsewhere SDPA), or what transformers calls it: `sdpa`, `eager`,
            `flex_attention`.
        compile: torch.compile each layer of the backbone, where a compiler is found (`distributed.speed`).
        gradient_checkpointing: recompute activations in the backward pass.
        threads: of torch on a CPU; null = leave them.
        accumulation: micro-batches of an optimizer step.
        clip: bound of the gradient's norm; null = none.
        dropout: share of what each layer's attention and feed-forward add that is dropped (Chameleon-7B: 0.1).
        trackers: others that get what wandb gets: `tensorboard` (in output_dir), `mlflow`, `trackio`.
        log_every, save_every: steps. `keep_last` states are kept.
        async_save: write states in the background, from a copy in main memory (12 bytes a parameter, ema: 16, divided
            by the processes that share the model), while training goes on; null = where it runs on an accelerator.
    """

    output_dir: FilePath
    steps: int
    data: DataConfig
    stage: Literal["model", "codec"] = "model"
    model: ModelConfig | None = None
    lora: LoraConfig | None = None
    vq_model: VQTrainingConfig | None = None
    vae: VAETrainingConfig | None = None
    codec: CodecPaths = field(default_factory=CodecPaths)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    groups: list[GroupConfig] = field(default_factory=list)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EMAConfig | None = None
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    trackers: list[Literal["tensorboard", "mlflow", "trackio"]] = field(default_factory=list)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    seed: int = 0
    max_seconds: float | None = None
    resume: FilePath = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    attention: str = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    threads: int | None = None
    accumulation: int = 1
    clip: float | None = 1.0
    dropout: float = 0.0
    log_every: int = 10
    save_every: int = 500
    keep_last: int = 2
    async_save: bool | None = None
