"""Pictures of many shapes in one row: the nearest size of so many tokens, without padding; caps on their noise."""

import math

import numpy as np
import pytest
import torch

from hybridgen.core.objectives import ObjectiveConfig, corrupt
from hybridgen.data.loading import RowLoader, collate
from hybridgen.data.mixture import Mixture
from hybridgen.image_processing_hybridgen import fit_size
from tests.data.in_memory import Listed, drawings, source_of
from tests.models import tiny_config
from tests.processors import assistant, image, picture, tiny_processor, user

PROCESSOR = tiny_processor()
SHAPES = [(16, 16), (64, 16), (16, 64), (33, 21), (300, 16), (1, 90)]


@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 256])
@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_no_grid_of_so_many_tokens_is_nearer(width, height, tokens):
    rows, columns = (side // 4 for side in fit_size(picture(width, height), tokens, 4))
    assert rows * columns <= tokens
    assert (rows + 1) * columns > tokens or rows * (columns + 1) > tokens  # none is wasted
    distance = abs(math.log(columns / rows / (width / height)))
    for other in range(1, tokens + 1):
        assert distance <= abs(math.log(tokens // other / other / (width / height))) + 1e-12


def test_usual_shapes_have_about_as_many_tokens_as_are_asked_for():
    for width, height in ((4, 3), (3, 2), (16, 9), (1, 1), (9, 16)):
        rows, columns = fit_size(picture(width * 16, height * 16), 256, 1)
        assert 0.9 * 256 <= rows * columns <= 256  # seen 0.93 for 16:9
        assert columns / rows == pytest.approx(width / height, rel=0.1)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_sizes_are_mixed_in_one_row_without_padding(path):
    side = {"diffusion": 4, "vq": 8}[path]
    shapes = Listed([[user("red"), assistant(image(seed, *SHAPES[seed % 4]))] for seed in range(8)])
    mixed = source_of(shapes, write=path, image_tokens=8, shuffle=False)
    documents = [mixed.document(cursor, PROCESSOR) for cursor in range(4)]
    batch = collate([documents], 96, 0, [0])
    sizes = [tuple(pixels.shape[1:]) for pixels in batch[f"{path}_images"]]
    assert sizes == [fit_size(picture(*shape), 8, side) for shape in SHAPES[:4]]
    assert len(set(sizes)) > 2
    placeholder = getattr(PROCESSOR.special_tokens, path)
    assert int((batch["input_ids"] == placeholder).sum()) == sum(h * w // side**2 for h, w in sizes)
    assert int((batch["document_ids"] >= 0).sum()) == sum(map(len, documents))


def test_the_picture_is_whole_where_its_shape_is_met():
    """Twice as wide as high: half of it would be cut off in a square, nothing in 2 x 4 tokens."""
    wide = source_of(Listed([[user("red"), assistant(image(3, 16, 8))]]), write="diffusion", image_tokens=8)
    pixels = wide.document(0, PROCESSOR).images[0].pixels
    assert tuple(pixels.shape) == (3, 8, 16)
    expected = np.asarray(picture(16, 8, 3)) / np.float32(127.5) - 1
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_noise_is_capped_by_source():
    tasks = [
        source_of(drawings(20), name="clear", write="diffusion", max_timestep=200),
        source_of(drawings(20), name="free", write="diffusion"),
        source_of(drawings(20), name="first", write="diffusion", order=0.0, loss_on="all", max_timestep=700),
    ]
    objective = ObjectiveConfig(image_first_max_timestep=500.0)
    settings, seen = tiny_config().diffusion_config, {200.0: [], 1000.0: [], 500.0: []}
    loader = RowLoader(Mixture(tasks), PROCESSOR, 2, 96, prefetch=0)
    for _ in range(20):
        batch = next(loader)
        given = [batch[f"diffusion_{name}"] for name in ("images", "noised", "rows")]
        rest = (batch["row_numbers"], batch["diffusion_image_first"], settings, objective, 0)
        caps = batch["diffusion_max_timesteps"]
        _, targets = corrupt(*given, *rest, max_timesteps=caps)
        for cap, first, timestep in zip(caps.tolist(), batch["diffusion_image_first"], targets.timesteps, strict=True):
            assert first == (cap == 700)
            seen[500.0 if first else cap].append(float(timestep))
    for cap, timesteps in seen.items():
        assert len(timesteps) > 20
        assert 0.8 * cap < max(timesteps) <= cap


def test_without_caps_a_batch_has_no_such_key_and_noise_is_as_it_was():
    batch = next(RowLoader(Mixture([source_of(drawings(5), write="diffusion")]), PROCESSOR, 1, 96, prefetch=0))
    assert "diffusion_max_timesteps" not in batch
    given = [batch[f"diffusion_{name}"] for name in ("images", "noised", "rows")]
    rest = (batch["row_numbers"], batch["diffusion_image_first"], tiny_config().diffusion_config, ObjectiveConfig(), 0)
    noisy, _ = corrupt(*given, *rest)
    capped, _ = corrupt(*given, *rest, max_timesteps=torch.full((len(noisy),), 1000.0))
    assert torch.equal(noisy, capped)
