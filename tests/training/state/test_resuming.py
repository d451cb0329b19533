"""Going on with other settings: moments and averages follow the names of their parameters, and what is not as it was is
said, or refused before anything is loaded."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridgen.core.files import read_json, write_json
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.distributed.sharding import full
from hybridgen.training.state.saving import changes_since
from hybridgen.training.trainer import Trainer
from tests.training.processes import ProcessGroup, train_toy
from tests.training.test_trainer import assert_same, metrics_of, weights_of
from tests.training.toy import ToyLoader, ToyStage, config_of, train

ADAMW = {"optimizer": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.1}, "log_every": 1}
MUON = {"optimizer": {"name": "muon", "lr": 1e-2, "weight_decay": 0.1}, "log_every": 1}


def frozen(part: str) -> dict:
    return {"groups": [{"match": part, "frozen": True}]}


def slower(part: str) -> dict:
    return {"groups": [{"match": part, "lr_scale": 0.1}]}


def moments_of(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """Every moment of a trainer's optimizer, whole, by its parameter's name."""
    names = {id(p): name for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}
    state = trainer.optimizer.state
    return {names[id(p)]: {key: full(value).clone() for key, value in each.items()} for p, each in state.items()}


def restored(config: TrainConfig) -> Trainer:
    """A trainer that has read its state and taken no step."""
    torch.manual_seed(7)
    accelerator = make_accelerator(config)
    loader = ToyLoader(config.data.per_device_batch_size, accelerator.process_index, accelerator.num_processes)
    trainer = Trainer(config, ToyStage(loader), accelerator)
    trainer._restore()
    trainer.tracker.close()
    return trainer


def assert_kept(before: dict, after: dict, names: set[str]) -> None:
    """These parameters have the moments they had, and no others have any."""
    assert set(after) == names
    for name in names:
        assert_same(after[name], before[name])


def said_of(capfd) -> str:
    return capfd.readouterr().err


CHANGES = [  # settings before, after, whose moments begin anew
    (ADAMW | slower("heads.a.weight"), ADAMW | slower("heads.b.weight"), ""),  # groups of one size: by number they swap
    (ADAMW, {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "betas": [0.5, 0.6]}}, ""),
    (ADAMW, ADAMW | slower("heads.a"), ""),
    (ADAMW, ADAMW | frozen("embedding"), ""),
    (ADAMW | frozen("embedding"), ADAMW, r"embedding\.weight"),
    (ADAMW, MUON, r"stack\.layers\..*weight"),
    (MUON, ADAMW, r"stack\.layers\..*weight"),
]


@pytest.mark.parametrize(("first", "then", "anew"), CHANGES)
def test_moments_follow_their_names(tmp_path, capfd, first, then, anew):
    before = moments_of(train(config_of(tmp_path, steps=4, **first)))
    said_of(capfd)
    trainer = restored(config_of(tmp_path, steps=8, **then))
    said = said_of(capfd)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    new = {name for name in trainable if anew and re.fullmatch(anew, name)}
    assert_kept(before, moments_of(trainer), trainable - new)
    assert bool(new) == ("the moments of " in said)
    if new:
        assert "begin anew:" in said
        assert min(new) in said or max(new) in said
    optimizer = trainer.config.optimizer
    for group in trainer.optimizer.param_groups:
        assert group["betas"] == tuple(optimizer.betas)
        assert group["weight_decay"] in (0.0, optimizer.weight_decay)
        assert group["base_lr"] in (optimizer.lr, pytest.approx(0.1 * optimizer.lr))
    assert train(config_of(tmp_path, steps=8, **then)).step == 8


def older(state: Path) -> Path:
    """As versions wrote it that filed moments by number alone."""
    run, sizes = read_json(state / "trainer.json"), read_json(state / "manifest.json")
    del run["parameters"]
    write_json(state / "trainer.json", run)
    write_json(state / "manifest.json", sizes | {"trainer.json": (state / "trainer.json").stat().st_size})
    return state


def test_states_of_older_versions(tmp_path, capfd):
    """They go on to the bit, by name where the groups changed; where other parts are frozen they are refused."""
    whole, first = tmp_path / "whole", ADAMW | slower("heads.a.weight")
    train(config_of(whole, steps=8, **first))
    run = tmp_path / "run"
    before = moments_of(train(config_of(run, steps=4, save_every=4, **first)))
    state = older(run / "state/step_000004")
    trainer = restored(config_of(run, steps=8, **ADAMW, **slower("heads.b.weight")))
    assert_kept(before, moments_of(trainer), set(before))
    said_of(capfd)
    with pytest.raises(ValueError, match=r"step_000004 numbers its moments.*groups freeze other parts now \(heads.b"):
        train(config_of(run, steps=8, **ADAMW, **frozen("heads.b")))
    assert "going on" not in said_of(capfd)
    train(config_of(run, steps=8, **first))
    assert f"going on from {state}, 4 of 8 steps done" in said_of(capfd)
    assert [line["loss"] for line in metrics_of(run)][4:] != []


def test_an_older_state_is_the_uninterrupted_run(tmp_path):
    """Stopped after 4 of 8 steps; its file without names goes on as if nothing had been."""
    train(config_of(tmp_path / "whole", steps=8, **MUON))
    state = tmp_path / "whole/state"
    (tmp_path / "run/state").mkdir(parents=True)
    (state / "step_000004").rename(tmp_path / "run/state/step_000004")
    older(tmp_path / "run/state/step_000004")
    train(config_of(tmp_path / "run", steps=8, **MUON))
    assert_same(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))


def restore_and_compare(folder: Path, changes: dict, before: str) -> None:
    """In each process of a group: what it read equals the moments saved by another run."""
    trainer = restored(config_of(folder, **changes))
    ours, theirs = moments_of(trainer), torch.load(before)
    if trainer.accelerator.is_main_process:
        print("SAME" if all(torch.equal(ours[n][k], theirs[n][k]) for n in ours for k in ours[n]) else "OTHER")
        print("WITHOUT", sorted(set(theirs) - set(ours)))


@pytest.mark.parametrize(
    ("wrote", "reads"), [("fsdp2", "fsdp2"), ("fsdp2", "single"), ("ddp", "fsdp2"), ("single", "ddp")]
)
def test_names_in_every_form(tmp_path, wrote, reads):
    """Whole or sharded, by one process or two: groups changed, a part frozen, and Muon's matrices given to AdamW."""
    count = {"single": 1, "ddp": 2, "fsdp2": 2}
    rows = {form: {"data": {"sources": [], "per_device_batch_size": 4 // count[form]}} for form in count}
    first = MUON | {"steps": 2, "ema": {"decay": 0.9}} | slower("heads.a.weight") | rows[wrote]
    folder = tmp_path / "run"
    ProcessGroup(tmp_path / "logs", train_toy, count[wrote], wrote, folder=folder, changes=first).finish()
    # what was saved, read back by a run of the same form and settings
    ProcessGroup(tmp_path / "logs1", dump_moments, count[wrote], wrote, folder=folder, changes=first).finish()
    groups = [{"match": "heads.b.weight", "lr_scale": 0.1}, {"match": "embedding", "frozen": True}]
    then = ADAMW | {"steps": 4, "ema": {"decay": 0.9}, "groups": groups} | rows[reads]
    arguments = {"folder": folder, "changes": then, "before": str(folder / "moments.pt")}
    said = ProcessGroup(tmp_path / "logs2", restore_and_compare, count[reads], reads, **arguments).finish()
    assert "SAME" in said
    matrices = [f"stack.layers.{block}.layers.{layer}.weight" for block in (0, 1) for layer in (0, 1)]
    assert f"WITHOUT {['embedding.weight', *matrices]}" in said
    assert "the moments of stack.layers.0.layers.0.weight" in said
    assert "begin anew: " in said
    assert "the averages of embedding.weight are dropped: frozen now" in said


def dump_moments(folder: Path, changes: dict) -> None:
    trainer = restored(config_of(folder, **changes))
    moments = moments_of(trainer)
    if trainer.accelerator.is_main_process:
        torch.save(moments, folder / "moments.pt")


def test_averages_follow_their_names(tmp_path, capfd):
    """A part that is trained from now on starts its average at its weights; so does a whole average begun later."""
    ema = {"ema": {"decay": 0.9}}
    train(config_of(tmp_path, steps=4, **ADAMW, **ema, **frozen("heads.b")))
    said_of(capfd)
    trainer = restored(config_of(tmp_path, steps=8, **ADAMW, **ema))
    assert "the averages of heads.b.weight, heads.b.bias begin anew" in said_of(capfd)
    weights, averages = dict(trainer.model.named_parameters()), trainer.ema.state_dict()
    saved = weights_of(tmp_path, "state/step_000004/ema.safetensors")
    assert torch.equal(averages["heads.b.weight"], weights["heads.b.weight"].detach())
    assert_same({name: averages[name] for name in saved}, saved)

    train(config_of(tmp_path / "later", steps=4, **(ADAMW | {"ema": None})))
    trainer = restored(config_of(tmp_path / "later", steps=8, **ADAMW, **ema))
    assert_same(trainer.ema.state_dict(), {name: p.detach() for name, p in trainer.model.named_parameters()})
    assert "anew" not in said_of(capfd)


def test_another_accumulation_after_an_odd_number_of_batches(tmp_path):
    """accelerate counts micro-batches; with its count of 3 going on, no step of 2 was ever taken."""
    train(config_of(tmp_path, steps=3, accumulation=1, save_every=3, **ADAMW))
    before = weights_of(tmp_path, "state/step_000003/model.safetensors")
    trainer = train(config_of(tmp_path, steps=4, accumulation=2, **ADAMW))
    assert not torch.equal(trainer.model.heads["a"].weight.detach(), before["heads.a.weight"])
    assert moments_of(trainer)["heads.a.weight"]["step"] == 4


class OtherPlace(ToyLoader):
    def load_state_dict(self, state):
        raise ValueError("the saved position is of other sources")


def test_refusals_come_before_anything_is_said_or_loaded(tmp_path, capfd):
    train(config_of(tmp_path, steps=4, **ADAMW))
    said_of(capfd)
    config = config_of(tmp_path, steps=8, **ADAMW)
    stage = ToyStage(OtherPlace(4), seed=5)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    with pytest.raises(ValueError, match="of other sources"):
        Trainer(config, stage, make_accelerator(config)).run()
    assert said_of(capfd) == ""
    assert "steps: 4\n" in (tmp_path / "config.yaml").read_text()  # still that of the run that is there
    assert_same(dict(stage.model.state_dict()), before)


def test_every_setting_that_changed_is_said_and_none_that_is_new(tmp_path):
    """A state that is older than a setting was made with its default; also where alone such a setting is refused."""
    config = config_of(tmp_path, model={"text_config": {"hidden_size": 8}}, optimizer={"name": "adamw", "lr": 1e-2})
    saved = json.loads(json.dumps(asdict(config)))
    del saved["diagnostics"], saved["spike"]["factor"], saved["model"]["embedding_std"], saved["gradient_checkpointing"]
    for key in ("diffusion", "vq", "scheduler"):
        del saved["sampling"][key]
    saved["sampling"] |= {"steps": 20, "guidance": 2.0, "guidance_vq": 1.0, "temperature_vq": 1.0}
    assert changes_since(config, saved, tmp_path) == []
    drawn = config_of(
        tmp_path, model=saved["model"], optimizer=saved["optimizer"], sampling={"every": 6, "guidance": 3.0}
    )
    assert changes_since(drawn, saved, tmp_path) == ["sampling.guidance: 2.0 -> 3.0"]
    model = {"text_config": {"hidden_size": 8}}
    then = config_of(tmp_path, model=model, steps=13, optimizer={"name": "muon", "eps": 1e-5, "lr": 1e-2})
    told = changes_since(then, saved, tmp_path)
    assert told == ["steps: 12 -> 13", "optimizer.name: 'adamw' -> 'muon'", "optimizer.eps: 1e-08 -> 1e-05"]
    wider = config_of(tmp_path, model={"text_config": {"hidden_size": 16}, "embedding_std": 1.0})
    with pytest.raises(ValueError, match=r"hidden_size: 8 -> 16; model.embedding_std: None -> 1.0\); choose"):
        changes_since(wider, saved, tmp_path)


def test_of_a_source_that_changed_only_the_key_is_said(tmp_path):
    """Also with weights that change, whose steps are texts in a state."""
    sources = [{"source": "emoji", "task": "draw", "weight": {0: 0.5, 10: 0.25}}, {"source": "dolls", "task": "answer"}]
    config = config_of(tmp_path, data={"sources": sources, "per_device_batch_size": 4})
    saved = json.loads(json.dumps(asdict(config)))
    for source in saved["data"]["sources"]:
        del source["long"], source["reasoning"]
    assert changes_since(config, saved, tmp_path) == []
    sources[0]["weight"] = {0: 0.5, 10: 0.5}
    then = config_of(tmp_path, data={"sources": sources, "per_device_batch_size": 4})
    assert changes_since(then, saved, tmp_path) == ["data.sources.0.weight.10: 0.25 -> 0.5"]
    fewer = config_of(tmp_path, data={"sources": sources[:1], "per_device_batch_size": 4})
    (told,) = changes_since(fewer, saved, tmp_path)
    assert told.startswith("data.sources: [")


class MoreData(ToyLoader):
    def changes(self, state):
        return ["toy has 9 records, 4 before"]


def test_other_data_are_said_with_the_other_settings(tmp_path, capfd):
    train(config_of(tmp_path, steps=4, **ADAMW))
    said_of(capfd)
    config = config_of(tmp_path, steps=8, **ADAMW)
    Trainer(config, ToyStage(MoreData(4)), make_accelerator(config))._restore()
    said = [line for line in said_of(capfd).splitlines() if line]
    assert "steps: 4 -> 8; the data are not the same either: toy has 9 records, 4 before; the run goes on" in said[0]
    assert "going on from" in said[1]
    assert len(said) == 2


class StoppedAt(ToyStage):
    """A SIGTERM comes in step `at`."""

    at, trainer = -1, None

    def begin_step(self, step, progress):
        if step + 1 == self.at:
            self.trainer._stop.request()


@pytest.mark.parametrize("at", [4, 6, 12])
def test_what_was_due_when_the_signal_came_is_made_up_for(tmp_path, at):
    """Validation every 4 steps, samples every 6: the run that goes on logs and draws what the uninterrupted one did."""
    train(config_of(tmp_path / "whole"))
    torch.manual_seed(7)
    config = config_of(tmp_path / "run")
    stage = StoppedAt(ToyLoader(4))
    stage.trainer = Trainer(config, stage, make_accelerator(config))
    stage.at = at
    assert not stage.trainer.run()
    assert not (tmp_path / "run/checkpoint").exists()
    assert train(config).step == 12

    def merged(run: str) -> dict[int, dict]:
        lines: dict[int, dict] = {}
        for line in metrics_of(tmp_path / run):
            lines.setdefault(line["step"], {}).update(line)
        kept = ("loss", "validation/loss", "validation/twice_a")
        return {step: {key: line.get(key) for key in kept} for step, line in lines.items()}

    assert merged("run") == merged("whole")
    drawn = [sorted(path.name for path in (tmp_path / run / "samples").iterdir()) for run in ("run", "whole")]
    assert drawn[0] == drawn[1] == ["step_000006.png", "step_000012.png"]
    assert_same(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))
    assert math.isfinite(json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]).get("loss", 0.0))
