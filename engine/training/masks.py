"""Who may look at whom in a training row: documents and canvases in one forward pass.

The documents of a row come first, then its canvases. Documents are causal and never see a canvas;
a canvas sees its document before its cut, and itself: what `prefill` and `denoise_logits` compute.
"""

from __future__ import annotations

from torch import Tensor, cat, ones_like


def joint_mask(
    document_index: Tensor,
    document_positions: Tensor,
    canvas_index: Tensor,
    canvas_document: Tensor,
    canvas_cut: Tensor,
    sliding_window: int | None,
) -> Tensor:
    """Mask of L document tokens and N canvas tokens over themselves.

    Args:
        document_index: (B, L) int64, which document of its row a token belongs to.
        document_positions: (B, L) int64, counted from 0 in every document.
        canvas_index: (B, N) int64, which canvas of its row a token belongs to.
        canvas_document: (B, N) int64, which document this canvas continues.
        canvas_cut: (B, N) int64, how many tokens of that document it has before it.
        sliding_window: a document token sees itself and the window - 1 before it, a canvas the
            last window - 1 before its cut; None for no limit.
    Returns:
        (B, 1, L + N, L + N) bool, True where a row's token may look.
    """
    same_document = document_index[:, :, None] == document_index[:, None, :]
    distance = document_positions[:, :, None] - document_positions[:, None, :]
    documents = same_document & (distance >= 0)  # (B, L, L)
    own_document = canvas_document[:, :, None] == document_index[:, None, :]
    before_cut = canvas_cut[:, :, None] - document_positions[:, None, :]
    prefix = own_document & (before_cut > 0)  # (B, N, L)
    if sliding_window is not None:
        documents &= distance < sliding_window
        prefix &= before_cut < sliding_window
    canvases = canvas_index[:, :, None] == canvas_index[:, None, :]  # (B, N, N)
    no_canvas = ones_like(prefix).logical_not().transpose(1, 2)  # (B, L, N)
    rows = cat((cat((documents, no_canvas), dim=2), cat((prefix, canvases), dim=2)), dim=1)
    return rows[:, None]
