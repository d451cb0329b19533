"""What the demo shows before it trains: the model that comes with hybridgen draws and answers, in seconds.

Each prompt is drawn by every path that can, and what was drawn is asked about. One sheet, `OUT/first.png`.
"""

from collections.abc import Iterator
from pathlib import Path

from hybridgen.cli.running import best_device
from hybridgen.core.figures import Card, grid, save
from hybridgen.core.names import WRITING_PATHS
from hybridgen.core.recognition import SMALL, checkpoint_path
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.training.monitor.tracking import say

SHEET = "first.png"
PROMPTS = {  # what to draw -> what to ask about it
    "an elf wearing a green robe, blue background": "what is worn on the body?",
    "a crown, 3d style": "what is this?",
    "two red circles, white background": "how many circles are there?",
    'the word "h e l l o" in bold serif, blue on white': "what is written?",
}


def show(out: Path) -> Iterator[str]:
    """Yields the path of the sheet; nothing, and says so, where this installation has no such model."""
    folder = checkpoint_path(SMALL)
    if not folder.is_dir():
        say(f"{SMALL} is not in this installation, so nothing is shown before the training")
        return
    say(f"drawing and answering with {SMALL}, the model that comes with hybridgen")
    pipeline = best_device(load_pipeline(folder))
    pipeline.set_progress_bar_config(disable=True)
    save(grid(_cards(pipeline), columns=len(PROMPTS), title=f"drawn and answered by {SMALL}"), out / SHEET)
    yield str(out / SHEET)


def _cards(pipeline: HybridGenPipeline) -> list[Card]:
    """A row of cards for each path that draws: the picture, its prompt, a question about it and the answer."""
    paths = [path for path in WRITING_PATHS if path in pipeline.model.config.paths]
    reads = pipeline.model.config.paths[0]
    cards = []
    for path in paths:
        images = pipeline(list(PROMPTS), path=path, seed=0).images
        answers = pipeline.answer(images, list(PROMPTS.values()), path=reads, max_new_tokens=32)
        for image, (prompt, question), answer in zip(images, PROMPTS.items(), answers, strict=True):
            cards.append(Card({path: image}, (prompt, f"{question} {answer}")))
    return cards
