"""What a hole has to leave open, by the text around it; the hole is drawn as ║."""

from __future__ import annotations

import pytest

from dgemma_engine.nesting import Nesting

# Text around a hole, language, texts that fit into it, texts that do not.
HOLES = {
    "a call is closed by the fill where nothing behind does": (
        "def f():\n    x = g(║\n    return x\n",
        "python",
        ["a)", "a, h(b))"],
        ["a", "a))", "a]", "[a)"],
    ),
    "or by what follows on the line": (
        "def f():\n    x = g(║)\n",
        "python",
        ["a", "a, [b]", ""],
        ["a)", "(a"],
    ),
    "or on a later line": (
        "x = g(\n    ║\n    b,\n)\ny = 1\n",
        "python",
        ["a,", "h(c),"],
        ["h(", "a)"],
    ),
    "what only the suffix closes is opened": (
        "def f():\n    ║\n        'text'\n    )\n    return 1\n",
        "python",
        ["raise ValueError(", "g(a)("],
        ["return", "raise ValueError()", "x = ["],
    ),
    "the next statement closes nothing": (
        "def f():\n    a = [║\n    b = [1]\n    c = (2)]\n",
        "python",
        ["1]"],
        ["1"],
    ),
    "a bracket that was left open above is not this hole's": (
        "def f():\n    a = g(1\n    b = h(║\n    return b\n",
        "python",
        ["2)"],
        ["2", "2))"],
    ),
    "neither is one of another function": (
        "x = (\ndef f():\n    return g(║\n",
        "python",
        ["1)"],
        ["1", "1))"],
    ),
    "a string is closed where nothing behind does": (
        'def f():\n    g("a║\n    return 1\n',
        "python",
        ['")', ' b")'],
        ["", ' b"', ")", "b)"],
    ),
    "and left open where the suffix closes it": (
        'def f():\n    g("a║ b")\n    return 1\n',
        "python",
        ["", " c", " (", '" + "'],
        ['"', '")'],
    ),
    "it is begun where the suffix ends it": (
        "def f():\n    raise ║ failed')\n",
        "python",
        ["ValueError('it"],
        ["ValueError('it'", "ValueError", "ValueError(", "'it"],
    ),
    "brackets in strings and comments do not count": (
        "def f():\n    a = '('  # (\n    b = g(║  # )\n    return '['\n",
        "python",
        ["')')", r"'\')')"],
        ["')'"],
    ),
    "a comment ends with its line": (
        "def f():\n    a = ║\n",
        "python",
        ["1  # (", '"""'],
        ["(1  # )"],
    ),
    "and may not swallow what follows on the line": (
        "def f():\n    a = g(║, 1)\n",
        "python",
        ["b"],
        ["b  # and"],
    ),
    "blocks in braces": (
        "int f(int a) {\n    if (a) {\n        g(║\n    }\n    return 1;\n}\n",
        "c",
        ["'(');", "a); // ("],
        ["a;", "a); }", "a); {"],
    ),
    "neither a label nor a directive ends a function": (
        "int f(int a) {\n    if (a) {\n        g(║\n    }\nout:\n#if A\n#endif\n}\nint b;\n",
        "c",
        ["a);"],
        ["a;", "a); }"],
    ),
    "a lifetime is no string": (
        "fn f<'a>(x: &'a str) -> usize {\n    g(║\n}\n",
        "rust",
        ["'(', x)", "x)"],
        ["x", "x))"],
    ),
}


@pytest.mark.parametrize("name", HOLES)
def test_what_fits(name: str) -> None:
    text, language, fitting, other = HOLES[name]
    nesting = Nesting.between(*text.split("║"), language)
    assert nesting is not None
    assert [fill for fill in fitting if nesting.fits(fill)] == fitting
    assert [fill for fill in other if nesting.fits(fill)] == []


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("x = 1 )\ny = ║\n", "python"),
        ('def f():\n    """Says ║\n    """\n', "python"),
        ("x = 1  # so ║\n", "python"),
        ("let x = `a║`;\n", "javascript"),
        ("<p>It is║n't</p>\n", "javascriptreact"),
        ("(a ║", "plaintext"),
    ],
    ids=["broken", "docstring", "comment", "multi-line string", "JSX", "unknown language"],
)
def test_of_prose_and_broken_text_nothing_is_said(text: str, language: str) -> None:
    assert Nesting.between(*text.split("║"), language) is None


def test_a_suffix_that_may_be_cut_says_nothing_of_what_is_further_out() -> None:
    rows = "        [1, 2],\n" * 200
    nesting = Nesting.between("x = f(\n    [\n", rows, "python")
    assert nesting is not None
    assert nesting.fits("        [0, 0],")
    assert not nesting.fits("        [0, 0]]]]")
