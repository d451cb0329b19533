"""The plot: drawn whole from whatever metrics.jsonl holds."""

import json

import pytest
from PIL import Image

from hybridgen.training.monitor import charts


def test_a_run_is_drawn(tmp_path):
    records = [
        {"step": step, "loss": 2.0 / step, "source/a b/loss": 1.0, "grad_norm": float("nan") if step == 3 else 1.0,
         "output_rms/layer_00": 10.0**step, "gradient_cosine/all": -0.5, "name": "text"}
        for step in range(1, 6)
    ]  # fmt: skip
    lines = [json.dumps(record) for record in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    assert charts.draw(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > image.height > 100
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert (31, 119, 180) in colours  # the first curve's
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    found = charts.curves(tmp_path / "metrics.jsonl")
    assert found["loss"] == ([1, 2, 3, 4, 5], [2.0, 1.0, 2.0 / 3, 0.5, 0.4])
    assert found["grad_norm"][0] == [1, 2, 4, 5]
    assert set(found) == {"loss", "source/a b/loss", "grad_norm", "output_rms/layer_00", "gradient_cosine/all"}
    assert list(charts._matching(found, ("source/*/loss", "loss"))) == ["a b", "loss"]


def test_long_curves_are_thinned_and_keep_their_end(tmp_path):
    lines = [json.dumps({"step": step, "loss": step}) for step in range(1, 2001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    steps, values = charts.curves(tmp_path / "metrics.jsonl")["loss"]
    assert steps == values
    assert len(steps) <= charts.POINTS
    assert steps[-1] == 2000


def test_nothing_to_draw_is_no_picture(tmp_path):
    assert not charts.draw(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lr": 0.1}\n')
    assert not charts.draw(tmp_path / "metrics.jsonl", tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_a_picture_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.1}\n')
    with pytest.raises(OSError):
        charts.draw(tmp_path / "metrics.jsonl", tmp_path / "missing" / "plot.png")
