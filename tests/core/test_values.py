"""Values by their meaning: every spelling of a number is that number, and what is none is refused in one sentence."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from hybridgen.core import values

SPELLINGS = (int, np.int8, np.uint64, np.int64, np.array, torch.tensor)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_whole_number_in_any_spelling(spelling):
    number = values.whole_number("steps", spelling(3))
    assert (number, type(number)) == (3, int)
    scale = values.number("scale", spelling(3))
    assert (scale, type(scale)) == (3, int)


@pytest.mark.parametrize("spelling", [float, np.float64, np.float32, np.float16, np.array, torch.tensor, Fraction])
def test_a_number_in_any_spelling(spelling):
    number = values.number("scale", spelling(2.5))
    assert (number, type(number)) == (2.5, float)


NO_NUMBERS = {
    "a text": "3", "nothing": None, "true": True, "numpy's true": np.True_, "a tensor's true": torch.tensor(True),
    "NaN": float("nan"), "infinity": float("inf"), "less than nothing": -1, "a list": [3], "a table": {3: 3},
    "an array": np.array([3]), "a tensor": torch.tensor([3]), "a complex number": 3j, "an object": object(),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name_and_value(name):
    value = NO_NUMBERS[name]
    for check, kind in ((values.whole_number, "a whole number of at least 1"), (values.number, "a number of at least")):
        with pytest.raises(ValueError, match=rf"^setting is .*; it must be {kind}") as caught:
            check("setting", value)
        assert values.shown(values.plain(value)) in str(caught.value)


@pytest.mark.parametrize("value", [2.5, 2.0, np.float32(2), torch.tensor(2.0), Fraction(5, 2), 0, 8])
def test_fractions_are_no_whole_numbers_and_bounds_are_said(value):
    with pytest.raises(ValueError, match="it must be a whole number from 1 to 7"):
        values.whole_number("setting", value, 1, 7)


def test_a_long_value_is_shown_short_and_on_one_line():
    assert len(values.shown(np.zeros((9, 9)))) <= 60
    assert "\n" not in values.shown(np.zeros((9, 9)))


@pytest.mark.parametrize("several", [[3, 4], (3, 4), np.array([3, 4]), torch.tensor([3, 4])])
def test_one_for_each_in_any_spelling(several):
    assert values.each("size", several, 2) == [3, 4]
    assert values.one_or_each("size", several, values.whole_number) == [3, 4]
    with pytest.raises(ValueError, match="size is a list of 2 for 3 prompts; give one for each, or one for all"):
        values.each("size", several, 3)


def test_the_same_for_all():
    assert values.each("size", 3, 2) == [3, 3]
    assert values.each("name", "ab", 2) == ["ab", "ab"]
    assert values.one_or_each("size", np.int64(3), values.whole_number) == 3


@pytest.mark.parametrize("value", [None, [], 3, ["a", 3], {"a"}, b"a", np.array([1.0])])
def test_texts(value):
    assert values.texts("prompt", "a") == values.texts("prompt", ("a",)) == values.texts("prompt", np.array(["a"]))
    with pytest.raises(ValueError, match="^prompt is .*; give a text or a list of at least one text"):
        values.texts("prompt", value)


def test_flags():
    assert values.flag("on", np.True_) is True
    assert values.flag("on", torch.tensor(False)) is False
    for value in (1, None, "yes"):
        with pytest.raises(ValueError, match=f"on is {value!r}; it must be True or False"):
            values.flag("on", value)
