"""The plot of a run: drawn whole from whatever metrics.jsonl holds."""

import json

import pytest
from PIL import Image

from hybridgen.core.figures import read_curves
from hybridgen.training.monitor import charts


def test_a_run_is_drawn(tmp_path):
    records = [
        {"step": step, "loss": 2.0 / step, "source/a b/loss": 1.0, "grad_norm": float("nan") if step == 3 else 1.0,
         "output_rms/layer_00": 10.0**step, "gradient_cosine/all": -0.5, "name": "text"}
        for step in range(1, 6)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert charts.draw(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > image.height > 100
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert (37, 99, 168) in colours  # the first curve's
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "plot.png"}
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves["grad_norm"][0] == [1, 2, 4, 5]
    assert list(charts._matching(curves, ("source/*/loss", "loss"))) == ["a b", "loss"]


def test_linear_scales_are_those_of_panels_there_are():
    assert set(charts.LINEAR) <= set(charts.PANELS)


def test_nothing_to_draw_is_no_picture(tmp_path):
    assert not charts.draw(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lr": 0.1}\n')
    assert not charts.draw(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_a_picture_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1}\n')
    with pytest.raises(OSError):
        charts.draw(tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl" / "plot.png")
