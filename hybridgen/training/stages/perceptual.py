"""A distance between pictures as a vision model sees them: the squared difference of its features, layer by layer.

It has the form of LPIPS (arXiv 1801.03924) without its layer weights, which were fitted to human judgement, and works
with any transformers vision model on disk. The model is frozen and in no state, but gradients pass through it to the
reconstruction.

Shapes: I pictures, H x W pixels; a feature map is (I, D, h, w) or (I, N, D).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from hybridgen.core.files import read_json
from hybridgen.core.values import one_line
from hybridgen.training.config.codec import PerceptualConfig

DEFAULTS = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}  # ImageNet's


class FeatureDistance:
    """
    Args:
        settings: which model, and which of its layers.
        side: of the pictures, to refuse a model that cannot read them.

    Raises:
        ValueError: the folder holds no vision model, or one that cannot be used in this way.
    """

    def __init__(self, settings: PerceptualConfig, side: int, device: torch.device):
        self.settings = settings
        self.model = load_vision_model(settings.path).to(device)
        pixels = _normalisation(Path(settings.path))
        self._mean, self._std = (torch.tensor(pixels[key], device=device).view(3, 1, 1) for key in DEFAULTS)
        self._check_readable(torch.zeros(1, 3, side, side, device=device))

    def __call__(self, decoded: Tensor, pictures: Tensor) -> Tensor:
        """(I, 3, H, W) twice, in [-1, 1] -> (I,).

        1. Features of both; of the picture without gradient.
        2. The features of each place as directions, and their squared distance (0 to 4).
        3. The mean over places, then over layers.
        """
        with torch.no_grad():
            targets = self.features(pictures)
        distances = []
        for feature, target in zip(self.features(decoded), targets, strict=True):
            channels = 1 if feature.ndim == 4 else -1
            difference = F.normalize(feature.float(), dim=channels) - F.normalize(target.float(), dim=channels)
            distances.append(difference.pow(2).sum(channels).flatten(1).mean(1))
        return torch.stack(distances).mean(0)

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (I, 3, H, W) in [-1, 1] -> the chosen hidden states."""
        states = self._hidden_states(pictures)
        chosen = range(len(states)) if self.settings.layers is None else self.settings.layers
        return [states[number] for number in chosen]

    def _hidden_states(self, pictures: Tensor) -> tuple[Tensor, ...]:
        if self.settings.size is not None:
            size = (self.settings.size, self.settings.size)
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        pixels = ((pictures + 1) / 2 - self._mean) / self._std
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states

    @torch.no_grad()
    def _check_readable(self, pictures: Tensor) -> None:
        """Refuse, before the first step, a model that does not take these pictures or has not these layers."""
        path, layers = self.settings.path, self.settings.layers
        try:
            states = self._hidden_states(pictures)
        except (ValueError, RuntimeError, TypeError) as error:
            reason = one_line(error)[:200]
            raise ValueError(
                f"perceptual.path {path!r} cannot read pictures of side {pictures.shape[-1]} ({reason}); set "
                "perceptual.size to the side it was trained with, or name another vision model"
            ) from None
        if not states:
            raise ValueError(f"perceptual.path {path!r} gives no hidden states; name another vision model")
        if layers is not None and (wrong := [each for each in layers if not -len(states) <= each < len(states)]):
            raise ValueError(f"perceptual.layers has {wrong[0]}, but {path!r} has the layers 0 to {len(states) - 1}")


def load_vision_model(folder: str) -> nn.Module:
    """A vision model of transformers, frozen, float32; of a model with a text half, its vision half."""
    try:
        model, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        reason = one_line(error)[:200]
        raise ValueError(
            f"perceptual.path {folder!r} holds no model that transformers can load ({reason}); give a folder that "
            "save_pretrained wrote"
        ) from None
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise ValueError(
            f"perceptual.path {folder!r} lacks {len(missing)} weights, {missing[0]} among them; features of random "
            "weights are none, give a whole model"
        )
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ValueError(f"perceptual.path {folder!r} holds a {type(model).__name__}, which sees no pictures")
    return model.eval().requires_grad_(False)


def _normalisation(folder: Path) -> dict:
    """Mean and standard deviation by which the model's pixels are normalised."""
    file = folder / "preprocessor_config.json"
    saved = read_json(file) if file.is_file() else {}
    return {key: saved.get(key) or default for key, default in DEFAULTS.items()}
