"""What a user names is found in a module or a file, or refused in a sentence."""

import pytest

from hybridgen.evaluation.named_objects import file_of, load_named


def test_a_function_a_class_and_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Found:\n    def __call__(self, x):\n        return 2 * x\ndef f(x):\n    return x\n"
    )
    assert load_named("reader", f"{tmp_path}/mine.py:f", "callable")(3) == 3
    assert load_named("reader", f"{tmp_path}/mine.py:Found", "callable")(3) == 6  # what the class makes
    assert load_named("reader", "math:floor", "callable")(2.5) == 2
    assert file_of(f"{tmp_path}/mine.py:f") == tmp_path / "mine.py"
    assert file_of("math:floor") is file_of("mine.py") is None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("floor", "detector 'floor' is no MODULE:NAME and no FILE.py:NAME"),
        ("math:", "is no MODULE:NAME"),
        ("no.such:thing", "detector no.such:thing cannot be loaded: No module named 'no'"),
        ("math:nothing", "cannot be loaded: module 'math' has no attribute 'nothing'"),
        ("nowhere.py:f", "detector nowhere.py:f cannot be loaded"),
        ("broken.py:f", "cannot be loaded: .*invalid syntax"),
        ("math:pi", "is of type float; it must be a function of a picture"),
    ],
)
def test_what_cannot_be_had_is_refused(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=sentence):
        load_named("detector", name, "a function of a picture")
