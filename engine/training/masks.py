"""Who may look at whom in a training row: documents and canvases.

The documents of a row come first, then its canvases. Documents are causal and never see a canvas;
a canvas sees its document before its cut, and itself: what `prefill` and `denoise_logits` compute.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat, ones_like

# (row, head, query, key) indices to whether the query may look at the key: a flex_attention rule.
MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def document_mask(
    document_index: Tensor, document_positions: Tensor, sliding_window: int | None
) -> Tensor:
    """Mask of L document tokens over themselves.

    Args:
        document_index: (B, L) int64, which document of its row a token belongs to.
        document_positions: (B, L) int64, counted from 0 in every document.
        sliding_window: a token sees itself and the window - 1 before it; None for no limit.
    Returns:
        (B, 1, L, L) bool, True where a row's token may look.
    """
    distance = document_positions[:, :, None] - document_positions[:, None, :]
    mask = (document_index[:, :, None] == document_index[:, None, :]) & (distance >= 0)
    if sliding_window is not None:
        mask &= distance < sliding_window
    return mask[:, None]


def canvas_mask(
    document_index: Tensor,
    document_positions: Tensor,
    canvas_index: Tensor,
    canvas_document: Tensor,
    canvas_cut: Tensor,
    sliding_window: int | None,
) -> Tensor:
    """Mask of N canvas tokens over L document tokens and themselves.

    Args:
        document_index, document_positions: as for `document_mask`.
        canvas_index: (B, N) int64, which canvas of its row a token belongs to.
        canvas_document: (B, N) int64, which document this canvas continues.
        canvas_cut: (B, N) int64, how many tokens of that document it has before it.
        sliding_window: a canvas sees the last window - 1 before its cut; None for no limit.
    Returns:
        (B, 1, N, L + N) bool, True where a row's token may look.
    """
    own_document = canvas_document[:, :, None] == document_index[:, None, :]
    before_cut = canvas_cut[:, :, None] - document_positions[:, None, :]
    prefix = own_document & (before_cut > 0)  # (B, N, L)
    if sliding_window is not None:
        prefix &= before_cut < sliding_window
    canvases = canvas_index[:, :, None] == canvas_index[:, None, :]  # (B, N, N)
    return cat((prefix, canvases), dim=2)[:, None]


def joint_mask(
    document_index: Tensor,
    document_positions: Tensor,
    canvas_index: Tensor,
    canvas_document: Tensor,
    canvas_cut: Tensor,
    sliding_window: int | None,
) -> Tensor:
    """Both at once, for one forward: (B, 1, L + N, L + N) bool."""
    documents = document_mask(document_index, document_positions, sliding_window)
    canvases = canvas_mask(
        document_index,
        document_positions,
        canvas_index,
        canvas_document,
        canvas_cut,
        sliding_window,
    )
    no_canvas = ones_like(canvases[..., : documents.shape[-1]]).logical_not().mT  # (B, 1, L, N)
    return cat((cat((documents, no_canvas), dim=3), canvases), dim=2)


def document_rule(document_index: Tensor, sliding_window: int | None) -> MaskRule:
    """`document_mask` as a rule; positions are places in the row."""

    def may_look(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = (query >= key) & (document_index[row, query] == document_index[row, key])
        if sliding_window is not None:
            allowed = allowed & (query - key < sliding_window)
        return allowed

    return may_look


def canvas_rule(
    canvas_index: Tensor, canvas_cut: Tensor, length: int, window: int | None
) -> MaskRule:
    """`canvas_mask` as a rule, for rows of one document of at most `length` tokens."""

    def may_look(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before_cut = canvas_cut[row, query] - key
        in_prefix = (key < length) & (before_cut > 0)
        if window is not None:
            in_prefix = in_prefix & (before_cut < window)
        slot = (key - length).clamp(min=0)
        in_canvas = (key >= length) & (canvas_index[row, query] == canvas_index[row, slot])
        return in_prefix | in_canvas

    return may_look
