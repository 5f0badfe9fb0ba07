"""What stands elsewhere between such ends, by the names that are around the hole."""

from __future__ import annotations

import pytest

from dgemma_engine import InfillRequest
from dgemma_engine.analogies import Analogies


def guesses(prefix: str, suffix: str, *nearby: str, most: int = 3) -> list[str]:
    return Analogies().guesses(InfillRequest(prefix, suffix, nearby=nearby), most)


def test_names_are_exchanged() -> None:
    """The line is that of another place, in the words of this one."""
    before = "def set_width(self, width):\n    self.width = check(width, 0)\n    return self\n\n"
    here = "def set_height(self, height):\n    "
    assert guesses(before + here, "\n    return self\n")[0] == "self.height = check(height, 0)"


@pytest.mark.parametrize(
    ("text", "prefix", "suffix", "guess"),
    [
        ("left = area(left, 2);\n", "right = area(", ", 2);\n", "right"),
        ("for (const row of rows) {\n", "for (const cell of ", ") {\n", "rows"),
        (
            "\nif a is None:\n    return b\nprint(b)\n",
            "if x is None:\n    return ",
            "\nprint(b)\n",
            "b",
        ),
    ],
)
def test_a_name_that_is_not_around_the_hole_stays(
    text: str, prefix: str, suffix: str, guess: str
) -> None:
    """In any language."""
    assert guesses("\n" + prefix, suffix, text)[0] == guess


def test_a_name_stands_for_one_other_throughout() -> None:
    """`copy(a, a)` is like `copy(b, b)` and unlike `copy(b, c)`."""
    like, unlike = "x = copy(p, q, 1, end)\n", "x = copy(p, p, 2, end)\n"
    assert guesses("\ny = copy(b, c, ", ", end)\n", unlike, like)[0] == "1"
    assert guesses("\ny = copy(b, b, ", ", end)\n", unlike, like)[0] == "2"


def test_keywords_stand_for_themselves() -> None:
    assert guesses("return ", "\n    del a\n", "yield 5\n    del a\n") == []
    assert guesses("return ", "\n    del a\n", "return 5\n    del b\n") == ["5"]


def test_a_word_that_is_begun_is_ended() -> None:
    text = "self.first = load(first)\nself.first.show()\n"
    assert "ad(second)" in guesses("self.second = lo", "\nself.second.show()\n", text)
    # As if it were whole, it is another name for `load`.
    assert guesses("self.second = xy", "\nself.second.show()\n", text) == ["(second)"]


def test_the_likest_place_comes_first() -> None:
    """The more words agree, and the more of them are the same."""
    texts = ["z = run(b, c, 3)\n", "x = run(slow, job, 2)\n", "x = run(slow, c, 1)\n"]
    found = guesses("\nx = run(slow, job, ", ")\n", *texts, most=9)
    assert [guess for guess in found if guess.isdigit()] == ["2", "1", "3"]
    assert guesses("\nx = run(slow, job, ", ")\n", *texts, most=1) == ["2"]


def test_nothing_is_guessed_over_the_end_of_a_line_or_a_text() -> None:
    assert guesses("f(a, ", ", b)\n", "f(a,\n 1, b)\n") == []
    assert guesses("f(a, ", ", b)\n", "f(a, ", "1, b)\n") == []
    assert guesses("f(a, ", ", b)\n", "f(a, , b)\n") == []


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("x", ""), ("", "x"), ("é = ", "ß")])
def test_little_text_is_no_error(prefix: str, suffix: str) -> None:
    assert guesses(prefix, suffix, "", "x = y\n") == []


def test_a_text_that_changed_is_read_again() -> None:
    analogies = Analogies()
    for value in ("1", "2"):
        request = InfillRequest("g(a, ", ", b)\n", nearby=(f"x = 0\ng(a, {value}, b)\n",))
        assert analogies.guesses(request, 3) == [value]
