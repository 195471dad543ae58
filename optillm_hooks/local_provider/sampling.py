"""Pure functions from logits to tokens. Logits are float32 [B, V], in nats."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from optillm_hooks.local_provider.engine_request import SamplingParams, ScoredToken

_BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""

_COLDEST = 1e-6
"""The temperature below which logits cannot be divided by it in float32."""

_HEAD = 256
"""Tokens that are sorted first: a nucleus is seldom larger, and a whole vocabulary is slow."""


def draw(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """Return one token id per row: row b by `params[b]` with the number `uniforms[b]` in [0, 1).

    A row's token depends on its own logits, parameters and number alone, not on its neighbours. It
    is the first token, in the order of the vocabulary (without top_k, top_p, min_p) or of falling
    probability (with them), at which the cumulative probability exceeds the number.
    """
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    drawing = [b for b, sampling in enumerate(params) if sampling.temperature > _COLDEST]
    plain = [b for b in drawing if not _cuts(params[b])]
    cut = [b for b in drawing if _cuts(params[b])]
    if plain:
        warm = _warm(logits, params, plain)
        _put(tokens, plain, _invert(warm, _column(warm, [uniforms[b] for b in plain])))
    size = min(max([_HEAD, *(params[b].top_k for b in cut)]), logits.shape[1])
    while cut:
        warm = _warm(logits, params, cut)
        z, ids = warm.topk(size, dim=-1)
        keep = kept(z, warm.logsumexp(dim=-1, keepdim=True), [params[b] for b in cut])
        index = _invert(z.masked_fill(~keep, -torch.inf), _column(z, [uniforms[b] for b in cut]))
        _put(tokens, cut, ids.gather(1, index[:, None])[:, 0])
        # A nucleus that reaches the end of what was sorted may go on behind it.
        whole = size == logits.shape[1]
        cut = [b for b, more in zip(cut, keep[:, -1].tolist(), strict=True) if more and not whole]
        cut = [b for b in cut if not 0 < params[b].top_k <= size]
        size = logits.shape[1]
    return tokens


def shift(logits: Tensor, shifts: Sequence[Mapping[int, float]]) -> Tensor:
    """Return `logits` with `shifts[b]` added to row b, by token id."""
    if not any(shifts):
        return logits
    rows = [b for b, row in enumerate(shifts) for _ in row]
    ids = [token for row in shifts for token in row]
    values = torch.tensor([value for row in shifts for value in row.values()], device=logits.device)
    places = (torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device))
    return logits.index_put(places, values, accumulate=True)


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[ScoredToken]:
    """Return the token of each row with its log-probability and those of the `top` likeliest."""
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(top, dim=-1) if top else (logprobs[:, :0], logprobs[:, :0].long())
    return [
        ScoredToken(token, logprob, tuple(zip(row_ids, row_values, strict=True)))
        for token, logprob, row_ids, row_values in zip(
            tokens, chosen, ids.tolist(), values.tolist(), strict=True
        )
    ]


def kept(z: Tensor, totals: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Return bool [B, K]: which of the K likeliest tokens of row b `params[b]` draws from.

    `z` [B, K] holds their tempered logits, sorted down; `totals` [B, 1] the logsumexp of the whole
    rows. top_p keeps the fewest tokens that reach it. The likeliest token always stays.
    """
    rank = torch.arange(z.shape[1], device=z.device)
    top_k = _column(z, [sampling.top_k or torch.inf for sampling in params])
    mass = (z - totals).exp().masked_fill(rank >= top_k, 0.0)
    mass = torch.where(top_k.isinf(), mass, mass / mass.sum(dim=-1, keepdim=True))
    keep = mass.cumsum(dim=-1) - mass < _column(z, [sampling.top_p for sampling in params])
    keep &= mass >= _column(z, [sampling.min_p for sampling in params]) * mass[:, :1]
    keep &= rank < top_k
    keep[:, 0] = True
    return keep


def _cuts(sampling: SamplingParams) -> bool:
    return sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32)[:, None]


def _warm(logits: Tensor, params: Sequence[SamplingParams], rows: Sequence[int]) -> Tensor:
    chosen = logits if len(rows) == len(logits) else logits[list(rows)]
    return chosen / _column(logits, [params[b].temperature for b in rows])


def _invert(z: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index per row at which the cumulative softmax of `z` exceeds `uniforms` [B, 1]."""
    cumulative = z.softmax(dim=-1).cumsum(dim=-1)
    # A number next to 1 rounds to it, and would then be reached by no token that can be drawn.
    below = uniforms.clamp(max=_BELOW_ONE) * cumulative[:, -1:]
    reached = torch.searchsorted(cumulative, below, right=True)
    return reached.clamp(max=z.shape[1] - 1)[:, 0]


def _put(tokens: list[int], rows: Sequence[int], values: Tensor) -> None:
    for b, value in zip(rows, values.tolist(), strict=True):
        tokens[b] = value
