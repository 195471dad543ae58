"""The running batch: requests join and leave it at any step. Only the engine's thread calls it."""

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optillm_hooks.decoding.autothink import AutoThinkSettings
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.errors import OptiLLMError, ProviderFailed, RequestRejected
from optillm_hooks.local_provider.chat_format import ChatFormat, ReplyReader, Transcript, as_text
from optillm_hooks.local_provider.decoding.base import Branch, Decoding
from optillm_hooks.local_provider.decoding.methods import Vocabulary, markers, method, steering
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Finished,
    Messages,
    Piece,
    PromptTooLong,
    ScoredToken,
    Submission,
    check_adapter,
)
from optillm_hooks.local_provider.grammar import Constraint
from optillm_hooks.local_provider.kv_cache import Prefix, Row
from optillm_hooks.local_provider.prefix_cache import PrefixCache, common_beginning
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.sampling import draw, score, shift
from optillm_hooks.local_provider.scheduler import admit, chunk_prefills
from optillm_hooks.local_provider.tool_calls import Tools
from optillm_hooks.local_provider.uncertainty import Uncertainty, measure_uncertainty

_WORTH_WAITING = 32
"""Tokens of a prompt that another request is reading from which they are not read twice."""

_SHARED_FROM = 64
"""Tokens from which a prompt is read by reference: below, one more copy is the smaller cost."""

_FIRST_TOKENS = 256
"""How many of the likeliest first tokens a decoding method is shown."""

_BANNED = 1e-30
"""Probability up to which a first token is not shown: what a bias of -100 leaves of one."""

_USUAL_REPLY = 1024
"""Tokens that memory is set aside for when a request does not say how many it wants."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much one engine does at a time."""

    rows: int = 64
    chunk: int = 256
    """Most prompt tokens per step, and so the longest stall of a running stream."""

    kv_bytes: int = 4 << 30
    """Memory that keys and values of running rows, and of the prompts they begin from, may fill.

    One row runs whatever it takes, and of a request that does not bound its replies they may come
    to more. Slots are made ahead: up to twice as much is allocated.
    """

    prefix_bytes: int = 512 << 20
    """Most memory for those of prompts that are kept for later requests."""

    reply_tokens: int = 4096
    """Longest reply to a request that does not bound its own."""


@dataclass(eq=False, slots=True)
class _ActiveRequest:
    """A request that takes part in the batch."""

    submission: Submission
    prompt: list[int]
    room: int
    """Most tokens of a choice."""

    seed: int
    decoding: Decoding
    thinking: bool
    """Whether the prompt ends inside a block of thinking."""

    tools: Tools | None = None
    constraint: Constraint | None = None
    """The form of the reply, at its beginning."""

    reading: "_Prefill | None" = None
    prefix: Prefix | None = None
    shared: bool = False
    """Whether its rows read the prompt by reference; else each has a copy."""

    first_logits: Tensor | None = None
    """Of the first token of the reply, from which every branch begins."""

    branches: "list[_Sequence]" = field(default_factory=list["_Sequence"])
    opened: int = 0
    drawn: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    @property
    def request(self) -> EngineRequest:
        return self.submission.request

    @property
    def rows(self) -> int:
        return len(self.branches) + (self.reading is not None)

    @property
    def wanted(self) -> int:
        if self.first_logits is None:
            return 0 if self.reading else 1
        return self.decoding.wanted

    @property
    def forks(self) -> bool:
        """Whether there is, or will be, a copy of its prompt that several rows begin from."""
        if self.first_logits is None:
            return not self.decoding.live or self.decoding.wanted > 1
        return self.prefix is not None


@dataclass(eq=False, slots=True)
class _Prefill:
    """A prompt that is being read into a row."""

    row: Row
    waiting: list[int]


@dataclass(eq=False, slots=True)
class _Sequence:
    """A branch that is being written."""

    active: _ActiveRequest
    branch: Branch
    row: Row
    transcript: Transcript
    rng: random.Random
    constraint: Constraint | None = None
    waiting: list[int] = field(default_factory=list[int])
    """Tokens that are written but not yet fed."""

    counts: Counter[int] = field(default_factory=Counter[int])
    """How often each token was written."""


class Batch:
    """All requests of one loaded model."""

    def __init__(self, runner: Runner, chat_format: ChatFormat, capacity: Capacity) -> None:
        self._runner = runner
        self._format = chat_format
        self._capacity = capacity
        self._grammars = chat_format.grammars
        self._prefixes: PrefixCache[Prefix] = PrefixCache(capacity.prefix_bytes)
        self._active: list[_ActiveRequest] = []

    @property
    def idle(self) -> bool:
        return not self._active

    @property
    def weight_bytes(self) -> int:
        """Memory of the model itself."""
        return self._runner.weight_bytes

    @property
    def bytes(self) -> int:
        """Memory for keys and values of rows, of prompts they begin from and of remembered ones."""
        kept = [(active.prefix, active.request.adapter) for active in self._active]
        apart = sum(p.bytes for p, a in kept if p is not None and not self._prefixes.holds(p, a))
        return self._runner.rows.bytes + apart + self._prefixes.bytes

    def add(self, submission: Submission) -> None:
        """Let a request join. If it cannot be served it is told, and does not join."""
        try:
            self._active.append(self._prepared(submission))
        except OptiLLMError as exc:
            submission.deliver(exc)
        except Exception as exc:  # templates, tokenizers and grammars are others' programs
            kind = type(exc).__name__  # what it says may be the prompt
            failure = ProviderFailed(f"the request could not be prepared: {kind}", status=500)
            failure.__cause__ = exc
            submission.deliver(failure)

    def step(self) -> None:
        """Let each running row feed what it has waiting, and each request that can, begin."""
        for active in [active for active in self._active if active.submission.cancelled]:
            self._leave(active)
        self._admit()
        sequences = [sequence for active in self._active for sequence in active.branches]
        reading = [active for active in self._active if active.reading is not None]
        rows = [b.row for b in sequences] + [
            active.reading.row for active in reading if active.reading
        ]
        queues = [b.waiting for b in sequences] + [j.reading.waiting for j in reading if j.reading]
        counts = chunk_prefills([len(queue) for queue in queues], self._capacity.chunk)
        fed = [i for i, count in enumerate(counts) if count]
        if fed:
            logits = self._runner.step([(rows[i], queues[i][: counts[i]]) for i in fed])
            for i in fed:
                del queues[i][: counts[i]]
            done = [(place, i) for place, i in enumerate(fed) if not queues[i]]
            writing = [(place, sequences[i]) for place, i in done if i < len(sequences)]
            if writing:
                self._write([b for _, b in writing], logits[[place for place, _ in writing]])
            for place, i in done:
                if i >= len(sequences):
                    self._prompt_read(reading[i - len(sequences)], logits[place])
        for active in [active for active in self._active if not active.rows and not active.wanted]:
            self._finish(active)

    def fail(self, error: OptiLLMError) -> None:
        """End every request with `error`."""
        for active in list(self._active):
            active.submission.deliver(error)
            self._leave(active)

    def _prepared(self, submission: Submission) -> _ActiveRequest:
        request, runner = submission.request, self._runner
        check_adapter(request.adapter, runner.adapters.names)
        unknown = steering(request).keys() - runner.steering.names
        if unknown:
            known = ", ".join(sorted(runner.steering.names)) or "none"
            raise RequestRejected(
                f"no steering vector {min(unknown)[:80]!r}; this model has: {known}",
                param="pattern_strengths",
            )
        if any(not 0 <= token < runner.vocabulary for token in request.logit_bias):
            raise RequestRejected(
                f"logit_bias takes token ids from 0 to {runner.vocabulary - 1}", param="logit_bias"
            )
        tools = self._format.tools(request)
        prompt = self._format.encode(request.messages, request.tools)
        room = runner.context - len(prompt)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens; this model's context of {runner.context} "
                "must hold it and at least one token of the answer",
                param="messages",
            )
        if runner.rows.bytes_for(1, len(prompt) + 1) > self._capacity.kv_bytes:
            raise ProviderFailed("the prompt does not fit the engine's memory", status=503)
        seed = request.seed if request.seed is not None else int.from_bytes(os.urandom(8))
        room = min(room, request.max_tokens or self._capacity.reply_tokens)
        vocabulary = Vocabulary(self._format.encode_text, self._format.token_bytes)
        thinking = self._format.opens_thinking(prompt, markers(request)[0])
        question = _question(request.messages)
        decoding = method(request, question, room, vocabulary, opened=thinking)
        thinks = isinstance(request.decoding, ThinkSettings | AutoThinkSettings)
        constraint = self._format.constraint(request, tools, opened=thinking, thinks=thinks)
        return _ActiveRequest(submission, prompt, room, seed, decoding, thinking, tools, constraint)

    def _admit(self) -> None:
        taken_rows = sum(active.rows for active in self._active)
        taken = sum(self._claim(active, active.rows) for active in self._active)
        given: Counter[_ActiveRequest] = Counter()

        def fits(active: _ActiveRequest) -> bool:
            nonlocal taken
            rows = active.rows + given[active]
            more = self._claim(active, rows + 1) - self._claim(active, rows)
            if (taken_rows or given) and taken + more > self._capacity.kv_bytes:
                return False
            taken += more
            given[active] += 1
            return True

        opened: list[_Sequence] = []
        for active in admit(self._active, self._capacity.rows - taken_rows, fits):
            if active.first_logits is None:
                if not self._is_being_read(active):
                    self._read(active)
            else:
                assert active.prefix is not None  # noqa: S101 (kept as long as branches are wanted)
                opened += self._open(active, self._fork(active, active.prefix))
        self._first(opened)

    def _claim(self, active: _ActiveRequest, rows: int) -> int:
        """Return the memory that `rows` rows of a request and its copy of the prompt may fill.

        Of a prompt that is still to be read it is not known whether rows share or copy it.
        """
        if not rows and active.prefix is None:
            return 0
        bounded, prompt = active.request.max_tokens is not None, len(active.prompt)
        reply = active.room if bounded else min(active.room, _USUAL_REPLY)
        bytes_for = self._runner.rows.bytes_for
        copied = bytes_for(rows, prompt + reply)
        if not active.forks:
            return copied
        shared = bytes_for(min(rows, 1), prompt) + bytes_for(rows, reply)
        unread = max(copied, shared)
        needed = unread if active.first_logits is None else shared if active.shared else copied
        return needed + prompt * self._runner.rows.shape.token_bytes

    def _is_being_read(self, active: _ActiveRequest) -> bool:
        """Return whether much of a prompt is in another that is being read: it is copied then.

        Prompts are read one after another anyway, so waiting costs no time.
        """
        hit = self._prefixes.find(active.prompt, active.request.adapter)
        enough = (hit.tokens if hit else 0) + _WORTH_WAITING
        return any(
            other.reading is not None
            and other.request.adapter == active.request.adapter
            and self._prefixes.takes(self._runner.rows.bytes_for(1, len(other.prompt)))
            and common_beginning(active.prompt[:-1], other.prompt) >= enough
            for other in self._active
        )

    def _read(self, active: _ActiveRequest) -> None:
        adapter = active.request.adapter
        hit = self._prefixes.find(active.prompt, adapter)
        if hit is None:
            active.reading = _Prefill(self._runner.begin(None, 0, adapter), list(active.prompt))
        else:
            active.cached_tokens = hit.tokens
            row = self._runner.begin(hit.prefix, hit.tokens, adapter)
            active.reading = _Prefill(row, active.prompt[hit.tokens :])

    def _prompt_read(self, active: _ActiveRequest, logits: Tensor) -> None:
        """Go over from reading the prompt to writing: the row becomes the first branch's."""
        assert active.reading is not None  # noqa: S101
        row, active.reading = active.reading.row, None
        active.prefix = self._runner.snapshot(row, active.prompt)
        active.first_logits = logits
        self._prefixes.add(active.prefix, active.request.adapter)
        shifted = shift(logits[None], [active.request.shifts({})])
        (first,) = self._grammars.mask(shifted, [active.constraint]).softmax(dim=-1)
        possible = int((first > _BANNED).count_nonzero())
        likeliest = first.topk(min(_FIRST_TOKENS, possible))
        active.decoding.begin(
            list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
        )
        active.shared = active.decoding.wanted > 1 and len(active.prompt) >= _SHARED_FROM
        if active.shared:
            self._runner.free(row)
            row = self._fork(active, active.prefix)
        self._first(self._open(active, row))

    def _fork(self, active: _ActiveRequest, prefix: Prefix) -> Row:
        return self._runner.fork(prefix, shared=active.shared, adapter=active.request.adapter)

    def _open(self, active: _ActiveRequest, row: Row) -> list[_Sequence]:
        branch = active.decoding.open()
        if branch is None:
            self._runner.free(row)
            return []
        if not (active.decoding.wanted or active.shared) and active.decoding.live:
            active.prefix = None
        row.steering = branch.steering
        transcript = Transcript(
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
        sequence = _Sequence(active, branch, row, transcript, rng, constraint)
        active.branches.append(sequence)
        return [sequence]

    def _first(self, opened: Sequence[_Sequence]) -> None:
        logits = [b.active.first_logits for b in opened if b.active.first_logits is not None]
        if logits:
            self._write(opened, torch.stack(logits))

    def _write(self, sequences: Sequence[_Sequence], logits: Tensor) -> None:
        """Draw each branch's next token from its row of `logits` and write it."""
        seen = _measured(sequences, logits)
        params = [b.branch.sampling_params(m) for b, m in zip(sequences, seen, strict=True)]
        shifted = shift(logits, [b.active.request.shifts(b.counts) for b in sequences])
        masked = self._grammars.mask(shifted, [b.constraint for b in sequences])
        tokens = draw(masked, params, [b.rng.random() for b in sequences])
        scores = _scored(sequences, logits, tokens)
        for b, token, m, scored in zip(sequences, tokens, seen, scores, strict=True):
            try:
                self._take(b, token, m, scored)
            except ProviderFailed as exc:
                b.active.submission.deliver(exc)
                b.active.submission.cancelled = True

    def _take(
        self, b: _Sequence, token: int, uncertainty: Uncertainty, scored: ScoredToken | None
    ) -> None:
        active = b.active
        taken = b.branch.take(token, uncertainty, end=token in self._format.end_ids)
        for place, written in enumerate(taken):
            if b.constraint is not None:
                b.constraint.take(written)
            last = len(b.transcript.ids) + 1 >= active.room
            drawn = scored if place == 0 and written == token else None
            piece = b.transcript.add(written, drawn, last=last)
            if piece is not None and active.decoding.live:
                active.submission.deliver(piece)
            active.drawn += 1
            b.waiting.append(written)
            b.counts[written] += 1
            if b.transcript.finish_reason is not None:
                break
        if b.transcript.finish_reason is not None or b.branch.stopped:
            self._close(b)

    def _close(self, b: _Sequence) -> None:
        self._runner.free(b.row)
        b.active.branches.remove(b)
        b.active.reasoning_tokens += b.transcript.reasoning_tokens
        b.active.decoding.close(b.branch, b.transcript.written(stopped=b.branch.stopped))

    def _finish(self, active: _ActiveRequest) -> None:
        outcome = active.decoding.outcome()
        if not active.decoding.live:
            reader = ReplyReader(opened=active.thinking, tools=active.tools)
            for shown in (reader.feed(outcome.text), reader.close()):
                active.submission.deliver(
                    Piece(0, shown.text, shown.reasoning, tool_calls=shown.calls)
                )
            called = reader.called and outcome.finish_reason == "stop"
            active.submission.deliver(
                Piece(0, finish_reason="tool_calls" if called else outcome.finish_reason)
            )
        counts = (len(active.prompt), active.drawn, active.cached_tokens, active.reasoning_tokens)
        active.submission.deliver(Finished(*counts, outcome.facts))
        self._leave(active)

    def _leave(self, active: _ActiveRequest) -> None:
        self._active.remove(active)
        if active.reading is not None:
            self._runner.free(active.reading.row)
            active.reading = None
        for b in active.branches:
            self._runner.free(b.row)
        active.branches.clear()


def _question(messages: Messages) -> str:
    return next((as_text(m) for m in reversed(messages) if m.get("role") == "user"), "")


def _measured(sequences: Sequence[_Sequence], logits: Tensor) -> list[Uncertainty]:
    metrics = frozenset().union(*(b.branch.metrics for b in sequences))
    uncertainty = [Uncertainty()] * len(sequences)
    asking = [i for i, b in enumerate(sequences) if b.branch.metrics]
    if asking:
        for i, m in zip(asking, measure_uncertainty(logits[asking], metrics), strict=True):
            uncertainty[i] = m
    return uncertainty


def _scored(
    sequences: Sequence[_Sequence], logits: Tensor, tokens: Sequence[int]
) -> list[ScoredToken | None]:
    scores: list[ScoredToken | None] = [None] * len(sequences)
    asking = [i for i, b in enumerate(sequences) if b.active.request.top_logprobs is not None]
    if asking:
        top = max(sequences[i].active.request.top_logprobs or 0 for i in asking)
        some = score(logits[asking], [tokens[i] for i in asking], top)
        for i, scored in zip(asking, some, strict=True):
            mine = sequences[i].active.request.top_logprobs
            scores[i] = ScoredToken(scored.id, scored.logprob, scored.top[:mine])
    return scores
