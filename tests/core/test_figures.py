"""Pictures of results: nothing smoothed, nothing cut off, and charts that take the colours of the page."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from hybridgen.core import figures
from hybridgen.core.figures import Card, Panel

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(("side", "factor"), [(128, 4), (127, 3), (32, 1)])
def test_enlarging_repeats_pixels(side, factor):
    large = np.asarray(figures.scale_to_fit(NOISE, side))
    assert np.array_equal(large, np.asarray(NOISE).repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize(("size", "fitted"), [((300, 200), (96, 64)), ((1000, 1), (96, 1)), ((97, 97), (96, 96))])
def test_a_larger_picture_is_made_smaller(size, fitted):
    assert figures.scale_to_fit(Image.new("P", size), 96).size == fitted


def test_text_fits_its_width():
    text = "a minotaur wearing a gray robe and a white wizard hat, holding a gold tower shield, black background"
    lines = figures.wrap(text, 150)
    assert " ".join(lines) == text
    font = figures._font(14)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert figures.wrap("unbreakableunbreakableunbreakable", 10) == ["unbreakableunbreakableunbreakable"]


def test_a_grid_shows_every_picture():
    cards = [
        Card({"true": NOISE, "drawn": NOISE}, ("a caption that takes more than one line to write",)) for _ in range(5)
    ]
    page = np.asarray(figures.grid(cards, columns=2, title="title"))
    block = np.asarray(figures.scale_to_fit(NOISE, 128))
    count = 0
    # where the corner pixel is, compare the block
    for y, x in np.argwhere((page == block[0, 0]).all(-1)):
        count += np.array_equal(page[y : y + 128, x : x + 128], block)
    assert count == 10


def test_a_long_title_is_wrapped_not_cut():
    cards = [Card({"": NOISE}, ())]
    short, long = (
        figures.grid(cards, 1, title) for title in ("a", "a title of many words, more than a picture is wide")
    )
    assert long.width == short.width
    assert long.height > short.height
    margin = np.asarray(long)[: long.height - short.height, -20:]
    assert (margin == 255).all()


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one card"):
        figures.grid([], 2)
    with pytest.raises(ValueError, match="at least one panel"):
        figures.plot([])


def test_cards_side_by_side_pair_captions_and_pictures():
    other = Image.new("RGB", (32, 32))
    first, second = figures.side_by_side(["one", ""], {"true": [NOISE, other], "drawn": [other, NOISE]})
    assert (first.pictures, first.lines) == ({"true": NOISE, "drawn": other}, ("one",))
    assert (second.pictures, second.lines) == ({"true": other, "drawn": NOISE}, ())
    with pytest.raises(ValueError, match="zip"):
        figures.side_by_side(["one", "two"], {"true": [NOISE]})


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_written_whole(tmp_path, suffix):
    file = tmp_path / "new" / f"plot.{suffix}"
    figures.save(figures.plot([PANEL]), file)
    if suffix == "png":
        figures.save(figures.grid([Card({"a": NOISE})], 1), tmp_path / "new" / "page.png")
        for name in ("plot.png", "page.png"):
            Image.open(file.with_name(name)).verify()
        assert len(list(file.parent.iterdir())) == 2
    else:
        assert ET.parse(file).getroot().tag.endswith("svg")
    before = file.read_bytes()
    with pytest.raises(AttributeError):
        figures.save(object(), file)
    assert file.read_bytes() == before


def test_curves_are_read_as_they_were_logged(tmp_path):
    """Numbers that are no numbers, texts, and a line cut short by a kill are passed over."""
    records = [{"step": step, "loss": 2.0 / step, "nan": float("nan"), "name": "text"} for step in range(1, 4)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 6, "lo')
    assert figures.read_curves(file) == {"loss": ([1, 2, 3], [2.0, 1.0, 2.0 / 3])}
    assert figures.read_curves(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize("count", [300, 301, 2000])
def test_long_curves_are_thinned_and_keep_their_end(tmp_path, count):
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(json.dumps({"step": step, "loss": step}) for step in range(1, count + 1)))
    steps, values = figures.read_curves(file, points=300)["loss"]
    assert steps == values
    assert 150 < len(steps) <= 300
    assert steps[-1] == count
    assert len(set(np.diff(steps))) == 1


PANEL = Panel("text loss", {"training": ([1, 2, 3], [3.0, 2.0, 1.0]), "held out": ([2], [2.5])})


def test_svg_is_one_element_that_takes_the_pages_colours():
    svg = figures.panel_svg(PANEL)
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    for variable in ("--soft", "--rule", "--blue", "--rust"):
        assert f"var({variable})" in svg
    assert "#010203" not in svg
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"text loss", "step", "training", "held out"} <= {text.strip() for text in texts if text}
    assert "http" not in svg.replace("http://www.w3.org/", "")


def test_two_charts_share_no_id():
    ids = []
    for title in ("text loss", "code loss"):
        root = ET.fromstring(figures.panel_svg(Panel(title, PANEL.curves)))
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))


def test_charts_come_again_byte_for_byte():
    assert figures.panel_svg(PANEL) == figures.panel_svg(PANEL)


def test_a_plot_has_room_for_all(tmp_path):
    for name, panels in (("one", [PANEL]), ("four", [PANEL] * 4)):
        figures.save(figures.plot(panels, columns=3), tmp_path / f"{name}.png")
    one, four = (Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("one", "four"))
    assert four.size == (3 * one.width, 2 * one.height)
    corner = np.asarray(four)[-one.height :, -one.width :]
    assert (corner == 255).all()


@pytest.mark.parametrize("count", [1, 4, 10, 11, 40])
def test_each_curve_has_a_colour_and_the_legend_stays_short(count):
    figure = figures.plot([Panel("many", {str(i): ([1, 2], [1.0, i]) for i in range(count)})])
    assert len({str(line.get_color()) for line in figure.axes[0].lines}) == count
    assert len(figure.axes[0].get_legend().get_texts()) <= 8


def test_a_value_measured_once_is_seen():
    figure = figures.plot([PANEL])
    line, point = figure.axes[0].lines
    assert [drawn.get_marker() for drawn in (line, point)] == ["None", "o"]


@pytest.mark.parametrize(
    ("values", "scale"), [([1.0, 0.0], "linear"), ([1.0, 0.5], "linear"), ([9.0, 1.0], "log"), ([1e4, 1e-4], "log")]
)
def test_axes_are_logarithmic_where_it_helps_and_always_labelled(values, scale):
    figure = figures.plot([Panel("loss", {"training": ([1, 2], values)})])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    labels = [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert axes.get_yscale() == scale
    assert len([text for text in labels if text]) >= 2
