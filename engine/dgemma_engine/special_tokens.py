"""The special tokens of our own checkpoints: names and ids, for training and for inference.

They stand at the start of the vocabulary, so a token's place in `SPECIAL_TOKENS` is its id. Other
checkpoints bring their own special tokens and never meet this file. Standard library only.
"""

from __future__ import annotations

from typing import Final

PAD: Final = "<pad>"  # fills a hole behind <eom>, and a canvas behind a short suffix
EOS: Final = "<eos>"  # end of a document
BOS: Final = "<bos>"  # start of every prompt
EOM: Final = "<eom>"  # end of the middle, inside a hole
MID: Final = "<mid>"  # head of a canvas whose hole has slack: text, <eom>, <pad>...
EXACT: Final = "<exact>"  # head of a canvas whose hole is filled to the last slot
PRE: Final = "<pre>"  # before the prefix
SUF: Final = "<suf>"  # before the suffix, in the prompt and in the canvas

LANGUAGES: Final = (
    "python",
    "javascript",
    "typescript",
    "go",
    "rust",
    "c",
    "cpp",
    "java",
    "ruby",
    "lua",
    "bash",
    "json",
    "yaml",
    "toml",
    "html",
    "css",
    "markdown",
)

NUM_SPECIAL_TOKENS: Final = 48


def language_tag(language: str) -> str:
    """The token that names a language of `LANGUAGES`, for example "<lang:python>"."""
    return f"<lang:{language}>"


_NAMED = (PAD, EOS, BOS, EOM, MID, EXACT, PRE, SUF, *map(language_tag, LANGUAGES))

SPECIAL_TOKENS: Final = (
    *_NAMED,
    *(f"<reserved:{index}>" for index in range(NUM_SPECIAL_TOKENS - len(_NAMED))),
)

# What editors call these languages where their language_id is not our name.
_OTHER_LANGUAGE_IDS: Final = {
    "javascriptreact": "javascript",
    "typescriptreact": "typescript",
    "tsx": "typescript",
    "golang": "go",
    "c++": "cpp",
    "shellscript": "bash",
    "sh": "bash",
    "zsh": "bash",
    "jsonc": "json",
}

# An LSP language_id to its token; a language that is not here goes without a tag.
LANGUAGE_TAGS: Final[dict[str, str]] = {
    **{language: language_tag(language) for language in LANGUAGES},
    **{name: language_tag(language) for name, language in _OTHER_LANGUAGE_IDS.items()},
}
