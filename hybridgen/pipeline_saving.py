"""The pipeline on disk and on the hub: what `HybridGenPipeline` does beside what every pipeline of diffusers does.

What a folder must contain is `checkpoints`' to say. The fact a newcomer gets wrong: transformers reads the same folder.
`config.json` beside `model_index.json` is a copy of the model's, and the only thing that its Auto classes need.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from hybridgen.checkpoints.loading import WEIGHTS, check_checkpoint, forget_origin
from hybridgen.checkpoints.model_card import model_card
from hybridgen.core.hub import upload

_HUB = ("commit_message", "private", "token", "create_pr")  # of `push_to_hub`, told to the hub


class Saving:
    """Mixed into a pipeline of diffusers whose `model` is ours."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """As everywhere in diffusers; a local folder is looked over first, so that an error names what is missing."""
        if Path(pretrained_model_name_or_path).is_dir():
            check_checkpoint(pretrained_model_name_or_path, given=tuple(kwargs))
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if Path(pretrained_model_name_or_path).is_dir() and not {*WEIGHTS, "processor"} & set(kwargs):
            pipeline.loaded_from(pretrained_model_name_or_path)
        return pipeline

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, push_to_hub: bool = False, **kwargs
    ) -> None:
        """As everywhere in diffusers, with a model card and what the Auto classes of transformers know the folder by.
        To save what was loaded changes no byte.

        Raises:
            ValueError: weights were to be written as pickles.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles; hybridgen saves safetensors only")
        folder = Path(save_directory)
        hub = {name: kwargs.pop(name) for name in (*_HUB, "repo_id") if name in kwargs}
        super().save_pretrained(folder, **kwargs)
        self.save_front(folder)
        if push_to_hub:
            upload(folder, **{"repo_id": folder.name} | hub)

    def save_front(self, folder: Path) -> None:
        """Write what stands beside the parts of a saved pipeline: the model's config once more, a card if none is."""
        forget_origin(folder)
        shutil.copyfile(folder / "model" / "config.json", folder / "config.json")
        if not (folder / "README.md").exists():
            card = model_card(self.model.config, self.model.num_parameters())
            (folder / "README.md").write_text(card, encoding="utf-8")

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """As everywhere in diffusers; a model card that the repository has is kept. Returns the commit's URL."""
        hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return upload(Path(folder), repo_id, **hub)
