"""Sampling: pure functions from logits to tokens. Logits are float32 [B, V], in nats."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from optillm_hooks.local_provider.engine_request import SamplingParams, ScoredToken
from optillm_hooks.local_provider.transfer import to_device

_BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""

_MAX_GREEDY_TEMPERATURE = 1e-6
"""Rows up to this temperature are greedy: dividing by less overflows float32."""

_HEAD = 256
"""Tokens sorted at first: a nucleus is seldom larger, and sorting the vocabulary is slow."""


def sample(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> list[int]:
    """Return one token id per row, by inverse transform sampling with `uniforms` in [0, 1).

    Row b uses `params[b]` and `uniforms[b]`; its token does not depend on other rows. It is the
    first token at which the cumulative probability exceeds `uniforms[b]`, in order of token id, or
    with top_k, top_p or min_p in order of decreasing probability.
    """
    tokens = logits.argmax(dim=-1)
    random = [b for b, p in enumerate(params) if p.temperature > _MAX_GREEDY_TEMPERATURE]
    plain = [b for b in random if not _truncates(params[b])]
    truncated = [b for b in random if _truncates(params[b])]
    size = min(max(_HEAD, *(p.top_k for p in params), 0), logits.shape[1])
    if plain:
        z, u = _tempered(logits, params, uniforms, plain)
        tokens = _replace(tokens, plain, _invert(z, u))
    full: Tensor | None = None
    if truncated:
        z, u = _tempered(logits, params, uniforms, truncated)
        drawn, full = _sample_head(z, [params[b] for b in truncated], u, size)
        tokens = _replace(tokens, truncated, drawn)
    # A GPU is waited for once, for tokens and flags together.
    found: list[int] = (tokens if full is None else torch.cat([tokens, full.long()])).tolist()
    again = [
        b
        for b, whole in zip(truncated, found[len(params) :], strict=True)
        if whole and not params[b].top_k and size < logits.shape[1]
    ]
    if again:
        z, u = _tempered(logits, params, uniforms, again)
        redrawn, _ = _sample_head(z, [params[b] for b in again], u, logits.shape[1])
        for b, token in zip(again, redrawn.tolist(), strict=True):
            found[b] = token
    return found[: len(params)]


def _tempered(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float], rows: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the logits of `rows`, divided by their temperatures, and their uniforms [rows, 1]."""
    temperatures = _column(logits, [params[b].temperature for b in rows])
    return _rows(logits, rows) / temperatures, _column(logits, [uniforms[b] for b in rows])


def _rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    if len(rows) == len(values):
        return values
    return values[to_device(values.device, rows)[0]]


def _replace(tokens: Tensor, rows: Sequence[int], drawn: Tensor) -> Tensor:
    """Return `tokens` with `drawn` in `rows`."""
    if len(rows) == len(tokens):
        return drawn
    return tokens.index_copy(0, to_device(tokens.device, rows)[0], drawn)


def _sample_head(
    z: Tensor, params: Sequence[SamplingParams], uniforms: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return a token per row of tempered logits by top-k, top-p and min-p, and a flag.

    Only the `size` likeliest tokens are sorted. The flag says that all of them were kept: without
    top_k the nucleus may be larger, and the row must be sampled from the whole vocabulary.
    """
    head, ids = z.topk(size, dim=-1)
    keep = truncation_mask(head, z.logsumexp(dim=-1, keepdim=True), params)
    index = _invert(head.masked_fill(~keep, -torch.inf), uniforms)
    return ids.gather(1, index[:, None])[:, 0], keep[:, -1]


def add_offsets(logits: Tensor, offsets: Sequence[Mapping[int, float]]) -> Tensor:
    """Return `logits` with `offsets[b]` (logit bias and penalties) added to row b, by token id."""
    if not any(offsets):
        return logits
    rows = [b for b, row in enumerate(offsets) for _ in row]
    ids = [token for row in offsets for token in row]
    added = _column(logits, [value for row in offsets for value in row.values()])[:, 0]
    places = tuple(to_device(logits.device, rows, ids))
    return logits.index_put(places, logits[places] + added)


def penalize_repetitions(
    logits: Tensor, penalties: Sequence[float], tokens: Sequence[Collection[int]]
) -> Tensor:
    """Return `logits` with the repetition penalty of each row applied to its `tokens`.

    As Keskar et al. 2019 (CTRL) and transformers do; rows with a penalty of 1 are unchanged.
    """
    penalized = logits
    for row, (penalty, ids) in enumerate(zip(penalties, tokens, strict=True)):
        if penalty != 1 and ids:
            if penalized is logits:
                penalized = logits.clone()
            (places,) = to_device(logits.device, sorted(ids))
            values = penalized[row, places]
            penalized[row, places] = torch.where(values > 0, values / penalty, values * penalty)
    return penalized


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[ScoredToken]:
    """Return the log-probability of each row's token, with the `top` likeliest alternatives."""
    logprobs = logits.log_softmax(dim=-1)
    (places,) = to_device(logits.device, tokens)
    chosen = logprobs.gather(1, places[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(top, dim=-1) if top else (logprobs[:, :0], logprobs[:, :0].long())
    return [
        ScoredToken(token, logprob, tuple(zip(row_ids, row_values, strict=True)))
        for token, logprob, row_ids, row_values in zip(
            tokens, chosen, ids.tolist(), values.tolist(), strict=True
        )
    ]


def truncation_mask(z: Tensor, totals: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Return a bool mask [B, K] of the K likeliest tokens that top_k, top_p and min_p keep.

    `z` [B, K]: their logits (divided by temperature) in descending order. `totals` [B, 1]: the
    logsumexp over the vocabulary. top_p keeps the fewest tokens whose probability reaches it. The
    likeliest token is always kept.
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


def _truncates(params: SamplingParams) -> bool:
    return params.top_p < 1 or params.top_k > 0 or params.min_p > 0


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    (column,) = to_device(like.device, values, dtype=torch.float32)
    return column[:, None]


def _invert(z: Tensor, uniforms: Tensor) -> Tensor:
    """Return the index per row at which the cumulative softmax of `z` exceeds `uniforms` [B, 1]."""
    cumulative = z.softmax(dim=-1).cumsum(dim=-1)
    # A number close to 1 rounds to 1, which no cumulative probability exceeds.
    below = uniforms.clamp(max=_BELOW_ONE) * cumulative[:, -1:]
    reached = torch.searchsorted(cumulative, below, right=True)
    return reached.clamp(max=z.shape[1] - 1)[:, 0]
