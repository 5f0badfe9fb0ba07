"""The table of languages agrees with the grammars that are installed."""

from __future__ import annotations

import re
from pathlib import PurePath

import pytest

from dgemma_lsp import languages, syntax
from dgemma_lsp.languages import LANGUAGES, Language

WITH_GRAMMAR = [language for language in LANGUAGES if language.grammar is not None]
SAMPLES = {
    "python": "x = 1\n",
    "javascript": "let x = `a ${b}`;\n",
    "typescript": "let x: number = 1;\n",
    "typescriptreact": "let x: A = <a>b</a>;\n",
    "go": "package a\n",
    "rust": "fn f() {}\n",
    "c": "int x;\n",
    "cpp": "auto x = [] { return 1; };\n",
    "java": "class A {}\n",
    "ruby": "x = 1\n",
    "lua": "local x = 1\n",
    "shellscript": "f() { ls; }\n",
    "json": '{"a": 1}\n',
    "yaml": "a: 1\n",
    "toml": "a = 1\n",
    "html": "<p>a</p>\n",
    "css": "a { color: red; }\n",
    "markdown": "# A\n",
}


@pytest.mark.parametrize("language", WITH_GRAMMAR, ids=lambda language: language.name)
def test_every_grammar_loads_and_has_the_nodes_of_its_row(language: Language) -> None:
    """A renamed node would silently be one that is never found."""
    assert syntax.has_grammar(language)
    tree = syntax.parse(SAMPLES[language.name], language.name)
    assert tree is not None
    assert not tree.has_errors
    named = {
        *(*language.bodies, *language.functions, *language.documented, *language.wrappers),
        *(*language.strings, *language.interpolations, *language.comments),
        *(node for outer, inner, _ in language.embedded for node in (outer, inner)),
    }
    assert set() == {kind for kind in named if not syntax.has_node_kind(language, kind)}


def test_names_are_not_given_twice() -> None:
    """An id or an extension stands for one language."""
    for attribute in ("ids", "extensions"):
        names = [name for language in LANGUAGES for name in getattr(language, attribute)]
        assert len(names) == len(set(names)), attribute


def test_every_row_compiles() -> None:
    """The expressions of a row are ones."""
    for language in LANGUAGES:
        assert isinstance(language.placeholder, re.Pattern)
        assert isinstance(language.wants_operand, re.Pattern)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.PY", "python"),
        ("b.tsx", "typescriptreact"),
        ("Makefile", "makefile"),
        ("Dockerfile", "dockerfile"),
        ("LICENSE", "plaintext"),
    ],
)
def test_a_file_name_stands_for_a_language(path: str, expected: str) -> None:
    """By the extension, or by the whole name."""
    assert expected == languages.language_id_of_path(PurePath(path))


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("python", "python"),
        ("PY title=x", "python"),
        ("{.js}", "javascript"),
        ("rust,ignore", "rust"),
        ("", "plaintext"),
        ("mermaid", "plaintext"),
    ],
)
def test_a_fence_names_a_language(info: str, expected: str) -> None:
    """The first word behind it counts."""
    assert expected == languages.language_id_of_fence(info)
