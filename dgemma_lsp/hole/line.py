"""What is missing at a cursor, by the text before it: an operand, arguments, documentation.

Goes by characters, since a line that is being typed seldom parses; the tree only says where strings
and comments are. It knows no holes.
"""

from __future__ import annotations

import re

from ..document import DocumentSnapshot
from ..languages import Language, Layout, language_of
from ..syntax import SyntaxTree
from .types import HoleRole

BLANKS = " \t\f\v\u00a0"

# Characters before the cursor that are looked at; an opening bracket further away is not found.
_WINDOW = 2000
# Those that expressions for the end of a text are tried on, which take quadratic time.
_TAIL = 200
# Stands for every character of a string: an operand, but no letter.
_FILLER = "§"
# The name, or chain of names, that is being typed.
_CHAIN = re.compile(r"(?:[\w$]+(?:\.|::|->|\?\.))*[\w$]*$")
# What is called, before its bracket; and words that call nothing.
_CALLED = re.compile(r"([\w$]+|[)\]>!?§])\s*$")
_NOT_CALLED = frozenset(
    {
        *("if", "elif", "elseif", "while", "for", "foreach", "switch", "match", "when", "until"),
        *("unless", "return", "throw", "raise", "case", "in", "is", "and", "or", "not", "await"),
        *("yield", "typeof", "assert", "else", "with", "from", "import", "del", "lambda", "of"),
    }
)
# In front of a brace that opens no block.
_BEFORE_LITERAL = re.compile(r"(?:(?<!=)[=(,:\[?>]|&&|\|\||\breturn)\s*$")


def role_in_line(snapshot: DocumentSnapshot, offset: int) -> HoleRole:
    """The role of a hole on a line that is not blank."""
    language = language_of(snapshot.language_id)
    if is_in_docstring(snapshot, offset):
        return HoleRole.DOCSTRING
    code, is_interpolated = _code_before(snapshot, offset, language)
    if code is None:
        return HoleRole.REST_OF_LINE
    rest = _CHAIN.sub("", code[-_TAIL:])
    line = rest[_line_start(rest) :]
    if language.wants_operand.search(line):
        return HoleRole.EXPRESSION
    # Where code is embedded in prose, the brackets are the prose's.
    bracket = None if language.embedded else _open_bracket(code)
    if bracket is None:
        return HoleRole.EXPRESSION if is_interpolated else HoleRole.REST_OF_LINE
    head = code[max(0, bracket - _TAIL) : bracket]
    if code[bracket] == "(":
        called = _CALLED.search(head)
        is_call = called is not None and called[1] not in _NOT_CALLED
        return HoleRole.ARGUMENTS if is_call else HoleRole.EXPRESSION
    is_block = code[bracket] == "{" and language.layout in (Layout.BRACES, Layout.END)
    if is_block and not _BEFORE_LITERAL.search(head):
        return HoleRole.REST_OF_LINE
    return HoleRole.EXPRESSION


def is_in_docstring(snapshot: DocumentSnapshot, offset: int) -> bool:
    """Whether the cursor is in documentation that has no words yet."""
    language = language_of(snapshot.language_id)
    opening, closing = (mark.strip() for mark in language.docstring)
    if len(opening) < 3:  # the sign of any comment
        return False
    lines = snapshot.lines
    number = lines.line_at(offset)
    start, end = lines.bounds(number)
    head, tail = snapshot.text[start:offset].strip(BLANKS), snapshot.text[offset:end].strip(BLANKS)
    if tail not in ("", closing):
        return False
    above = _line_above(snapshot, number)
    if head in ("", "*"):
        # Between the lines of the quotes; these must be the ones that open it.
        is_inside = above == opening
        number -= 1
        above = _line_above(snapshot, number) if is_inside else ""
    else:
        is_inside = head == opening
    return is_inside and (not language.docstring_inside or above.endswith(":") or number <= 0)


def comment_above(snapshot: DocumentSnapshot, offset: int) -> bool:
    """Whether the line above holds a comment and nothing else."""
    number = snapshot.lines.line_at(offset)
    return number > 0 and is_comment(snapshot, snapshot.lines.line_text(number - 1))


def is_comment(snapshot: DocumentSnapshot, line: str) -> bool:
    """Whether a line is a comment, or the end of one, and nothing else."""
    language = language_of(snapshot.language_id)
    line = line.strip()
    opening, closing = language.block_comment
    is_line_comment = bool(language.line_comment) and line.startswith(language.line_comment)
    is_end = bool(closing) and line.endswith(closing)
    is_end = is_end and (line.startswith((opening, "*")) or opening not in line)
    return (is_line_comment or is_end) and not line.startswith("#!")


def _line_above(snapshot: DocumentSnapshot, number: int) -> str:
    """The nearest line above that is not blank."""
    for above in range(number - 1, max(-1, number - 20), -1):
        if line := snapshot.lines.line_text(above).strip():
            return line
    return ""


def _code_before(
    snapshot: DocumentSnapshot, offset: int, language: Language
) -> tuple[str | None, bool]:
    """The text before the cursor without what strings and comments say; None inside of one.

    And whether it begins in a string, with code that is put into it.
    """
    tree = snapshot.syntax.now()
    line_start = snapshot.lines.bounds(snapshot.lines.line_at(offset))[0]
    start = max(0, min(line_start, offset - _WINDOW // 2), offset - _WINDOW)
    code, is_interpolated = snapshot.text[start:offset], False
    if tree is not None:
        masked = _masked_by_tree(tree, start, offset, language)
        if masked is None:
            return None, False
        code, is_interpolated = masked
    else:
        code = _masked_by_signs(code, language)
    code = _masked_strings(code, language)
    line = code[_line_start(code) :]
    is_inside = any(quote in line for quote in language.quotes)
    if tree is None and language.line_comment:
        is_inside = is_inside or re.search(rf"(?:^|\s){language.line_comment}", line) is not None
    return (None if is_inside else code), is_interpolated


def _masked_by_tree(
    tree: SyntaxTree, start: int, offset: int, language: Language
) -> tuple[str, bool] | None:
    """`text[start:offset]` with strings and comments as words; None inside of one."""
    is_interpolated = False
    for node in tree.ancestors(max(0, offset - 1)):
        if node.kind in language.interpolations and node.start < offset < node.end:
            start, is_interpolated = max(start, node.start + 2 - (node.text[0] == "{")), True
            break
    code = tree.source.text[start:offset]
    for node in tree.nodes(start, offset):
        if node.kind not in language.strings and node.kind not in language.comments:
            continue
        first, last = node.start, node.end
        if is_interpolated and first < start and last >= offset:
            continue  # the string around it
        is_open = node.kind in language.comments and not node.text.endswith(
            (language.block_comment[1] or "\n", "\n")
        )
        if first < offset < last or (offset == last and is_open):
            return None
        first, last = max(first, start) - start, min(last, offset) - start
        if first < last:
            filler = _FILLER if node.kind in language.strings else " "
            code = code[:first] + filler * (last - first) + code[last:]
    return code, is_interpolated


def _masked_strings(code: str, language: Language) -> str:
    """Strings that begin and end in one line; the tree misses them where it cannot read a line."""
    for quote in language.quotes:
        string = rf"{quote}(?:\\.|[^{quote}\\\n])*{quote}"
        code = re.sub(string, lambda match: _FILLER * len(match[0]), code)
    return code


def _masked_by_signs(code: str, language: Language) -> str:
    """Comments that end before the cursor, where there is no tree."""
    code = _masked_strings(code, language)
    for opening, closing in (language.block_comment, (language.line_comment, "(?=\n)")):
        if opening:
            end = closing if closing == "(?=\n)" else re.escape(closing)
            comment = rf"{re.escape(opening)}[\s\S]*?{end}"
            code = re.sub(comment, lambda match: " " * len(match[0]), code)
    return code


def _open_bracket(code: str) -> int | None:
    """The innermost bracket that is open at the end of `code`.

    One in an earlier line counts if this line is indented deeper: else it is one that was never
    closed.
    """
    depth = 0
    for index in range(len(code) - 1, -1, -1):
        if code[index] in ")]}":
            depth += 1
        elif code[index] in "([{":
            depth -= 1
            if depth < 0:
                line, here = code[_line_start(code, index) :], code[_line_start(code) :]
                is_same = "\n" not in code[index:]
                return index if is_same or _depth(here) > _depth(line) else None
    return None


def _line_start(code: str, end: int | None = None) -> int:
    return max(code.rfind("\n", 0, end), code.rfind("\r", 0, end)) + 1


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(BLANKS))
