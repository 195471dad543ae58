"""Continuous batching: requests join and leave the running batch at any step.

Called only from the engine's thread.
"""

import random
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider.active_request import (
    ActiveRequest,
    Prefill,
    RunningSequence,
    prepare,
)
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.decoding.methods import markers
from optillm_hooks.local_provider.engine_request import (
    Finished,
    Piece,
    SamplingParams,
    ScoredToken,
    Submission,
)
from optillm_hooks.local_provider.failures import is_out_of_memory, row_failure, step_failure
from optillm_hooks.local_provider.model_runner import AnyRunner, RunnerRow
from optillm_hooks.local_provider.prefix_cache import (
    CachedPrefix,
    PrefixCache,
)
from optillm_hooks.local_provider.sampling import (
    add_offsets,
    penalize_repetitions,
    sample,
    token_logprobs,
)
from optillm_hooks.local_provider.sampling_defaults import with_defaults
from optillm_hooks.local_provider.scheduler import admit, chunk_prefills, whole_prefills
from optillm_hooks.local_provider.transfer import to_device
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


class _Sampled(NamedTuple):
    """The next token of a sequence."""

    token: int
    scored: ScoredToken | None
    """With its log-probability, if log-probabilities were requested."""


_Result = TypeVar("_Result")


class Batch:
    """The continuous batch of one loaded model: all its active requests."""

    def __init__(
        self,
        runner: AnyRunner,
        chat_format: ChatFormat,
        capacity: Capacity,
        defaults: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`defaults`: the model's sampling parameters for requests that set none."""
        self._runner = runner
        self._format = chat_format
        self._capacity = capacity
        self._defaults = defaults
        self._grammars = chat_format.grammars
        self._prefixes: PrefixCache[CachedPrefix] = PrefixCache(
            capacity.prefix_bytes, whole=not runner.cuts_prefixes
        )
        self._compiling: list[ActiveRequest] = []
        """Requests whose grammar is being compiled; they join the batch when it is ready."""

        self._active: list[ActiveRequest] = []
        self._has_failed = False
        """Whether a request has failed since the last step: it may have left rows behind."""

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
        active = self.prepare(submission)
        if active is not None:
            self.join(active)

    def prepare(self, submission: Submission) -> ActiveRequest | None:
        """Return a request that can join the batch; None: it cannot be served and got an error.

        Can be called in any thread.
        """
        submission.request = with_defaults(submission.request, self._defaults)
        limits = {"reply_tokens": self._capacity.reply_tokens, "kv_bytes": self._capacity.kv_bytes}
        try:
            return prepare(submission, self._runner, self._format, **limits)
        except OptiLLMError as exc:
            submission.deliver(exc)
        except BaseException as exc:  # chat templates and tokenizers are third-party code
            kind = type(exc).__name__  # the message may quote the prompt
            failure = ProviderFailed(f"the request could not be prepared: {kind}", status=500)
            failure.__cause__ = exc
            submission.deliver(failure)
        return None

    def join(self, active: ActiveRequest, wait_s: float = 0.0) -> None:
        """Add a prepared request to the active ones, or to those whose grammar is compiling.

        Active requests are in order of arrival, whatever their preparation took.
        """
        with self._alone(active):
            if active.is_ready(wait_s):
                insort(self._active, active, key=lambda one: one.submission.number)
            else:
                self._compiling.append(active)

    def _join_compiled(self) -> None:
        """Add the requests whose grammar is ready; those whose grammar is refused end."""
        compiling, self._compiling = self._compiling, []
        for active in compiling:
            self.join(active, wait_s=0.0 if self._active else _COMPILE_WAIT_S / len(compiling))

    def step(self) -> None:
        """Run one step of continuous batching, with at most one forward pass.

        Requests whose grammar is compiled join, and those that fit are admitted. Every running
        sequence feeds its last tokens and every prefill its next chunk. Then sequences sample their
        next token, finished prefills begin to decode, and finished requests leave.

        Whatever fails ends the requests that it concerns, and no others.
        """
        self._drop_cancelled()
        self._join_compiled()
        self._admit()
        done = [pair for pair in self._feed(self._next_chunks()) if not pair[0].waiting]
        decoding = [(s, logits) for s, logits in done if isinstance(s, RunningSequence)]
        self._write_next([s for s, _ in decoding], [logits for _, logits in decoding])
        for source, logits in done:
            if isinstance(source, Prefill):
                with self._alone(source.active):
                    self._begin_decode(source, logits)
        self._finish_done()

    def fail(self, error: OptiLLMError) -> None:
        """End every request with `error`, and free all rows."""
        for active in [*self._compiling, *self._active]:
            self._fail(active, error)
        self._drop_cancelled()

    @contextmanager
    def _alone(self, active: ActiveRequest) -> Iterator[None]:
        """End `active`, and nothing else, if anything is raised within.

        That includes panics of extension modules, which are no `Exception`.
        """
        try:
            yield
        except BaseException as exc:
            self._fail(active, row_failure(exc))

    def _fail(self, active: ActiveRequest, error: OptiLLMError) -> None:
        """End `active` with `error`; the next step drops it."""
        self._has_failed = True
        if not active.submission.cancelled:
            with suppress(Exception):  # the client's callback may have been what failed
                active.fail(error)
        active.submission.cancelled = True

    def _drop_cancelled(self) -> None:
        self._compiling = [a for a in self._compiling if not a.submission.cancelled]
        for active in [active for active in self._active if active.submission.cancelled]:
            self._remove(active)
        if self._has_failed:
            self._has_failed = False
            self._free_lost_rows()

    def _free_lost_rows(self) -> None:
        """Free the rows that belong to no request: one failed while it was given them."""
        held = {sequence.row for active in self._active for sequence in active.sequences}
        held |= {active.prefill.row for active in self._active if active.prefill is not None}
        for row in list(self._runner.kv_cache.rows()):
            if row not in held:
                self._runner.free(row)

    def _finish_done(self) -> None:
        for active in list(self._active):
            with self._alone(active):
                if not (active.wanted or active.rows or active.submission.cancelled):
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
            with self._alone(active):
                if active.first_logits is not None:
                    assert active.prefix is not None  # noqa: S101 (kept while rows are wanted)
                    opened += self._open(active, self._fork(active, active.prefix))
                elif not self._is_being_prefilled(active):
                    self._begin_prefill(active)
        self._sample_first(opened)

    def _claim(self, active: ActiveRequest, rows: int) -> int:
        return active.kv_bytes(rows, self._runner.kv_cache)

    def _is_being_prefilled(self, active: ActiveRequest) -> bool:
        """Return True if it is faster to wait for a running prefill and to reuse its result.

        A prompt that is read beside another one gets half of each step or more, so reading it now
        takes no longer than all steps for twice its tokens.
        """
        hit = self._prefixes.find(active.prompt, active.request.adapter)
        known, length = hit.tokens if hit else 0, len(active.prompt)

        def saves_time(other: ActiveRequest) -> bool:
            if other.prefill is None or other.request.adapter != active.request.adapter:
                return False
            common = self._prefixes.reusable(active.prompt, other.prompt[:-1])
            first = len(other.prefill.waiting) + length - common
            size = self._runner.kv_cache.bytes_for(1, len(other.prompt))
            enough = common >= known + _WORTH_WAITING and first <= 2 * (length - known)
            return enough and self._prefixes.accepts(size)

        return any(map(saves_time, self._active))

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
        active.shares_prefix = (
            self._runner.shares_prefixes
            and active.decoding.wanted > 1
            and len(active.prompt) >= _SHARED_FROM
        )
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
        adjusted = add_offsets(penalized, [active.logit_offsets({})])
        (first,) = self._grammars.mask(adjusted, [active.constraint]).softmax(dim=-1)
        possible = int((first > _BANNED).count_nonzero())
        likeliest = first.topk(min(_FIRST_TOKENS, possible))
        return list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))

    def _fork(self, active: ActiveRequest, prefix: CachedPrefix) -> RunnerRow:
        adapter = active.request.adapter
        row: RunnerRow = self._runner.fork(prefix, shared=active.shares_prefix, adapter=adapter)
        return row

    def _open(self, active: ActiveRequest, row: RunnerRow) -> list[RunningSequence]:
        """Return the next sequence of a request in a list, which is empty if none can start now."""
        branch = active.decoding.open()
        if branch is None:
            self._runner.free(row)
            return []
        if not (active.decoding.wanted or active.shares_prefix) and active.decoding.live:
            active.prefix = None
        row.steering = branch.steering
        request = active.request
        output = ChoiceOutput(
            active.opened,
            self._format,
            request.stop,
            end_ids=active.end_ids,
            min_tokens=request.min_tokens,
            include_stop=request.include_stop,
            skip_special_tokens=request.skip_special_tokens,
            thinking=active.thinking,
            tools=active.tools,
            markers=markers(request),
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
        waiting = [len(source.waiting) for source in sources]
        if self._runner.reads_in_chunks:
            sizes = chunk_prefills(waiting, self._capacity.chunk)
        else:
            sizes = whole_prefills(waiting)
        return [_Chunk(s, size) for s, size in zip(sources, sizes, strict=True) if size]

    def _feed(self, chunks: Sequence[_Chunk]) -> list[tuple[Prefill | RunningSequence, Tensor]]:
        """Feed `chunks` to the model; return what was fed, with the logits [V] after it.

        A step that fails is repeated in halves, so that only the requests which fail alone end. If
        memory is short, the prefix cache is given up first, and a prompt is fed in smaller chunks.
        """
        if len(chunks) > 1 and not self._runner.steps_together:
            return [fed for chunk in chunks for fed in self._feed([chunk])]
        if not chunks:
            return []
        try:
            logits = self._runner.step(
                [(source.row, source.waiting[:size]) for source, size in chunks]
            )
        except BaseException as exc:
            lacks_memory, failure = is_out_of_memory(exc), step_failure(exc)
        else:
            return self._fed(chunks, logits)
        # Outside of the handler, since the error holds the memory of the step that failed.
        if lacks_memory and self._prefixes.bytes:
            self._prefixes.clear()
            return self._feed(chunks)
        middle = len(chunks) // 2
        if middle:
            return [*self._feed(chunks[:middle]), *self._feed(chunks[middle:])]
        ((source, size),) = chunks
        if lacks_memory and size > 1 and self._runner.steps_together:
            return self._feed([_Chunk(source, size // 2)])
        self._fail(source.active, failure)
        return []

    def _fed(
        self, chunks: Sequence[_Chunk], logits: Tensor
    ) -> list[tuple[Prefill | RunningSequence, Tensor]]:
        """Take the tokens that were fed from those that wait; end the rows whose logits are NaN."""
        fed: list[tuple[Prefill | RunningSequence, Tensor]] = []
        finite = logits.amax(dim=-1).isfinite().tolist()
        for (source, size), row_logits, valid in zip(chunks, logits, finite, strict=True):
            del source.waiting[:size]
            if valid:
                fed.append((source, row_logits))
            else:
                self._runner.clear(source.row)
                self._fail(source.active, _not_a_number("the model's output"))
        return fed

    def _sample_first(self, opened: Sequence[RunningSequence]) -> None:
        """Sample the first token of sequences that have just been opened."""
        pairs = [(s, s.active.first_logits) for s in opened if s.active.first_logits is not None]
        self._write_next([s for s, _ in pairs], [logits for _, logits in pairs])

    def _write_next(self, sequences: Sequence[RunningSequence], logits: Sequence[Tensor]) -> None:
        """Sample the next token of each sequence from its logits [V], and write it."""
        if not sequences:
            return
        stacked = torch.stack(list(logits))
        draws = {sequence: sequence.rng.random() for sequence in sequences}
        uncertain = self._for_each(sequences, stacked, _uncertainties)
        params: dict[RunningSequence, SamplingParams] = {}
        for sequence, uncertainty in uncertain.items():
            with self._alone(sequence.active):
                params[sequence] = sequence.branch.sampling_params(uncertainty)
        if len(params) < len(sequences):
            left = [i for i, sequence in enumerate(sequences) if sequence in params]
            (places,) = to_device(stacked.device, left)
            stacked = stacked[places]
        sampled = self._for_each(list(params), stacked, partial(self._sample, params, draws))
        for sequence, result in sampled.items():
            if not sequence.active.submission.cancelled:
                with self._alone(sequence.active):
                    self._write(sequence, result, uncertain[sequence])

    def _for_each(
        self,
        sequences: Sequence[RunningSequence],
        logits: Tensor,
        compute: Callable[[Sequence[RunningSequence], Tensor], Sequence[_Result]],
    ) -> dict[RunningSequence, _Result]:
        """Return what `compute` returns for each sequence and its row of `logits`.

        If it raises for all together, it is called for each alone; those for which it raises then
        fail, and are left out. It must not change anything.
        """
        if not sequences:
            return {}
        try:
            return dict(zip(sequences, compute(sequences, logits), strict=True))
        except BaseException as exc:
            failure = row_failure(exc)
        if len(sequences) == 1:
            self._fail(sequences[0].active, failure)
            return {}
        found: dict[RunningSequence, _Result] = {}
        for place, sequence in enumerate(sequences):
            found |= self._for_each([sequence], logits[place : place + 1], compute)
        return found

    def _sample(
        self,
        params: Mapping[RunningSequence, SamplingParams],
        draws: Mapping[RunningSequence, float],
        sequences: Sequence[RunningSequence],
        logits: Tensor,
    ) -> list[_Sampled]:
        """Return the next token of each sequence: apply penalties, mask by grammar, then sample.

        `draws`: a number in [0, 1) for each.

        Raises:
            ProviderFailed: a sequence has no token to sample from.
        """
        penalized = penalize_repetitions(
            logits,
            [s.active.request.repetition_penalty for s in sequences],
            [s.repeatable for s in sequences],
        )
        adjusted = add_offsets(penalized, [s.active.logit_offsets(s.counts) for s in sequences])
        masked = self._grammars.mask(adjusted, [s.constraint for s in sequences])
        tokens = sample(masked, [params[s] for s in sequences], [draws[s] for s in sequences])
        if masked is not logits:  # else nothing is banned
            (places,) = to_device(masked.device, tokens)
            if not masked.gather(1, places[:, None]).isfinite().all():
                raise _not_a_number("the probability of every token")
        return list(map(_Sampled, tokens, _scores(sequences, logits, tokens)))

    def _write(
        self, sequence: RunningSequence, sampled: _Sampled, uncertainty: Uncertainty
    ) -> None:
        """Append the tokens that the branch emits for the sampled one; deliver the new text.

        Raises:
            ProviderFailed: the grammar does not allow the token.
        """
        active, branch, output = sequence.active, sequence.branch, sequence.output
        token, scored = sampled
        emitted = branch.emit(token, uncertainty, end=token in active.end_ids)
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
            reader = self._format.reader(
                active.tools, opened=active.thinking, markers=markers(active.request)
            )
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


def _not_a_number(what: str) -> ProviderFailed:
    return ProviderFailed(f"{what} is not a number", status=500)
