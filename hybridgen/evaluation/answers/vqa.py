"""VQA accuracy: an answer is right as far as people gave it (Antol et al., ICCV 2015; VQA v2, VizWiz, TextVQA).

An answer that three of the others gave is right in full: min(number / 3, 1), averaged over leaving out each of ten
annotators in turn. With fewer than ten it is min(number / 3, 1) of all of them, so fewer than three can never be right.

Texts are compared after the official script's own cleaning (GT-Vision-Lab/VQA, vqaEval.py): its odd rules are kept
(punctuation becomes a space where no space is beside it, and nothing where one is or where a comma stands between
digits anywhere in the text). Unlike it, and like lmms-eval, texts are cleaned also where all annotators said the same.
"""

import re
from collections.abc import Sequence

ANNOTATORS = 10  # from so many on, each is left out once
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspellings() -> dict[str, str]:
    """Each contraction without one of its apostrophes -> the contraction; and one that the script has the wrong way."""
    spelt = {"somebody'd": "somebodyd"}
    for word in _CONTRACTIONS.split():
        for place, letter in enumerate(word):
            if letter == "'":
                spelt[word[:place] + word[place + 1 :]] = word
    return spelt


_SPELT = _misspellings()


def clean(text: str) -> str:
    """An answer as the official script compares it: punctuation, number words, articles and contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_thousands, cleaned = _DIGIT_COMMA.search(text) is not None, text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_thousands else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split())
    return " ".join(_SPELT.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """How right an answer is, 0 to 1.

    Args:
        annotators: the answer that each of them gave, the same ones repeated.
    """
    given, people = clean(answer), len(annotators)
    same = sum(clean(answer) == given for answer in annotators)
    if people < ANNOTATORS:
        return min(same / 3, 1.0)
    left_out_among_them, left_out_among_others = min((same - 1) / 3, 1.0), min(same / 3, 1.0)
    return (same * left_out_among_them + (people - same) * left_out_among_others) / people
