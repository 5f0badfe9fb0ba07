"""What a server serves, and what it can do: found out by asking, at no cost of its GPU to speak of.

Whether vLLM takes a canvas is seen by requests that it has to refuse, since a server that does not
know these options ignores them: pinned positions without a canvas to hold them. They are turned
away when they are admitted, before any pass.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ContextTooLong, EngineUnavailable
from ..tokenizer import Tokenizer
from ..turns import TURN_END, TURN_START
from .client import Server
from .completions import COMPLETIONS
from .failures import NotServed, Refused, not_openai

# Spaces, a tab, digits, letters beyond ASCII and beyond 16 bits: where tokenizers part.
_PROBE = (
    'def größe(x_1: int) -> str:\n\treturn f"{x_1!r} 1234567 → 你好 🙂"\n\n        # TODO  0x1F\n'
)
_SPECIALS = (TURN_START, TURN_END, "<bos>", "<eos>", "<pad>")
_WIDER_THAN_ANY = 2**24  # slots
_NARROWEST = 16
_DEFAULT_MAX_MODEL_LEN = 8192  # where neither server nor checkpoint say


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The small files of a checkpoint: the tokenizer, and what `config.json` says.

    Attributes:
        tokenizer: see there.
        vocab_size: V.
        canvas_length: C; None for a model without a canvas.
        max_position_embeddings: None where it is not said.
    """

    tokenizer: Tokenizer
    vocab_size: int
    canvas_length: int | None
    max_position_embeddings: int | None

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read `tokenizer.json`, and `config.json` if it is there.

        Raises:
            CheckpointError: there is no folder, no tokenizer, or a file cannot be read.
        """
        if not folder.is_dir():
            raise CheckpointError(f"no such checkpoint folder: {folder}")
        tokenizer = Tokenizer.load(folder)
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text("utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        text_config = config.get("text_config") or config
        return cls(
            tokenizer,
            int(text_config.get("vocab_size") or tokenizer.vocab_size),
            config.get("canvas_length"),
            text_config.get("max_position_embeddings"),
        )


@dataclass(frozen=True, slots=True)
class Served:
    """A model that a server has.

    Attributes:
        model: its name there.
        max_model_len: tokens of prompt and answer; None where the server does not tell.
        root: what it was loaded from; "" where the server does not tell.
    """

    model: str
    max_model_len: int | None
    root: str = ""

    @property
    def is_diffusion_gemma(self) -> bool:
        names = f"{self.model} {self.root}".lower()
        return "diffusiongemma" in names.replace("-", "").replace("_", "")

    def room(self, checkpoint: Checkpoint) -> int:
        """What prompt and answer may have together, in tokens."""
        limits = (self.max_model_len, checkpoint.max_position_embeddings)
        return min((limit for limit in limits if limit), default=_DEFAULT_MAX_MODEL_LEN)


async def find_model(server: Server, wanted: str, folder: str = "") -> Served:
    """The model of that name; without a name, the only one that is served.

    Args:
        wanted: its name there, or "".
        folder: the name of its checkpoint's folder here, by which one of several is found.

    Raises:
        EngineUnavailable: there is none, or several and no name; the message lists them.
    """
    url = server.address.url
    try:
        listed = (await server.get("/v1/models")).get("data")
    except NotServed as error:
        raise EngineUnavailable(
            f"{url} has no /v1/models ({error}). Is it an OpenAI-compatible server, and does the "
            "URL end before /v1?"
        ) from error
    if not isinstance(listed, list) or not all(
        isinstance(card, dict) and isinstance(card.get("id"), str) for card in listed
    ):
        raise not_openai(server.address, "no list of models")
    names = ", ".join(card["id"] for card in listed) or "none"
    for card in listed:
        is_alike = bool(folder) and card["id"].rpartition("/")[2] == folder
        if card["id"] == wanted or (not wanted and (is_alike or len(listed) == 1)):
            length = card.get("max_model_len")
            root = card.get("root")
            return Served(
                card["id"],
                length if isinstance(length, int) else None,
                root if isinstance(root, str) else "",
            )
    if not wanted:
        raise EngineUnavailable(f"{url} serves several models, say which: {names}")
    raise NotServed(f"{url} does not serve {wanted!r}; it serves {names}")


async def served_canvas_length(server: Server, model: str, wanted: int) -> int | str:
    """The widest canvas that is served and is not wider than `wanted`, or why there is none."""
    if (words := await _refusal(server, model, _WIDER_THAN_ANY)) is None:
        return "it does not read the options of a canvas (vLLM does from 0.33 on)"
    if "diffusion_canvas_length" not in words:
        if "diffusion_pinned" in words:
            return (
                "it does not know its canvas; start it with "
                f"--diffusion-config '{{\"canvas_length\": {wanted}}}'"
            )
        return f"it refuses the options of a canvas ({words or 'without a reason'})"
    width = wanted
    while width >= _NARROWEST:
        if "diffusion_pinned" in (await _refusal(server, model, width) or ""):
            return width
        width //= 2
    return f"its canvas has less than {_NARROWEST} slots"


async def takes_suffix(server: Server, model: str) -> tuple[bool, bool]:
    """Whether completions take a suffix and read it, and tell log-probabilities.

    Some servers ignore a suffix: the prompt has to grow by it.
    """
    bare: dict[str, Any] = {
        "model": model,
        "prompt": "def f(",
        "max_tokens": 1,
        "logprobs": 1,
        "temperature": 0.0,
    }
    try:
        with_one = await server.post(COMPLETIONS, {**bare, "suffix": "):\n    return 1\n" * 8})
        without = await server.post(COMPLETIONS, bare)
    except (Refused, NotServed, ContextTooLong):
        return False, False
    is_read = _num_prompt_tokens(with_one) > _num_prompt_tokens(without) > 0
    choices = with_one.get("choices") or [{}]
    return is_read, bool(choices[0].get("logprobs"))


async def check_token_ids(server: Server, model: str, tokenizer: Tokenizer) -> str | None:
    """Compare the server's token ids with ours.

    Returns:
        None if they agree; else why that cannot be found out.
    Raises:
        CheckpointError: they differ.
    """
    expected = tokenizer.encode(_PROBE)
    found = await _token_ids(server, model, _PROBE)
    if found is None:
        return "it does not tell its token ids, so that they cannot be compared with ours"
    pairs = [(_PROBE, expected, found)]
    for name in _SPECIALS:
        if (token_id := tokenizer.token_id(name)) is not None:
            pairs.append((name, [token_id], await _token_ids(server, model, name) or []))
    for text, ours, theirs in pairs:
        if ours != theirs:
            at = next(
                (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise CheckpointError(
                f"{server.address.url} has other token ids for {model!r} than the tokenizer here: "
                f"of {text.strip()[:12]!r}..., token {at} is {theirs[at : at + 1]} there and "
                f"{ours[at : at + 1]} here. Take tokenizer.json and config.json from the "
                "checkpoint that is served"
            )
    return None


async def _refusal(server: Server, model: str, width: int) -> str | None:
    """What the server says to a canvas of that width with a pin and nothing to hold; None if it
    does not mind."""
    body = {
        "model": model,
        "prompt": "x",
        "max_tokens": 1,
        "vllm_xargs": {"diffusion_canvas_length": width, "diffusion_pinned": [0]},
    }
    try:
        await server.post(COMPLETIONS, body)
    except (Refused, ContextTooLong) as error:
        return error.words if isinstance(error, Refused) else str(error)
    except NotServed:
        return None
    return None


async def _token_ids(server: Server, model: str, text: str) -> list[int] | None:
    """A text's ids on the server, None where it does not tell them."""
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    try:
        found = (await server.post("/tokenize", body)).get("tokens")
        if isinstance(found, list):
            return found
    except (Refused, NotServed):
        pass  # a gateway that lets only /v1 through
    try:
        answer = await server.post(COMPLETIONS, {**body, "max_tokens": 1, "return_token_ids": True})
    except (Refused, NotServed):
        return None
    choices = answer.get("choices") or [{}]
    found = choices[0].get("prompt_token_ids")
    return found if isinstance(found, list) else None


def _num_prompt_tokens(answer: dict[str, Any]) -> int:
    return int((answer.get("usage") or {}).get("prompt_tokens") or 0)
