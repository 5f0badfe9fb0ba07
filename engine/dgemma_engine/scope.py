"""Which names may stand in a hole of Python: those that are given around it, and Python's own.

Names of the module, of the function around the hole and of what that holds; not those of other
functions. Goes by indentation and a few patterns, since a file that is being written seldom
parses, and is generous: a name that is given anywhere in the same function may stand everywhere in
it. Of the true texts of 1,603 holes in unseen packages none has another name. `left_to_right.py`
asks. Standard library only.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .nesting import PYTHON, last_outer

_BUILT_IN = frozenset(
    (
        *dir(builtins),
        *keyword.kwlist,
        *keyword.softkwlist,
        *("__annotations__", "__class__", "__file__", "__path__"),
    )
)
# Of a prefix or suffix: one that is longer may be cut, and what is missing stands in other texts.
_WHOLE_PREFIX, _WHOLE_SUFFIX = 4000, 1500
_MOST_PIECES = 2
# Of the hole's line, characters before and behind it that are looked at.
_MOST_BEFORE, _MOST_BEHIND = 400, 200
_MARK = "\0"  # stands where something quoted begins

_QUOTED = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)|'
    r"'''(?:\\.|[^\\])*?(?:'''|\Z)|"
    r'"(?:\\.|[^"\\\n])*(?:"|(?=\n)|\Z)|'
    r"'(?:\\.|[^'\\\n])*(?:'|(?=\n)|\Z)|"
    r"#[^\n]*",
    re.DOTALL,
)
_NAME = re.compile(
    rf"(?<![\w.])[^\W\d]\w*(?![\w{_MARK}])"
)  # not what a string's quote has before it
_DEFINITION = re.compile(r"\s*(?:async\s+)?(def|class)\b\s*(\w*)")
_ALL_IMPORTED = re.compile(r"^[ \t]*from\b.*\bimport[ \t]*\*", re.MULTILINE)
# Lines whose names are given by them, or of which nobody knows.
_GIVING_LINE = re.compile(r"\s*(?:(?:async\s+)?def|class|import|from|global|nonlocal|case|type)\b")
_GIVEN = re.compile(
    r"\bfor\s+(?P<loop>.+?)\s+in\b|\bas\s+(?P<alias>\(?[\w\s,]*)|(?P<walrus>\w+)\s*:=|"
    r"\blambda\b(?P<parameters>[^:\n]*)|"
    r"^[ \t]*(?P<targets>[\w \t,*()]+?)[ \t]*(?::[^=\n]*)?=(?!=)|"
    r"^[ \t]*(?P<line>(?:(?:async\s+)?def|class|import|from|global|nonlocal|case)\b.*)$",
    re.MULTILINE,
)
# Before a name that is given there, to be read from the start of its line.
_BEFORE_GIVEN = re.compile(r".*\b(?:for\s+(?:(?!\bin\b)[\w\s,()*])*|as\s+\(?|lambda\b[^:]*)$")
_BEFORE_TARGET = re.compile(r"\s*(?:\*?\w+\s*,\s*)*\*?$")


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that may stand in a hole.

    Attributes:
        names: of them.
        line: the hole's line before it, without what is quoted.
        head: the line behind it.
    """

    names: frozenset[str]
    line: str
    head: str

    @classmethod
    def around(cls, prefix: str, suffix: str, nearby: Sequence[str] = ()) -> Scope | None:
        """Of a hole in Python; None within quotes, comments and headers, and after `import *`.

        Args:
            nearby: texts; where the prefix or the suffix may be cut the first have the rest.
        """
        start = prefix.rfind("\n") + 1
        line, (head, _, rest) = prefix[start:], suffix.partition("\n")
        code = _code_before(prefix)
        if code is None or _GIVING_LINE.match(line):
            return None
        is_cut = len(prefix) > _WHOLE_PREFIX or len(suffix) > _WHOLE_SUFFIX
        rests = tuple(nearby[:_MOST_PIECES]) if is_cut else ()
        if any(map(_ALL_IMPORTED.search, (prefix, suffix, *rests))):
            return None
        before, after = code[:start].split("\n")[:-1], _code(rest).split("\n")
        own = code[start:]
        if _is_in_header(before, own):
            return None
        indent = _indent(line)
        if not line.strip():  # what will be written there may be indented further
            for others in (reversed(before), after):
                nearest = next(filter(str.strip, others), None)
                indent = max(indent, 0 if nearest is None else _indent(nearest) + 1)
        names = set(_outer_names((*before, *after)))
        names |= _names_around(before, after, indent)
        names.update(_NAME.findall(re.sub(r"\w+\Z", "", own)))
        names.update(_NAME.findall(re.sub(r"\A\w+", "", _code(head))))
        known = _BUILT_IN.union(names, *map(_outer_names_of, rests))
        return cls(known, own[-_MOST_BEFORE:], head[:_MOST_BEHIND])

    def first_unknown(self, text: str) -> str | None:
        """The first name in a text for the hole that is neither known nor given there.

        It may begin before the hole, or end behind it.
        """
        start = len(self.line)
        code = _code(self.line + text + self.head)
        given: set[str] | None = None
        for found in _NAME.finditer(code):
            if found.end() <= start or found[0] in self.names:
                continue
            if found.start() >= start + len(text):
                return None
            if given is None:
                given = set(_given(code))
            if found[0] not in given and not _is_given_here(code, found):
                return found[0]
        return None


def _code(text: str) -> str:
    """A text without what is quoted or a comment, a mark in its place; as long as it was."""
    return _QUOTED.sub(lambda found: _MARK + _blank(found[0][1:]), text)


def _blank(text: str) -> str:
    """As long, and as many lines."""
    if "\n" not in text:
        return " " * len(text)
    return "\n".join(" " * len(line) for line in text.split("\n"))


def _code_before(prefix: str) -> str | None:
    """As `_code`, of a prefix that may have been cut within quotes; None if it ends within some."""
    if not _code(prefix[last_outer(prefix, PYTHON) :] + "x").endswith("x"):
        return None
    # What was taken for the beginning of a docstring may be its end.
    for cut in (0, prefix.find('"""') + 3, prefix.find("'''") + 3):
        code = _blank(prefix[:cut]) + _code(prefix[cut:] + "x")
        if code.endswith("x"):
            return code[:-1]
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _begins(line: str) -> int | None:
    """How far a line is indented that may begin a statement; None for blank and closing ones."""
    indent = _indent(line)
    return indent if PYTHON.statement.match(line, indent) else None


def _is_in_header(before: Sequence[str], line: str) -> bool:
    """Whether a line that begins behind some others stands in the brackets of a definition or an
    import.
    """
    num_open = line.count("(") - line.count(")")
    if num_open > 0:
        return False
    for other in reversed(before):
        num_open += other.count("(") - other.count(")")
        if num_open > 0 or _DEFINITION.match(other):
            return num_open > 0 and bool(_GIVING_LINE.match(other))
    return False


def _names_around(before: Sequence[str], after: Sequence[str], indent: int) -> set[str]:
    """The names in the outermost function around a hole, in its class where there is none.

    Args:
        indent: of the hole's line.
    """
    first, found = len(before), ""
    for index in range(len(before) - 1, -1, -1):
        begins = _begins(before[index])
        if begins is not None and begins < indent:
            indent = begins
            header = _DEFINITION.match(before[index])
            if header and (header[1] == "def" or not found):
                first, found = index, header[1]
    end = _indent(before[first]) if found else 0
    if indent:  # its beginning was cut off
        first, end = 0, 0
    elif not found:
        return set()
    names = set(_NAME.findall("\n".join(before[first:])))
    for line in after:
        begins = _begins(line)
        if begins is not None and begins <= end:
            break
        names.update(_NAME.findall(line))
    return names


@lru_cache(maxsize=16)
def _outer_names_of(text: str) -> frozenset[str]:
    return frozenset(_outer_names(_code(text).split("\n")))


def _outer_names(lines: Sequence[str]) -> Iterator[str]:
    """The names that stand in no function and no class, and those of these."""
    inside: int | None = None  # how far the definition is indented
    for line in lines:
        begins = _begins(line)
        if inside is not None and (begins is None or begins > inside):
            continue
        header = _DEFINITION.match(line)
        inside = begins if header else None
        yield from _NAME.findall(header[2] if header else line)


def _given(code: str) -> Iterator[str]:
    """The names that a text gives: assigns, loops over, imports, defines."""
    for found in _GIVEN.finditer(code):
        yield from _NAME.findall(found[found.lastgroup or 0])


def _is_given_here(code: str, name: re.Match[str]) -> bool:
    """Whether a name in a text is given where it stands, or is an argument's."""
    line = code[code.rfind("\n", 0, name.start()) + 1 : name.start()]
    behind = code[name.end() :].lstrip(" \t")
    if behind[:1] == "=" and behind[:2] != "==":
        return True
    if _BEFORE_TARGET.match(line) and behind[:1] in tuple(",:"):
        return True
    return bool(_BEFORE_GIVEN.match(line) or _GIVING_LINE.match(line))
