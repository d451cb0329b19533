"""The words dataset: letters as FreeType draws them, words that training never shows, and exact scores."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from hybridgen.data.synthetic import words
from hybridgen.data.synthetic.words import language, pictures, scoring

N = 24


@pytest.fixture(scope="module")
def specs():
    rng = np.random.default_rng(0)
    return [words.draw_spec(rng, held_out=i % 2 == 1) for i in range(N)]


@pytest.fixture(scope="module")
def images(specs):
    return words.render_batch(specs)


def contrast(a, b):
    """WCAG 2: of relative luminances."""
    shares = [np.array(words.COLOURS[name]) / 255 for name in (a, b)]
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in shares]
    low, high = sorted(c @ (0.2126, 0.7152, 0.0722) for c in linear)
    return (high + 0.05) / (low + 0.05)


def test_ink_stands_out_from_paper():
    assert min(contrast(dark, light) for dark in pictures.DARK for light in pictures.LIGHT) >= 4.5  # 4.9: red on pink


def test_a_letter_is_what_pillow_writes():
    """Oracle: ImageDraw, which lays text out by itself; a lone letter stands where its cell is centred."""
    for family in words.FAMILIES:
        for style in words.STYLES:
            font = pictures._font(family, style, 26)
            for letter in "agfjm":
                spec = words.WordsSpec((letter,), family, style, "black", "white")
                canvas = Image.new("L", (64, 64))
                ImageDraw.Draw(canvas).text((20, 40), letter, fill=255, font=font, anchor="ls")
                drawn = (250 - np.asarray(words.render(spec)).astype(int)[..., 0]) * 255 / (250 - 16)
                for a in (drawn, np.asarray(canvas).astype(float)):
                    assert a.any()
                boxes = [a[np.ix_(a.any(1), a.any(0))] for a in (np.rint(drawn), np.asarray(canvas).astype(float))]
                assert boxes[0].shape == boxes[1].shape
                assert abs(boxes[0] - boxes[1]).max() <= 2  # rounding of colours


@pytest.mark.parametrize("size", [32, 64, 100, 128])
def test_every_word_fits_and_lines_do_not_touch(specs, size):
    widest = [words.WordsSpec(("mmmmmmmm",), family, "bold", "black", "white") for family in words.FAMILIES]
    for spec in [*specs, *widest]:
        picture = np.asarray(words.render(spec, size)).astype(int)
        rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (rim == pictures.COLOURS[spec.paper]).all()
        if size < 64:  # where four pixels a letter are too few for lines that never touch
            continue
        rows = set(np.flatnonzero((picture != pictures.COLOURS[spec.paper]).any(axis=(1, 2))))
        layout, step = pictures.layout_of(spec, size), pictures.line_step(pictures.layout_of(spec, size).points)
        tops = [layout.bases[0] - round(pictures._BASE * layout.points) + i * step for i in range(len(spec.lines))]
        bands = [set(range(top, top + step)) for top in tops]
        assert rows <= set().union(*bands)
        assert all(rows & band for band in bands)
        for line, base, band in zip(spec.lines, layout.bases, bands, strict=True):
            for letter in line:  # no letter leaves the rows of its line
                cell = pictures.glyph(spec.family, spec.style, layout.points, letter)
                assert set(range(base - cell.top, base - cell.top + len(cell.ink))) <= band


def test_held_out_words_are_never_drawn_in_training():
    held_out, train = (set(words.words_of_split(split)) for split in ("held_out", "train"))
    assert not held_out & train
    assert held_out | train == set(words.vocabulary())
    assert 0.08 < len(held_out) / len(words.vocabulary()) < 0.12
    rng = np.random.default_rng(1)
    drawn = Counter(line for _ in range(1500) for line in words.draw_spec(rng).lines)
    assert not held_out & set(drawn)
    no_words = sum(count for word, count in drawn.items() if word not in train) / drawn.total()
    assert 0.33 < no_words < 0.43  # letters that are no word: spelling, not a list of words, is learnt
    assert all(set(words.draw_spec(rng, held_out=True).lines) <= held_out for _ in range(200))


def test_random_letters_never_spell_a_held_out_word_by_chance(monkeypatch):
    """As if every word that begins with a to m were held out: then none of the random letters begins so."""
    train = set(words.words_of_split("train"))
    words.draw_spec(np.random.default_rng(0))  # knows its words by now
    monkeypatch.setattr(pictures, "_is_held_out", lambda word: word[0] < "n")
    rng = np.random.default_rng(1)
    no_words = [line for _ in range(200) for line in words.draw_spec(rng).lines if line not in train]
    assert len(no_words) > 50
    assert min(no_words)[0] >= "n"


def test_captions_are_read_back_spelled_or_not(specs):
    rng = np.random.default_rng(2)
    for spec in specs:
        assert words.parse_caption(words.caption(spec)) == spec
        left = words.leave_open(spec, rng)
        assert None in left
        assert words.parse_caption(words.caption(left)) == left
    assert words.parse_caption('The word "Apple" in serif bold, blue on white.') == words.WordsSpec(
        ("apple",), "serif", "bold", "blue", "white"
    )
    assert words.parse_caption('the word "h i" on pink') == words.WordsSpec(("hi",), None, None, None, "pink")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a cat", "cannot read the caption 'a cat': say"),
        ('the word "ab3"', "'ab3' in .* cannot be drawn"),
        ('the word "abcdefghi"', "'abcdefghi' in .* cannot be drawn: a word has 1 to 8"),
        ('the word ""', "'' in .* cannot be drawn"),
        ('the word "abc" in huge', "'huge' in .* is no font: say one of plain"),
        ('the word "abc" in bold italic', "'italic' in .* is a second style"),
        ('the word "abc", cyan', "unknown colour 'cyan'"),
        ('the word "abc", red on blue', "red on blue in .* cannot be read"),
        ('the words "a", "b", "c" and "d"', "4 words in .* are too many"),
    ],
)
def test_captions_that_cannot_be_read_are_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        words.parse_caption(text)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"lines": ()}, "1 to 3 words"),
        ({"lines": ("Apple",)}, "'Apple' cannot be drawn"),
        ({"family": None}, "unknown family of fonts None"),
        ({"style": "huge"}, "unknown style of fonts 'huge'"),
        ({"ink": "cyan"}, "unknown colour of the ink 'cyan'"),
        ({"ink": "pink"}, "pink on white cannot be read"),
    ],
)
def test_specs_that_cannot_be_drawn_are_refused(change, fault):
    with pytest.raises(ValueError, match=fault):
        words.render(words.WordsSpec(("abc",), "sans", "plain", "black", "white")._replace(**change))
    with pytest.raises(ValueError, match="words of 16 pixels a side cannot be read: choose 32"):
        words.Source("train", "draw", 0, size=16)


def test_questions_are_answered_by_the_spec(specs):
    rng, asked = np.random.default_rng(3), Counter()
    for spec in specs * 20:
        for category, wording, answer in words.questions(spec, rng):
            assert category in words.CATEGORIES
            if category == "yes_no":
                (said,) = [part.replace(" ", "") for part in wording.split('"')[1::2]]
                within = said in ("".join(spec.lines) if "letter" in wording else spec.lines)
                assert answer == ("yes" if within else "no")
                asked[answer] += 1
    assert 0.4 < asked["yes"] / asked.total() < 0.6
    (one,) = [q for q in words.questions(specs[0]._replace(lines=("sky",)), rng) if q.category == "text"]
    assert (one.question, one.answer) == ("what is written?", "s k y")
    two = [q for q in words.questions(specs[0]._replace(lines=("red", "sky")), rng) if q.category == "text"]
    assert [(q.question, q.answer) for q in two] == [
        ("what is the first word?", "r e d"),
        ("what is the second word?", "s k y"),
    ]
    for form in ("s k y", "sky", '"Sky."', " S K Y"):
        assert words.score_answers([form], [one])["text"]["right"] == 1
    assert words.score_answers(["s k"], [one])["text"]["right"] == 0
    with pytest.raises(ValueError, match="2 answers were given to 1 questions"):
        words.score_answers(["sky", "sky"], [one])


def test_a_wrong_word_is_as_long_as_the_right_one_and_of_its_kind():
    rng, held_out = np.random.default_rng(4), set(words.words_of_split("held_out"))
    for word in ("apple", "zqxv", "a", "q", words.words_of_split("held_out")[0]):
        for _ in range(30):
            other = pictures.similar_word(word, rng)
            assert other != word
            assert len(other) == len(word)
            assert (other in held_out) == (word in held_out)


def test_records_are_those_of_their_index_and_survive_json():
    source = words.Source("held_out", "answer", 5, reasoning=True)
    record = source[7]
    assert words.spec_of(json.loads(json.dumps({"meta": record["meta"]}))) == source.spec(7) == words.spec_of(record)
    thoughts = [m["reasoning_content"] for m in record["messages"] if m.get("reasoning_content")]
    assert thoughts == [", ".join(map(words.spell, source.spec(7).lines))]
    assert words.Source("train", "draw", 0, open_captions=1.0)[3]["messages"][0]["content"][0]["text"].count('"') >= 2
    bold = words.Source("train", "draw", 0, oversampling={"bold": 1e6})
    assert {bold.spec(i).style for i in range(20)} == {"bold"}
    with pytest.raises(ValueError, match="oversampling of words has 'bald': did you mean bold"):
        words.Source("train", "draw", 0, oversampling={"bald": 2})


# ---------------------------------------------------------------------------------------------------- the exact scorer


def shares(images, specs):
    return {name: tally["share"] for name, tally in words.score_pictures(images, specs).items()}


def test_true_pictures_are_read_right_noisy_ones_too_and_others_not(images, specs):
    rng = np.random.default_rng(5)
    assert set(shares(images, specs).values()) == {1.0}
    noisy = np.clip(images + rng.normal(0, 40, images.shape), 0, 255).astype(np.uint8)
    assert shares(noisy, specs)["text"] == 1.0
    few = slice(12)
    blurred = [np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.7))) for image in images[few]]
    assert shares(np.stack(blurred), specs[few])["text"] >= 0.9  # of 24, 23 are right; a blur of 1 pixel leaves 81 %
    others = shares(np.roll(images[few], 1, axis=0), specs[few])
    assert others["text"] == others["picture"] == 0
    assert others["letters"] < 0.3
    noise = shares(rng.integers(0, 256, images[:4].shape, np.uint8), specs[:4])
    assert noise["text"] == noise["picture"] == 0


@pytest.mark.parametrize("size", [32, 100, 128])
def test_pictures_of_any_size_are_read(specs, size):
    some = [spec for spec in specs if max(map(len, spec.lines)) <= 5][:5]
    assert shares(words.render_batch(some, size), some)["text"] == 1.0


def test_where_a_word_begins_does_not_matter(images, specs):
    short = [i for i, spec in enumerate(specs) if len(spec.lines) == 1 and len(spec.lines[0]) <= 3][:3]
    assert shares(np.roll(images[short], 2, axis=2), [specs[i] for i in short])["text"] == 1.0


def test_dynamic_programming_finds_what_trying_all_words_finds():
    """Oracle: the squared error of every word of two letters, drawn, against a noisy picture."""
    rng = np.random.default_rng(6)
    spec = words.WordsSpec(("gy",), "roman", "italic", "black", "white")
    layout = pictures.layout_of(spec, 64)
    noisy = np.clip(np.asarray(words.render(spec)) + rng.normal(0, 90, (64, 64, 3)), 0, 255).astype(np.uint8)
    _, _, cover = scoring._colours_and_cover(noisy[None])
    top = layout.bases[0] - scoring._ascent(layout.points)
    errors = scoring._letter_errors(cover, layout.points, top)
    font = scoring._FONTS.index(("roman", "italic"))
    height = scoring._letters(layout.points).shape[0]
    best = (np.inf, "")
    for word in (a + b for a in pictures.ALPHABET for b in pictures.ALPHABET):
        cells = [np.asarray(pictures.glyph("roman", "italic", layout.points, letter).ink) for letter in word]
        tops = [pictures.glyph("roman", "italic", layout.points, letter).top for letter in word]
        for x in range(64 - sum(cell.shape[1] for cell in cells) + 1):
            drawn, at = np.zeros((height, 64), np.float32), x
            for cell, above in zip(cells, tops, strict=True):
                row = scoring._ascent(layout.points) - above
                drawn[row : row + cell.shape[0], at : at + cell.shape[1]] = cell / 255
                at += cell.shape[1]
            error = ((drawn - cover[0, top : top + height]) ** 2).sum()
            best = min(best, (error, word))
    widths = scoring._letters(layout.points).widths[font]
    two = {}
    for first in range(26):
        for second in range(26):
            for x in range(64 - widths[first] - widths[second] + 1):
                total = errors[0, x, font, first] + errors[0, x + widths[first], font, second]
                two[pictures.ALPHABET[first] + pictures.ALPHABET[second]] = min(
                    total, two.get(pictures.ALPHABET[first] + pictures.ALPHABET[second], np.inf)
                )
    assert min(two, key=two.get) == best[1]
    inside = (cover[0, top : top + height] ** 2).sum()
    assert inside + min(two.values()) == pytest.approx(best[0], rel=1e-4)
    unbounded = scoring._line_errors(errors, layout.points)[0, font]
    assert unbounded <= min(two.values()) + 1e-4


def test_what_is_left_open_is_right_and_the_rest_is_judged(images, specs):
    opened = [spec._replace(family=None, ink=None) for spec in specs[:4]]
    assert all(all(verdict.values()) for verdict in words.judge_pictures(images[:4], opened))
    wrong = [spec._replace(style=None, lines=("qqq",)) for spec in specs[:4]]
    for verdict in words.judge_pictures(images[:4], wrong):
        assert not verdict["text"]
        assert verdict["style"]
        assert not verdict["picture"]


def test_letters_are_counted_by_edits():
    assert words.right_letters(("aple",), ("apple",)) == (4, 5)
    assert words.right_letters(("zzzzzzzz",), ("apple",)) == (0, 5)
    assert words.right_letters(("red",), ("red", "sky")) == (3, 6)


def test_baselines_are_what_constant_answers_score():
    found = words.majority_baselines(60, 0, "held_out")
    source = words.Source("held_out", "answer", 0)
    papers = Counter(source.spec(i).paper for i in range(60))
    assert found["pictures"]["paper"] == papers.most_common(1)[0][1] / 60
    assert set(found["pictures"]) == set(scoring.SCORES)
    assert found["pictures"]["text"] < 0.1
    assert set(found["answers"]) == {*language.CATEGORIES, "all"}


@pytest.mark.parametrize(
    "images", [np.zeros((1, 64, 48, 3), np.uint8), np.zeros((1, 64, 64, 3)), np.zeros((64, 64, 3))]
)
def test_pictures_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match=r"pictures must be uint8 of shape \(n, S, S, 3\)"):
        words.nearest_specs(images)


def test_a_spec_for_each_picture(images, specs):
    with pytest.raises(ValueError, match="2 pictures cannot be compared with 1 specs"):
        words.score_pictures(images[:2], specs[:1])
