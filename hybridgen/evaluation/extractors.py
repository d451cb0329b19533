"""Networks that turn pictures into features for `distances`, with weights from the user's disk: nothing is downloaded.

Names matter here. A distance is called FID or KID only on the features of the Inception network that everybody's FID
uses, and CMMD only on the CLIP that its paper uses; on any other features it says so in its name. How pictures become
the size that a network wants changes the numbers as much as a method does, so that is part of an extractor, too.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hybridgen.evaluation.named_objects import load_named

INCEPTION_FROM = (
    "weights-inception-2015-12-05-6726825d.pth, 92 MB, of the release v0.2.0 of torch-fidelity on GitHub "
    "(toshas/torch-fidelity)"
)
CLIP_FROM = (
    "a folder of transformers from the Hugging Face hub, such as openai/clip-vit-large-patch14-336 (that of CMMD) or "
    "openai/clip-vit-base-patch32 (that of most CLIP scores)"
)
RESIZES = ("original", "antialiased")
_INCEPTION_SIZE = 299
AT_ONCE = 32  # pictures that a network is given together
_CMMD_VISION = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 336}


@dataclass
class Extractor:
    """Features of pictures.

    Args:
        name: what a distance on these features is said to be on.
        function: some pictures -> (n, d) features.
        facts: what `scores.json` says of it.
    """

    name: str
    function: Callable[[Sequence[Image.Image]], Tensor]
    facts: dict = field(default_factory=dict)

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(n, d) float64 on the CPU.

        Raises:
            ValueError: it does not give one row for each picture.
        """
        rows = []
        for start in range(0, len(pictures), AT_ONCE):
            some = [picture.convert("RGB") for picture in pictures[start : start + AT_ONCE]]
            with torch.no_grad():
                found = torch.as_tensor(self.function(some))
            if found.ndim != 2 or len(found) != len(some):
                raise ValueError(
                    f"extractor {self.name} must give (n, d) features, a row for each picture; for {len(some)} "
                    f"pictures it gave {tuple(found.shape)}"
                )
            rows.append(found.double().cpu())
        return torch.cat(rows)


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (n, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def inception(file: Path, resize: str = "original", device: torch.device | str = "cpu") -> Extractor:
    """The Inception of FID and KID, 2,048 features before its classifier, as torch-fidelity rebuilds it.

    Args:
        file: `INCEPTION_FROM`.
        resize: "original" = as the first FID code, bilinear in the network's own graph, which aliases when pictures are
            made smaller; "antialiased" = bicubic by Pillow beforehand, as clean-fid, whose values are not rounded to
            whole levels as ours are.

    Raises:
        ValueError: torch-fidelity is not installed, the file holds other weights, or there is no such `resize`.
    """
    if resize not in RESIZES:
        raise ValueError(f"there is no resizing {resize!r}; choose {' or '.join(RESIZES)}")
    _require("torch_fidelity", "torch-fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # of the extra `metrics`

    try:
        torch.load(file, weights_only=True, map_location="cpu")  # torch-fidelity itself would run what a pickle says
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:
        raise ValueError(f"{file} does not hold the weights of FID's Inception; give {INCEPTION_FROM}") from error
    network.to(device)

    def features(pictures: Sequence[Image.Image]) -> Tensor:
        if resize == "antialiased":
            side = (_INCEPTION_SIZE, _INCEPTION_SIZE)
            pictures = [picture.resize(side, Image.Resampling.BICUBIC) for picture in pictures]
        batches = [pictures] if len({picture.size for picture in pictures}) == 1 else [[one] for one in pictures]
        return torch.cat([network(pixels(batch).to(device))[0] for batch in batches])

    facts = {"weights": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "resize": resize}
    return Extractor("Inception", features, facts)


@dataclass
class Clip:
    """A CLIP of transformers: embeddings of pictures for distances, and how well pictures fit their captions."""

    folder: Path
    device: torch.device | str = "cpu"

    def __post_init__(self):
        """Raises ValueError where the folder holds no CLIP with its tokenizer."""
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        try:
            self._model = CLIPModel.from_pretrained(self.folder, local_files_only=True).eval().to(self.device)
            self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.folder} holds no CLIP with its tokenizer; give {CLIP_FROM}: {error}") from error

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def is_of_cmmd(self) -> bool:
        """Whether it has the shape of ViT-L/14 at 336 pixels."""
        vision = self._model.config.vision_config
        return all(getattr(vision, key) == value for key, value in _CMMD_VISION.items())

    @property
    def context(self) -> int:
        """How many tokens of a caption it reads, its beginning and end with them."""
        return self._model.config.text_config.max_position_embeddings

    def is_cut(self, caption: str) -> bool:
        """Whether a caption is longer than what it reads."""
        return len(self._tokenizer(caption, verbose=False)["input_ids"]) > self.context

    def extractor(self) -> Extractor:
        """Embeddings of length 1 of pictures that were brought to size as CMMD's public code does: bicubic, without
        antialiasing, nothing cut off."""

        def features(pictures: Sequence[Image.Image]) -> Tensor:
            side = self._model.config.vision_config.image_size
            resized = [
                torch.nn.functional.interpolate(pixels([picture]).float() / 255, size=(side, side), mode="bicubic")
                for picture in pictures
            ]
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self._processor.image_mean, self._processor.image_std))
            return self._embed((torch.cat(resized) - mean) / std)

        return Extractor(self.name, features, {"clip": self.name})

    def fit(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[float]:
        """The CLIP score of each picture and its caption: 100 times the cosine of their embeddings, at least 0.

        Pictures are brought to size as CLIP's own processor does. Captions longer than its context are cut (`is_cut`).
        """
        scores = []
        for start in range(0, len(pictures), AT_ONCE):
            some = [picture.convert("RGB") for picture in pictures[start : start + AT_ONCE]]
            words, cut = list(captions[start : start + AT_ONCE]), {"truncation": True, "max_length": self.context}
            tokens = self._tokenizer(words, padding=True, return_tensors="pt", **cut)
            with torch.no_grad():
                seen = self._embed(self._processor(some, return_tensors="pt")["pixel_values"])
                text = self._model.text_model(**tokens.to(self.device)).pooler_output
                said = torch.nn.functional.normalize(self._model.text_projection(text), dim=-1)
            scores += (100 * (seen * said).sum(-1)).clamp(min=0).tolist()
        return scores

    def _embed(self, values: Tensor) -> Tensor:
        pooled = self._model.vision_model(values.to(self.device)).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled), dim=-1)


def own_extractor(name: str) -> Extractor:
    """An extractor of one's own, MODULE:NAME: a callable, list of RGB pictures -> (n, d) array or tensor.

    Raises:
        ValueError: there is no such thing, or it is not callable.
    """
    found = load_named("extractor", name, "callable: pictures -> features")
    return Extractor(name.rpartition(":")[2], found, {"extractor": name})


def _require(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"this needs {package}, which is not installed: pip install 'hybridgen[metrics]'")
