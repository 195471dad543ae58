"""Continuous batching: requests join and leave the running batch at any step.

Called only from the engine's thread.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider.active_request import (
    ActiveRequest,
    Prefill,
    RunningSequence,
    prepare,
)
from optillm_hooks.local_provider.chat_format import ChatFormat, ChoiceOutput, ReplyReader
from optillm_hooks.local_provider.decoding.methods import markers
from optillm_hooks.local_provider.engine_request import Finished, Piece, ScoredToken, Submission
from optillm_hooks.local_provider.kv_cache import Prefix, Row
from optillm_hooks.local_provider.prefix_cache import PrefixCache, common_prefix_length
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.sampling import (
    add_offsets,
    penalize_repetitions,
    sample,
    token_logprobs,
)
from optillm_hooks.local_provider.scheduler import admit, chunk_prefills
from optillm_hooks.local_provider.uncertainty import Uncertainty, measure_uncertainty

_WORTH_WAITING = 32
"""Minimum common prefix, in tokens, for which a request waits for a running prefill."""

_SHARED_FROM = 64
"""Minimum prompt length, in tokens, for sharing the prefix: copying a shorter one is cheaper."""

_COMPILE_WAIT_S = 0.005
"""Time a step waits for a grammar if there is nothing else to do."""

_FIRST_TOKENS = 256
"""Maximum number of likeliest first tokens passed to a decoding method."""

_BANNED = 1e-30
"""First tokens up to this probability are not passed: a logit bias of -100 bans them."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of one engine: concurrent rows, prefill chunk, KV cache, prefix cache."""

    rows: int = 64
    """Maximum number of sequences and prefills in one step."""

    chunk: int = 256
    """Maximum number of prompt tokens per step; limits how long prefills delay running streams."""

    kv_bytes: int = 4 << 30
    """Memory for the KV cache of running rows and of the prompts they start from.

    A single row is always admitted, and replies to requests without max_tokens may exceed this
    limit. Slots are allocated ahead: up to twice as much memory is used.
    """

    prefix_bytes: int = 512 << 20
    """Maximum size of the prefix cache, which keeps prompts for later requests."""

    reply_tokens: int = 4096
    """Maximum length of a reply to a request that sets none."""


class _Chunk(NamedTuple):
    """The tokens that one row feeds in a step: the first `size` waiting tokens of `source`."""

    source: Prefill | RunningSequence
    size: int


class _StepOutput(NamedTuple):
    """The logits of the rows whose waiting tokens have all been fed."""

    sequences: list[RunningSequence]
    next_logits: Tensor
    """[sequences, V]"""

    prefills: list[tuple[Prefill, Tensor]]
    """Finished prefills with the logits [V] of the first token."""


class _Sampled(NamedTuple):
    """The next token of a sequence, with the uncertainty of its distribution."""

    token: int
    uncertainty: Uncertainty
    scored: ScoredToken | None
    """With its log-probability, if log-probabilities were requested."""


class Batch:
    """The continuous batch of one loaded model: all its active requests."""

    def __init__(self, runner: Runner, chat_format: ChatFormat, capacity: Capacity) -> None:
        self._runner = runner
        self._format = chat_format
        self._capacity = capacity
        self._grammars = chat_format.grammars
        self._prefixes: PrefixCache[Prefix] = PrefixCache(capacity.prefix_bytes)
        self._compiling: list[ActiveRequest] = []
        """Requests whose grammar is being compiled; they join the batch when it is ready."""

        self._active: list[ActiveRequest] = []

    @property
    def idle(self) -> bool:
        return not self._active and not self._compiling

    @property
    def weight_bytes(self) -> int:
        """Memory of the model itself."""
        return self._runner.weight_bytes

    @property
    def bytes(self) -> int:
        """Memory of the KV cache: rows, the prompts they start from, and the prefix cache."""
        kept = [(active.prefix, active.request.adapter) for active in self._active]
        apart = sum(p.bytes for p, a in kept if p is not None and not self._prefixes.contains(p, a))
        return self._runner.kv_cache.bytes + apart + self._prefixes.bytes

    def add(self, submission: Submission) -> None:
        """Add a request to the batch; one that cannot be served gets an error instead."""
        limits = {"reply_tokens": self._capacity.reply_tokens, "kv_bytes": self._capacity.kv_bytes}
        try:
            self._join(prepare(submission, self._runner, self._format, **limits))
        except OptiLLMError as exc:
            submission.deliver(exc)
        except Exception as exc:  # chat templates, tokenizers and grammars are third-party code
            kind = type(exc).__name__  # the message may quote the prompt
            failure = ProviderFailed(f"the request could not be prepared: {kind}", status=500)
            failure.__cause__ = exc
            submission.deliver(failure)

    def _join(self, active: ActiveRequest, wait_s: float = 0.0) -> None:
        """Add a prepared request to the active ones, or to those whose grammar is compiling."""
        try:
            ready = active.is_ready(wait_s)
        except OptiLLMError as exc:
            active.deliver(exc)
        else:
            (self._active if ready else self._compiling).append(active)

    def _join_compiled(self) -> None:
        """Add the requests whose grammar is ready; those whose grammar is refused end."""
        compiling, self._compiling = self._compiling, []
        for active in compiling:
            self._join(active, wait_s=0.0 if self._active else _COMPILE_WAIT_S / len(compiling))

    def step(self) -> None:
        """Run one step of continuous batching, with at most one forward pass.

        Requests whose grammar is compiled join, and those that fit are admitted. Every running
        sequence feeds its last tokens and every prefill its next chunk. Then sequences sample their
        next token, finished prefills begin to decode, and finished requests leave.
        """
        self._drop_cancelled()
        self._join_compiled()
        self._admit()
        chunks = self._next_chunks()
        if chunks:
            output = self._forward(chunks)
            self._write_next(output.sequences, output.next_logits)
            for prefill, logits in output.prefills:
                self._begin_decode(prefill, logits)
        self._finish_done()

    def fail(self, error: OptiLLMError) -> None:
        """End every request with `error`."""
        for compiling in self._compiling:
            compiling.deliver(error)
        self._compiling.clear()
        for active in list(self._active):
            active.deliver(error)
            self._remove(active)

    def _drop_cancelled(self) -> None:
        self._compiling = [a for a in self._compiling if not a.submission.cancelled]
        for active in [active for active in self._active if active.submission.cancelled]:
            self._remove(active)

    def _finish_done(self) -> None:
        for active in [active for active in self._active if not active.rows and not active.wanted]:
            self._finish(active)

    def _admit(self) -> None:
        """Start prefills, and further sequences of prefilled requests, as rows and memory allow.

        KV cache is reserved for whole replies in advance: an admitted row is never preempted.
        """
        rows = sum(active.rows for active in self._active)
        claimed = sum(self._claim(active, active.rows) for active in self._active)
        admitted: Counter[ActiveRequest] = Counter()

        def fits(active: ActiveRequest) -> bool:
            """Reserve memory for one more row, if there is enough; a single row always fits."""
            nonlocal claimed
            held = active.rows + admitted[active]
            more = self._claim(active, held + 1) - self._claim(active, held)
            if (rows or admitted) and claimed + more > self._capacity.kv_bytes:
                return False
            claimed += more
            admitted[active] += 1
            return True

        opened: list[RunningSequence] = []
        for active in admit(self._active, self._capacity.rows - rows, fits):
            if active.first_logits is not None:
                assert active.prefix is not None  # noqa: S101 (kept as long as rows are wanted)
                opened += self._open(active, self._fork(active, active.prefix))
            elif not self._is_being_prefilled(active):
                self._begin_prefill(active)
        self._sample_first(opened)

    def _claim(self, active: ActiveRequest, rows: int) -> int:
        return active.kv_bytes(rows, self._runner.kv_cache)

    def _is_being_prefilled(self, active: ActiveRequest) -> bool:
        """Return True if a running prefill covers much of this prompt, which can reuse its result.

        Prefills share one chunk per step anyway, so waiting costs the request no time.
        """
        hit = self._prefixes.find(active.prompt, active.request.adapter)
        enough = (hit.tokens if hit else 0) + _WORTH_WAITING
        return any(
            other.prefill is not None
            and other.request.adapter == active.request.adapter
            and self._prefixes.accepts(self._runner.kv_cache.bytes_for(1, len(other.prompt)))
            and common_prefix_length(active.prompt[:-1], other.prompt) >= enough
            for other in self._active
        )

    def _begin_prefill(self, active: ActiveRequest) -> None:
        """Give the request a row that starts with the cached prefix of its prompt, if any."""
        adapter = active.request.adapter
        hit = self._prefixes.find(active.prompt, adapter)
        if hit is not None:
            active.cached_tokens = hit.tokens
        row = self._runner.begin(hit.prefix if hit else None, active.cached_tokens, adapter)
        active.prefill = Prefill(active, row, active.prompt[active.cached_tokens :])

    def _begin_decode(self, prefill: Prefill, logits: Tensor) -> None:
        """End a prefill: keep its prefix, and start the first sequence."""
        active, row = prefill.active, prefill.row
        active.prefill = None
        active.prefix = self._runner.snapshot(row, active.prompt)
        active.first_logits = logits
        self._prefixes.add(active.prefix, active.request.adapter)
        active.decoding.begin(self._top_first_tokens(active, logits))
        active.shares_prefix = active.decoding.wanted > 1 and len(active.prompt) >= _SHARED_FROM
        if active.shares_prefix:
            self._runner.free(row)
            row = self._fork(active, active.prefix)
        self._sample_first(self._open(active, row))

    def _top_first_tokens(self, active: ActiveRequest, logits: Tensor) -> list[tuple[int, float]]:
        """Return the likeliest first tokens of a reply with their probabilities."""
        request = active.request
        penalized = penalize_repetitions(
            logits[None], [request.repetition_penalty], [set(active.prompt)]
        )
        adjusted = add_offsets(penalized, [request.logit_offsets({})])
        (first,) = self._grammars.mask(adjusted, [active.constraint]).softmax(dim=-1)
        possible = int((first > _BANNED).count_nonzero())
        likeliest = first.topk(min(_FIRST_TOKENS, possible))
        return list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))

    def _fork(self, active: ActiveRequest, prefix: Prefix) -> Row:
        adapter = active.request.adapter
        return self._runner.fork(prefix, shared=active.shares_prefix, adapter=adapter)

    def _open(self, active: ActiveRequest, row: Row) -> list[RunningSequence]:
        """Return the next sequence of a request in a list, which is empty if none can start now."""
        branch = active.decoding.open()
        if branch is None:
            self._runner.free(row)
            return []
        if not (active.decoding.wanted or active.shares_prefix) and active.decoding.live:
            active.prefix = None
        row.steering = branch.steering
        output = ChoiceOutput(
            active.opened,
            self._format,
            active.request.stop,
            thinking=active.thinking,
            tools=active.tools,
            markers=markers(active.request),
        )
        constraint = None if active.constraint is None else active.constraint.fork()
        rng = random.Random(f"{active.seed}:{active.opened}")  # noqa: S311 (no secret)
        active.opened += 1
        active.sequences.append(RunningSequence(active, branch, row, output, rng, constraint))
        return active.sequences[-1:]

    def _close(self, sequence: RunningSequence) -> None:
        active, branch, output = sequence.active, sequence.branch, sequence.output
        self._runner.free(sequence.row)
        active.sequences.remove(sequence)
        active.reasoning_tokens += output.reasoning_tokens
        active.decoding.close(branch, output.result(stopped=branch.stopped))

    def _next_chunks(self) -> list[_Chunk]:
        """Return the tokens to feed in this step, sequences before prefills (chunked prefill)."""
        sources: list[Prefill | RunningSequence] = []
        for active in self._active:
            sources += active.sequences
        sources += [active.prefill for active in self._active if active.prefill is not None]
        sizes = chunk_prefills([len(source.waiting) for source in sources], self._capacity.chunk)
        return [_Chunk(s, size) for s, size in zip(sources, sizes, strict=True) if size]

    def _forward(self, chunks: Sequence[_Chunk]) -> _StepOutput:
        """Feed `chunks` to the model; return the logits of the rows with nothing left to feed."""
        logits = self._runner.step([(source.row, source.waiting[:size]) for source, size in chunks])
        output = _StepOutput([], logits, [])
        places: list[int] = []
        for place, (source, size) in enumerate(chunks):
            del source.waiting[:size]
            if source.waiting:
                continue
            if isinstance(source, Prefill):
                output.prefills.append((source, logits[place]))
            else:
                output.sequences.append(source)
                places.append(place)
        return output._replace(next_logits=logits[places])

    def _sample_first(self, opened: Sequence[RunningSequence]) -> None:
        """Sample the first token of sequences that have just been opened."""
        logits = [s.active.first_logits for s in opened if s.active.first_logits is not None]
        if logits:
            self._write_next(opened, torch.stack(logits))

    def _write_next(self, sequences: Sequence[RunningSequence], logits: Tensor) -> None:
        """Sample the next token of each sequence from its row of `logits`, and write it."""
        if not sequences:
            return
        for sequence, sampled in zip(sequences, self._sample(sequences, logits), strict=True):
            try:
                self._write(sequence, sampled)
            except ProviderFailed as exc:
                sequence.active.fail(exc)

    def _sample(self, sequences: Sequence[RunningSequence], logits: Tensor) -> list[_Sampled]:
        """Return the next token of each sequence: apply penalties, mask by grammar, then sample."""
        uncertainties = _uncertainties(sequences, logits)
        params = [
            sequence.branch.sampling_params(uncertainty)
            for sequence, uncertainty in zip(sequences, uncertainties, strict=True)
        ]
        penalized = penalize_repetitions(
            logits,
            [s.active.request.repetition_penalty for s in sequences],
            [s.repeatable for s in sequences],
        )
        adjusted = add_offsets(
            penalized, [s.active.request.logit_offsets(s.counts) for s in sequences]
        )
        masked = self._grammars.mask(adjusted, [s.constraint for s in sequences])
        tokens = sample(masked, params, [s.rng.random() for s in sequences])
        scores = _scores(sequences, logits, tokens)
        return list(map(_Sampled, tokens, uncertainties, scores))

    def _write(self, sequence: RunningSequence, sampled: _Sampled) -> None:
        """Append the tokens that the branch emits for the sampled one; deliver the new text.

        Raises:
            ProviderFailed: the grammar does not allow the token.
        """
        active, branch, output = sequence.active, sequence.branch, sequence.output
        token, uncertainty, scored = sampled
        emitted = branch.emit(token, uncertainty, end=token in self._format.end_ids)
        for place, written in enumerate(emitted):
            if sequence.constraint is not None:
                sequence.constraint.accept(written)
            last = len(output.ids) + 1 >= active.max_tokens
            score = scored if place == 0 and written == token else None
            piece = output.add(written, score, last=last)
            if piece is not None and active.decoding.live:
                active.deliver(piece)
            active.completion_tokens += 1
            sequence.waiting.append(written)
            sequence.counts[written] += 1
            if output.finish_reason is not None:
                break
        if output.finish_reason is not None or branch.stopped:
            self._close(sequence)

    def _finish(self, active: ActiveRequest) -> None:
        """Deliver the reply, if it was not streamed, and the token counts."""
        outcome = active.decoding.outcome()
        if not active.decoding.live:
            reader = ReplyReader(opened=active.thinking, tools=active.tools)
            for shown in (reader.feed(outcome.text), reader.close()):
                active.deliver(Piece(0, shown.text, shown.reasoning, tool_calls=shown.calls))
            called = reader.called and outcome.finish_reason == "stop"
            active.deliver(
                Piece(0, finish_reason="tool_calls" if called else outcome.finish_reason)
            )
        active.deliver(
            Finished(
                prompt_tokens=len(active.prompt),
                completion_tokens=active.completion_tokens,
                cached_tokens=active.cached_tokens,
                reasoning_tokens=active.reasoning_tokens,
                facts=outcome.facts,
            )
        )
        self._remove(active)

    def _remove(self, active: ActiveRequest) -> None:
        """Remove a request from the batch and free its rows."""
        self._active.remove(active)
        if active.prefill is not None:
            self._runner.free(active.prefill.row)
            active.prefill = None
        for sequence in active.sequences:
            self._runner.free(sequence.row)
        active.sequences.clear()


def _uncertainties(sequences: Sequence[RunningSequence], logits: Tensor) -> list[Uncertainty]:
    """Return the uncertainty of each next token, in the metrics that its branch needs."""
    found = [Uncertainty()] * len(sequences)
    asking = [i for i, sequence in enumerate(sequences) if sequence.branch.metrics]
    if asking:
        metrics = frozenset().union(*(sequences[i].branch.metrics for i in asking))
        measured = measure_uncertainty(logits[asking], metrics)
        for i, uncertainty in zip(asking, measured, strict=True):
            found[i] = uncertainty
    return found


def _scores(
    sequences: Sequence[RunningSequence], logits: Tensor, tokens: Sequence[int]
) -> list[ScoredToken | None]:
    """Return the log-probability of each token; None if the request did not ask for it."""
    scores: list[ScoredToken | None] = [None] * len(sequences)
    wanted = [sequence.active.request.top_logprobs for sequence in sequences]
    asking = [i for i, top in enumerate(wanted) if top is not None]
    if asking:
        max_top = max(wanted[i] or 0 for i in asking)
        for i, scored in zip(
            asking,
            token_logprobs(logits[asking], [tokens[i] for i in asking], max_top),
            strict=True,
        ):
            scores[i] = ScoredToken(scored.id, scored.logprob, scored.top[: wanted[i]])
    return scores
