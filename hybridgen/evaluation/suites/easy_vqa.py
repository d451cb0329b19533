"""easy_vqa: the 9,673 test questions of easy-VQA about 1,000 pictures of one coloured shape.

Source: PyPI easy-vqa 1.0 (MIT, Victor Zhou), read where it is installed (`data.easy_vqa`). The score is exact match, as
its author's; his model chooses among the thirteen answers, where ours writes one. He reports 99.5 % for his larger
convolutional model, trained on twice the data that the package holds. The answer that is most frequent for the wording
of a question is right in 67 %, which is where his smaller one is known to stay at times; the controls show the like.
"""

from PIL import Image

from hybridgen.core.pictures import read_picture
from hybridgen.data.easy_vqa import KINDS, read_split
from hybridgen.data.synthetic.questions import Question, score_answers
from hybridgen.evaluation.answers.exact import exact_match
from hybridgen.evaluation.controls import answer_with_controls, most_frequent
from hybridgen.evaluation.intervals import score_by_groups
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

CREDIT = "Pictures and questions are easy-VQA's (MIT, Victor Zhou)."
LABELS = {**KINDS, "all": "all questions"}


def check(work: Work) -> None:
    work.require_answering()
    work.count(len(read_split("test")))


def run(work: Work) -> Result:
    """The first questions, or all, answered through each path; scored by kind of answer."""
    asked = read_split("test")
    asked = asked[: work.count(len(asked))]
    read: dict = {file: read_picture(file) for file in dict.fromkeys(item.picture for item in asked)}
    pictures: list[Image.Image] = [read[item.picture] for item in asked]
    questions = [Question(item.kind, item.question, item.answer) for item in asked]
    constants = most_frequent([item.kind for item in asked], [[item.answer] for item in asked])

    def score(answers: list[str]) -> dict[str, dict]:
        def of_some(places: list[int]) -> dict[str, dict]:
            return score_answers([answers[i] for i in places], [questions[i] for i in places])

        return score_by_groups(of_some, [item.picture for item in asked])

    facts = {"split": "test", "samples": len(read), "questions": len(asked)}
    result = Result(facts=facts, labels=LABELS, credit=CREDIT)
    for path in work.answer_paths:
        controlled = answer_with_controls(work, path, pictures, [item.question for item in asked], score, constants)
        result.note(*controlled.notes)
        items = []
        for item, picture, answer in zip(asked, pictures, controlled.answers, strict=True):
            right = float(exact_match(answer, [item.answer]))
            verdict = {"all": right, item.kind: right}
            items.append(Item(item.question, {"shown": picture}, answer, item.answer, verdict))
        result.add("understanding", path, controlled.tallies, items, seconds=work.seconds(f"answer-{path}"))
    return result
