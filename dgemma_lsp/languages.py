"""The table of languages: names, grammars, and what a hole has to know of each.

Data, and look-ups in it; one row a language. Node types are those of the grammar named beside
them. A language that is not here, or whose grammar is not installed, goes by lines and brackets.
`syntax.py` loads the grammars.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, cached_property
from pathlib import PurePath


class Layout(Enum):
    """How a language shows where a body ends."""

    INDENTATION = "indentation"
    BRACES = "braces"
    END = "end"  # the word
    NONE = "none"  # data and prose: no statements


# Ends the text before a cursor where an operand is missing. An operator that also stands in types
# or before an operand (`int *p`, `List<T>`, `&x`) counts between blanks only.
_OPERATORS = (
    r"(?:(?<!\+)\+|(?<!-)-|[=%^~]|(?<!<)/|(?<!\w)!|[=-]>|&&|\|\||<<|>>)\s*$"
    r"|\s[*<>&|?:]\s+$"
)


@dataclass(frozen=True)
class Language:
    """One row of the table; tuples of node types unless said otherwise.

    Attributes:
        ids: LSP language identifiers; the first is the one that files on disk get.
        extensions: of files, with the dot.
        fences: words behind a Markdown fence, beside the ids.
        grammar: module of the wheel and its function; None where there is none.
        line_comment: what opens a comment to the line's end, or "".
        block_comment: what opens and closes a comment, or two empty strings.
        layout: how bodies end.
        indent: one level, where the file does not show another.
        bodies: nodes around the statements of a function or block, `{` and `}` included. For END
            there is no such node, and these are the functions.
        functions: nodes with a body that can be listed as not written yet.
        documented: nodes that can have documentation.
        wrappers: nodes around a definition that begin before it does.
        strings: nodes.
        interpolations: nodes with code inside a string.
        comments: nodes.
        quotes: characters around strings, where there is no tree.
        operators: regular expression for the end of a line's text where an operand is missing.
        expression_words: words behind which an operand is missing.
        placeholders: regular expressions; a body that is one of them is not written yet.
        stubs: words in a function's decorators or its class's bases that make an empty body
            intended.
        docstring: what opens and closes documentation.
        docstring_inside: documentation is the body's first statement, else it is above.
        embedded: (node around foreign text, the node that is it, language id); the id is read off
            the fence where it is "".
    """

    ids: tuple[str, ...]
    extensions: tuple[str, ...] = ()
    fences: tuple[str, ...] = ()
    grammar: tuple[str, str] | None = None
    line_comment: str = ""
    block_comment: tuple[str, str] = ("", "")
    layout: Layout = Layout.NONE
    indent: str = "    "
    bodies: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    documented: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()
    interpolations: tuple[str, ...] = ()
    comments: tuple[str, ...] = ("comment",)
    quotes: str = "\"'"
    operators: str = _OPERATORS
    expression_words: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()
    stubs: tuple[str, ...] = ()
    docstring: tuple[str, str] = ("", "")
    docstring_inside: bool = False
    embedded: tuple[tuple[str, str, str], ...] = ()

    @property
    def name(self) -> str:
        return self.ids[0]

    @cached_property
    def placeholder(self) -> re.Pattern[str]:
        """Matches a whole body that stands for one not written yet."""
        return re.compile("|".join(f"(?:{part})" for part in self.placeholders) or "(?!)", re.I)

    @cached_property
    def wants_operand(self) -> re.Pattern[str]:
        """Found in a line's text that ends where an operand is missing."""
        words = "|".join(self.expression_words) or "(?!)"
        return re.compile(rf"{self.operators}|(?<![\w.$])(?:{words})\s+$")


_SLASHES: tuple[str, tuple[str, str]] = ("//", ("/*", "*/"))
_TO_DO = r"[^\n]*(?:\btodo\b|implement)[^\n]*"

_JAVASCRIPT = Language(
    ids=("javascript", "javascriptreact"),
    extensions=(".js", ".jsx", ".mjs", ".cjs"),
    fences=("js", "jsx", "node"),
    grammar=("tree_sitter_javascript", "language"),
    line_comment=_SLASHES[0],
    block_comment=_SLASHES[1],
    layout=Layout.BRACES,
    indent="  ",
    bodies=("statement_block",),
    functions=(
        *("function_declaration", "generator_function_declaration", "method_definition"),
        *("function_expression", "generator_function", "arrow_function"),
    ),
    documented=(
        *("function_declaration", "generator_function_declaration", "method_definition"),
        "class_declaration",
    ),
    wrappers=("export_statement",),
    strings=("string", "template_string", "regex"),
    interpolations=("template_substitution",),
    quotes="\"'`",
    expression_words=(
        *("return", "throw", "case", "default", "await", "typeof", "new", "in", "of", "yield"),
    ),
    placeholders=(
        rf"throw\s+(?:new\s+)?\w*Error\({_TO_DO}\);?",
        rf"throw\s+['\"`]{_TO_DO};?",
    ),
    docstring=("/** ", " */"),
)

_TYPESCRIPT = replace(
    _JAVASCRIPT,
    ids=("typescript",),
    extensions=(".ts", ".mts", ".cts"),
    fences=("ts",),
    grammar=("tree_sitter_typescript", "language_typescript"),
    documented=(
        *_JAVASCRIPT.documented,
        *("interface_declaration", "abstract_class_declaration", "type_alias_declaration"),
    ),
    expression_words=(*_JAVASCRIPT.expression_words, "as", "satisfies"),
)

_C = Language(
    ids=("c",),
    extensions=(".c", ".h"),
    fences=("h",),
    grammar=("tree_sitter_c", "language"),
    line_comment=_SLASHES[0],
    block_comment=_SLASHES[1],
    layout=Layout.BRACES,
    bodies=("compound_statement",),
    functions=("function_definition",),
    documented=("function_definition", "struct_specifier", "enum_specifier"),
    strings=("string_literal", "char_literal", "system_lib_string"),
    expression_words=("return", "case", "sizeof"),
    placeholders=(rf"assert\({_TO_DO}\);?", r"abort\(\);"),
    docstring=("/** ", " */"),
)

LANGUAGES: tuple[Language, ...] = (
    Language(
        ids=("python",),
        extensions=(".py", ".pyi", ".pyw"),
        fences=("py", "python3", "pycon"),
        grammar=("tree_sitter_python", "language"),
        line_comment="#",
        layout=Layout.INDENTATION,
        bodies=("block",),
        functions=("function_definition",),
        documented=("function_definition", "class_definition"),
        strings=("string",),
        interpolations=("interpolation",),
        expression_words=(
            *("return", "yield", "in", "and", "or", "not", "is", "if", "elif", "while", "else"),
            *("await", "assert", "raise", "from", "lambda", "del", "with"),
        ),
        placeholders=(r"\.\.\.", "pass", r"raise\s+NotImplementedError(?:\([\s\S]*\))?"),
        stubs=("abstractmethod", "overload", "Protocol"),
        docstring=('"""', '"""'),
        docstring_inside=True,
    ),
    _JAVASCRIPT,
    _TYPESCRIPT,
    replace(
        _TYPESCRIPT,
        ids=("typescriptreact",),
        extensions=(".tsx",),
        fences=("tsx",),
        grammar=("tree_sitter_typescript", "language_tsx"),
    ),
    Language(
        ids=("go",),
        extensions=(".go",),
        fences=("golang",),
        grammar=("tree_sitter_go", "language"),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        indent="\t",
        bodies=("block",),
        functions=("function_declaration", "method_declaration", "func_literal"),
        documented=("function_declaration", "method_declaration", "type_declaration"),
        strings=("interpreted_string_literal", "raw_string_literal", "rune_literal"),
        quotes='"`',
        expression_words=("return", "case", "range", "go", "defer"),
        placeholders=(rf"panic\({_TO_DO}\)", rf"log\.Fatal\w*\({_TO_DO}\)"),
        docstring=("// ", ""),
    ),
    Language(
        ids=("rust",),
        extensions=(".rs",),
        fences=("rs",),
        grammar=("tree_sitter_rust", "language"),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        bodies=("block",),
        functions=("function_item", "closure_expression"),
        documented=("function_item", "struct_item", "enum_item", "trait_item", "mod_item"),
        strings=("string_literal", "raw_string_literal", "char_literal"),
        comments=("line_comment", "block_comment"),
        quotes='"',
        expression_words=("return", "in", "match", "as", "break"),
        placeholders=(r"(?:todo|unimplemented)!\([^\n]*\);?", rf"panic!\({_TO_DO}\);?"),
        docstring=("/// ", ""),
    ),
    _C,
    replace(
        _C,
        ids=("cpp", "cuda-cpp", "objective-cpp"),
        extensions=(".cpp", ".cc", ".cxx", ".hpp", ".hh", ".hxx", ".cu", ".cuh"),
        fences=("c++", "cc", "hpp", "cuda"),
        grammar=("tree_sitter_cpp", "language"),
        functions=("function_definition", "lambda_expression"),
        documented=(*_C.documented, "class_specifier"),
        wrappers=("template_declaration",),
        strings=(*_C.strings, "raw_string_literal"),
        expression_words=("return", "case", "sizeof", "throw", "new", "co_await", "co_return"),
        placeholders=(*_C.placeholders, rf"throw\s+[\w:]+[({{]{_TO_DO}[)}}];?"),
    ),
    Language(
        ids=("java",),
        extensions=(".java",),
        grammar=("tree_sitter_java", "language"),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        bodies=("block", "constructor_body"),
        functions=("method_declaration", "constructor_declaration", "lambda_expression"),
        documented=(
            *("method_declaration", "constructor_declaration", "class_declaration"),
            *("interface_declaration", "enum_declaration", "record_declaration"),
        ),
        strings=("string_literal", "character_literal"),
        comments=("line_comment", "block_comment"),
        expression_words=("return", "throw", "case", "new", "instanceof", "yield", "assert"),
        placeholders=(
            r"throw\s+new\s+(?:UnsupportedOperation|NotImplemented)\w*\([^\n]*\);?",
            rf"throw\s+new\s+\w+\({_TO_DO}\);?",
        ),
        docstring=("/** ", " */"),
    ),
    Language(
        ids=("ruby",),
        extensions=(".rb", ".rake", ".gemspec"),
        fences=("rb",),
        grammar=("tree_sitter_ruby", "language"),
        line_comment="#",
        layout=Layout.END,
        indent="  ",
        bodies=("method", "singleton_method"),
        functions=("method", "singleton_method"),
        documented=("method", "singleton_method", "class", "module"),
        strings=("string", "heredoc_body", "string_array", "symbol_array", "regex", "subshell"),
        interpolations=("interpolation",),
        expression_words=("return", "if", "unless", "while", "until", "and", "or", "not", "in"),
        placeholders=(
            r"raise\s*\(?\s*NotImplementedError[^\n]*",
            rf"raise\s*\(?\s*['\"]{_TO_DO}",
        ),
        docstring=("# ", ""),
    ),
    Language(
        ids=("lua", "luau"),
        extensions=(".lua", ".luau"),
        grammar=("tree_sitter_lua", "language"),
        line_comment="--",
        block_comment=("--[[", "]]"),
        layout=Layout.END,
        indent="  ",
        bodies=("function_declaration", "function_definition"),
        functions=("function_declaration", "function_definition"),
        documented=("function_declaration",),
        strings=("string",),
        expression_words=("return", "if", "elseif", "while", "until", "and", "or", "not", "in"),
        placeholders=(rf"error\({_TO_DO}\)",),
        docstring=("--- ", ""),
    ),
    Language(
        ids=("shellscript", "bash", "sh"),
        extensions=(".sh", ".bash", ".zsh", ".bats"),
        fences=("shell", "zsh", "console"),
        grammar=("tree_sitter_bash", "language"),
        line_comment="#",
        layout=Layout.BRACES,
        bodies=("compound_statement",),
        functions=("function_definition",),
        documented=("function_definition",),
        strings=("string", "raw_string", "heredoc_body", "ansi_c_string"),
        interpolations=("command_substitution",),
        operators=r"(?<=\w)\+?=$|\$\(\($",
        expression_words=("in",),
        placeholders=(":", rf"(?:echo|printf)\s{_TO_DO}(?:\n\s*(?:return|exit)\s+\d+)?"),
        docstring=("# ", ""),
    ),
    Language(
        ids=("json", "jsonc"),
        extensions=(".json", ".jsonc", ".webmanifest"),
        grammar=("tree_sitter_json", "language"),
        line_comment="//",
        indent="  ",
        strings=("string",),
        operators=r":\s*$",
    ),
    Language(
        ids=("yaml", "dockercompose", "github-actions-workflow"),
        extensions=(".yaml", ".yml"),
        fences=("yml",),
        grammar=("tree_sitter_yaml", "language"),
        line_comment="#",
        indent="  ",
        strings=("double_quote_scalar", "single_quote_scalar", "block_scalar"),
        operators=r"(?::|^\s*-)\s+$",
    ),
    Language(
        ids=("toml",),
        extensions=(".toml",),
        grammar=("tree_sitter_toml", "language"),
        line_comment="#",
        strings=("string",),
        operators=r"=\s*$",
    ),
    Language(
        ids=("html",),
        extensions=(".html", ".htm", ".xhtml"),
        fences=("htm",),
        grammar=("tree_sitter_html", "language"),
        block_comment=("<!--", "-->"),
        indent="  ",
        strings=("quoted_attribute_value",),
        quotes='"',
        operators=r"<[^>]*=\s*$",
        embedded=(
            ("script_element", "raw_text", "javascript"),
            ("style_element", "raw_text", "css"),
        ),
    ),
    Language(
        ids=("css",),
        extensions=(".css",),
        grammar=("tree_sitter_css", "language"),
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        indent="  ",
        bodies=("block",),
        strings=("string_value",),
        comments=("comment", "js_comment"),
        operators=r"(?:^\s|[;{])\s*[-\w]+:\s*$",
    ),
    Language(
        ids=("markdown",),
        extensions=(".md", ".markdown", ".mdx"),
        fences=("md",),
        grammar=("tree_sitter_markdown", "language"),
        block_comment=("<!--", "-->"),
        comments=(),
        quotes="",
        operators="(?!)",
        embedded=(("fenced_code_block", "code_fence_content", ""),),
    ),
    Language(
        ids=("csharp",),
        extensions=(".cs",),
        fences=("cs", "c#"),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        expression_words=("return", "throw", "case", "new", "await", "is", "as", "in"),
        placeholders=(r"throw\s+new\s+NotImplementedException\([^\n]*\);",),
    ),
    Language(
        ids=("kotlin",),
        extensions=(".kt", ".kts"),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        expression_words=("return", "throw", "in", "is", "as"),
        placeholders=(r"TODO\([^\n]*\)",),
    ),
    Language(
        ids=("swift",),
        extensions=(".swift",),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        expression_words=("return", "throw", "in", "is", "as", "try", "await"),
        placeholders=(rf"fatalError\({_TO_DO}\)",),
    ),
    Language(
        ids=("php",),
        extensions=(".php",),
        line_comment=_SLASHES[0],
        block_comment=_SLASHES[1],
        layout=Layout.BRACES,
        expression_words=("return", "throw", "case", "new", "echo"),
        placeholders=(rf"throw\s+new\s+\\?\w+\({_TO_DO}\);",),
    ),
    Language(ids=("scss",), extensions=(".scss",), block_comment=_SLASHES[1], indent="  "),
    Language(ids=("sql",), extensions=(".sql",), line_comment="--"),
    Language(ids=("r",), extensions=(".r",), line_comment="#", layout=Layout.BRACES),
    Language(ids=("dockerfile",), line_comment="#"),
    Language(ids=("makefile",), extensions=(".mk",), line_comment="#", indent="\t"),
)

PLAIN = Language(ids=("plaintext",), extensions=(".txt",))


def language_of(language_id: str) -> Language:
    """The row of an LSP language identifier; `PLAIN` for one that is not in the table."""
    return _by_id().get(language_id, PLAIN)


def language_id_of_path(path: PurePath) -> str:
    """The identifier that a file's name stands for, "plaintext" if none does."""
    if path.name.lower() in ("dockerfile", "makefile"):
        return path.name.lower()
    return _by_extension().get(path.suffix.lower(), PLAIN.name)


def language_id_of_fence(info: str) -> str:
    """The identifier that the words behind a Markdown fence name, "plaintext" if none."""
    word = re.split(r"[\s{},:]", info.strip().lstrip("{."), maxsplit=1)[0].lower()
    return _by_fence().get(word, PLAIN.name)


@cache
def _by_id() -> dict[str, Language]:
    return {name: language for language in LANGUAGES for name in language.ids}


@cache
def _by_extension() -> dict[str, str]:
    return {ending: language.name for language in LANGUAGES for ending in language.extensions}


@cache
def _by_fence() -> dict[str, str]:
    return {
        word: language.name for language in LANGUAGES for word in (*language.ids, *language.fences)
    }
