"""What a study is: a folder with configs of runs and a `study.yaml` that says which are compared, and by what.

title: What is asked
seeds: [0, 1, 2]
suite: dolls                       # how each checkpoint is scored (`hybridgen evaluate`); null = by held-out losses
budget: {flops: 4e13}              # of each run's training
before: [codec.yaml]               # runs that others stand on, made once
variants:                          # name -> its config (NAME.yaml unless it is given) and its budget, if another
  causal: {}
  alone: {config: draw.yaml, budget: {source: draw, as_in: joint}}
questions:
  - question: Do the patches of a picture have to see each other?
    arms: {bidirectional: base, causal: causal}         # label -> variant; the first is what others stand beside
    measures: {whole pictures: dolls/generation/diffusion/all_seven}
    papers: what others found
    expected: bidirectional        # the arm that they found better
"""

from dataclasses import dataclass, field
from pathlib import Path

from hybridgen.core.recognition import user_path
from hybridgen.training.config import strict

FILE = "study.yaml"


@dataclass
class BudgetConfig:
    """How long a run is; one of these.

    Args:
        flops: of training, forward and backward, as counted by `training.monitor.flops`.
        tokens: of training, all sources together.
        source, as_in: as many tokens of this source as the named variant has of it.
    """

    flops: float | None = None
    tokens: float | None = None
    source: str | None = None
    as_in: str | None = None

    def check(self, where: str) -> None:
        given = [name for name in ("flops", "tokens", "source") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "nothing"
            raise ValueError(f"{where} gives {named}; give one of flops, tokens, or source with as_in")
        if (self.source is None) != (self.as_in is None):
            raise ValueError(f"{where} gives one of source and as_in; they belong together")
        for name in ("flops", "tokens"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ValueError(f"{where}.{name} is {value}; it must be above 0, and finite")


@dataclass
class VariantConfig:
    """
    Args:
        config: file of the folder; None = the variant's name and `.yaml`.
        budget: None = the study's.
    """

    config: str | None = None
    budget: BudgetConfig | None = None


@dataclass
class QuestionConfig:
    """
    Args:
        arms: label -> variant; the first is the one that the others stand beside.
        measures: what it is called -> the number (`SUITE/generation/PATH/CATEGORY`, `SUITE/understanding/...`,
            `validation/...`), or arm -> number where arms have different ones.
        papers: what others found, for a reader.
        expected: the arm that they found better.
    """

    question: str
    arms: dict[str, str]
    measures: dict[str, str | dict]
    papers: str = ""
    expected: str | None = None

    def number(self, measure: str, arm: str) -> str:
        named = self.measures[measure]
        return named if isinstance(named, str) else named[arm]

    def check(self, where: str, variants: dict) -> None:
        if len(self.arms) < 2:
            raise ValueError(f"{where}.arms has {len(self.arms)}; a comparison takes at least 2")
        for label, variant in self.arms.items():
            if variant not in variants:
                raise ValueError(f"{where}.arms.{label} is {variant!r}; {strict.suggest(str(variant), variants)}")
        if self.expected is not None and self.expected not in self.arms:
            raise ValueError(
                f"{where}.expected is {self.expected!r}; it must be one of the arms {', '.join(self.arms)}"
            )
        if not self.measures:
            raise ValueError(f"{where}.measures is empty; name at least one number to compare by")
        for name, named in self.measures.items():
            if isinstance(named, dict) and set(named) != set(self.arms):
                raise ValueError(
                    f"{where}.measures.{name} names {', '.join(named)}; give a number for each of the arms"
                )
            kinds = {is_loss(number) for number in (named.values() if isinstance(named, dict) else [named])}
            if len(kinds) > 1:
                raise ValueError(f"{where}.measures.{name} compares a score with a loss; give numbers of one kind")


def is_loss(number: str) -> bool:
    """Whether less of it is better: held-out losses begin with `validation/`."""
    return number.startswith("validation/")


@dataclass
class StudyConfig:
    """See the module."""

    title: str
    budget: BudgetConfig
    variants: dict[str, dict | None]
    questions: list[QuestionConfig]
    summary: str = ""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    suite: str | None = None
    samples: int = 128
    before: list[str] = field(default_factory=list)

    def variant(self, name: str) -> VariantConfig:
        return strict.build(VariantConfig, self.variants[name] or {}, f"variants.{name}")

    def budget_of(self, name: str) -> BudgetConfig:
        return self.variant(name).budget or self.budget

    def file_of(self, name: str) -> str:
        return self.variant(name).config or f"{name}.yaml"


def read_study(folder: Path) -> StudyConfig:
    """The study in a folder, every name in it checked.

    Raises:
        ValueError: one sentence with what is wrong.
    """
    folder = user_path(folder)
    content = strict.read(folder / FILE)
    try:
        study = strict.build(StudyConfig, content)
        _check(study, folder)
    except ValueError as error:
        raise ValueError(f"{folder / FILE}: {error}") from error
    return study


def _check(study: StudyConfig, folder: Path) -> None:
    if not study.variants:
        raise ValueError("variants is empty; name at least two")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise ValueError(f"seeds is {study.seeds}; give different whole numbers of at least 0")
    if study.samples < 1:
        raise ValueError(f"samples is {study.samples}; it must be at least 1")
    for name in study.variants:
        budget = study.budget_of(name)
        budget.check(f"variants.{name}.budget" if study.variant(name).budget else "budget")
        if budget.as_in is not None:
            if budget.as_in not in study.variants:
                raise ValueError(
                    f"variants.{name}.budget.as_in is {budget.as_in!r}; {strict.suggest(budget.as_in, study.variants)}"
                )
            if study.budget_of(budget.as_in).source is not None:
                raise ValueError(f"variants.{name}.budget.as_in is {budget.as_in!r}, whose own budget is of that kind")
    for file in (*study.before, *(study.file_of(name) for name in study.variants)):
        if not (folder / file).is_file():
            raise ValueError(f"there is no config {file} beside it; name a file of the folder")
    for number, question in enumerate(study.questions):
        question.check(f"questions.{number}", study.variants)
