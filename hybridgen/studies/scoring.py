"""How the checkpoints of a study are scored: a suite of `evaluation`, by the paths that each was trained for, as one
flat table of numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybridgen.core.files import write_json
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate_suites, scores_of
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.training.config.schema import TrainConfig


@dataclass(frozen=True)
class Scoring:
    """
    Args:
        suite: as `hybridgen evaluate --suite` takes it.
        samples, seed: of the suite; the same for all runs, so that all are asked the same.
        draw, answer: the paths to draw by and to answer through.
    """

    suite: str
    samples: int
    seed: int
    draw: tuple[str, ...]
    answer: tuple[str, ...]


def trained_paths(config: TrainConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths that a config trains to draw by and to answer through; of others nothing is asked."""
    sources = [source for source in config.data.sources if source.weight]
    draw = [source.write for source in sources if source.write]
    # of files, what their records ask is known to nobody before they are read
    answer = [path for source in sources if source.task in ("answer", "chat", None) for path in source.reads]
    return tuple(dict.fromkeys(draw)), tuple(dict.fromkeys(answer))


def score(pipeline: HybridGenPipeline, scoring: Scoring, folder: Path) -> dict[str, float]:
    """Scores as `SUITE/generation/diffusion/slots`: a share, or another number; `.../low` and `.../high` its interval.
    The whole of them goes to the folder's scores.json, and what is done so far is kept there, too."""
    results = evaluate_suites(
        pipeline,
        [scoring.suite],
        samples=scoring.samples,
        seed=scoring.seed,
        draw_paths=list(scoring.draw),
        answer_paths=[path for path in scoring.answer if path in pipeline.model.config.paths],
        settings={path: DrawSettings.of(path, pipeline.sampling_settings(path)) for path in scoring.draw},
        out=folder,
    )
    write_json(folder / "scores.json", scores_of(results, scoring.seed))
    return {name: value for suite, result in results.items() for name, value in flat(suite, result.scores)}


def flat(suite: str, scores: dict) -> Iterator[tuple[str, float]]:
    """Every tally of a suite's scores as a number with a name, and the ends of its interval."""
    for task, paths in scores.items():
        for path, result in paths.items():
            for category, tally in result["scores"].items():
                name = f"{suite}/{task}/{path}/{category}"
                yield name, tally["share"] if "share" in tally else tally["value"]
                yield from ((f"{name}/{end}", tally[end]) for end in ("low", "high") if end in tally)
