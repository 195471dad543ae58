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
from optillm_hooks.local_provider.uncertainty import Measured, measure

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

    asked: Submission
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
    def generation(self) -> EngineRequest:
        return self.asked.generation

    @property
    def running(self) -> int:
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

    job: _ActiveRequest
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
        self._jobs: list[_ActiveRequest] = []

    @property
    def idle(self) -> bool:
        return not self._jobs

    @property
    def weight_bytes(self) -> int:
        """Memory of the model itself."""
        return self._runner.weight_bytes

    @property
    def bytes(self) -> int:
        """Memory for keys and values of rows, of prompts they begin from and of remembered ones."""
        kept = [(job.prefix, job.generation.adapter) for job in self._jobs]
        apart = sum(p.bytes for p, a in kept if p is not None and not self._prefixes.holds(p, a))
        return self._runner.rows.bytes + apart + self._prefixes.bytes

    def add(self, asked: Submission) -> None:
        """Let a request join. If it cannot be served it is told, and does not join."""
        try:
            self._jobs.append(self._prepared(asked))
        except OptiLLMError as exc:
            asked.deliver(exc)
        except Exception as exc:  # templates, tokenizers and grammars are others' programs
            kind = type(exc).__name__  # what it says may be the prompt
            failure = ProviderFailed(f"the request could not be prepared: {kind}", status=500)
            failure.__cause__ = exc
            asked.deliver(failure)

    def step(self) -> None:
        """Let each running row feed what it has waiting, and each request that can, begin."""
        for job in [job for job in self._jobs if job.asked.cancelled]:
            self._leave(job)
        self._admit()
        running = [branch for job in self._jobs for branch in job.branches]
        reading = [job for job in self._jobs if job.reading is not None]
        rows = [b.row for b in running] + [job.reading.row for job in reading if job.reading]
        queues = [b.waiting for b in running] + [j.reading.waiting for j in reading if j.reading]
        counts = chunk_prefills([len(queue) for queue in queues], self._capacity.chunk)
        fed = [i for i, count in enumerate(counts) if count]
        if fed:
            logits = self._runner.step([(rows[i], queues[i][: counts[i]]) for i in fed])
            for i in fed:
                del queues[i][: counts[i]]
            done = [(place, i) for place, i in enumerate(fed) if not queues[i]]
            writing = [(place, running[i]) for place, i in done if i < len(running)]
            if writing:
                self._write([b for _, b in writing], logits[[place for place, _ in writing]])
            for place, i in done:
                if i >= len(running):
                    self._prompt_read(reading[i - len(running)], logits[place])
        for job in [job for job in self._jobs if not job.running and not job.wanted]:
            self._finish(job)

    def fail(self, error: OptiLLMError) -> None:
        """End every request with `error`."""
        for job in list(self._jobs):
            job.asked.deliver(error)
            self._leave(job)

    def _prepared(self, asked: Submission) -> _ActiveRequest:
        request, runner = asked.generation, self._runner
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
        return _ActiveRequest(asked, prompt, room, seed, decoding, thinking, tools, constraint)

    def _admit(self) -> None:
        running = sum(job.running for job in self._jobs)
        taken = sum(self._claim(job, job.running) for job in self._jobs)
        given: Counter[_ActiveRequest] = Counter()

        def fits(job: _ActiveRequest) -> bool:
            nonlocal taken
            rows = job.running + given[job]
            more = self._claim(job, rows + 1) - self._claim(job, rows)
            if (running or given) and taken + more > self._capacity.kv_bytes:
                return False
            taken += more
            given[job] += 1
            return True

        opened: list[_Sequence] = []
        for job in admit(self._jobs, self._capacity.rows - running, fits):
            if job.first_logits is None:
                if not self._is_being_read(job):
                    self._read(job)
            else:
                assert job.prefix is not None  # noqa: S101 (kept as long as branches are wanted)
                opened += self._open(job, self._fork(job, job.prefix))
        self._first(opened)

    def _claim(self, job: _ActiveRequest, rows: int) -> int:
        """Return the memory that `rows` rows of `job` and its copy of the prompt may come to fill.

        Of a prompt that is still to be read it is not known whether rows share or copy it.
        """
        if not rows and job.prefix is None:
            return 0
        asked, prompt = job.generation.max_tokens, len(job.prompt)
        reply = job.room if asked is not None else min(job.room, _USUAL_REPLY)
        bytes_for = self._runner.rows.bytes_for
        copied = bytes_for(rows, prompt + reply)
        if not job.forks:
            return copied
        shared = bytes_for(min(rows, 1), prompt) + bytes_for(rows, reply)
        unread = max(copied, shared)
        needed = unread if job.first_logits is None else shared if job.shared else copied
        return needed + prompt * self._runner.rows.shape.token_bytes

    def _is_being_read(self, job: _ActiveRequest) -> bool:
        """Return whether much of a prompt is in another that is being read: it is copied then.

        Prompts are read one after another anyway, so waiting costs `job` no time.
        """
        hit = self._prefixes.find(job.prompt, job.generation.adapter)
        enough = (hit.tokens if hit else 0) + _WORTH_WAITING
        return any(
            other.reading is not None
            and other.generation.adapter == job.generation.adapter
            and self._prefixes.takes(self._runner.rows.bytes_for(1, len(other.prompt)))
            and common_beginning(job.prompt[:-1], other.prompt) >= enough
            for other in self._jobs
        )

    def _read(self, job: _ActiveRequest) -> None:
        adapter = job.generation.adapter
        hit = self._prefixes.find(job.prompt, adapter)
        if hit is None:
            job.reading = _Prefill(self._runner.begin(None, 0, adapter), list(job.prompt))
        else:
            job.cached_tokens = hit.tokens
            row = self._runner.begin(hit.prefix, hit.tokens, adapter)
            job.reading = _Prefill(row, job.prompt[hit.tokens :])

    def _prompt_read(self, job: _ActiveRequest, logits: Tensor) -> None:
        """Go over from reading the prompt to writing: the row becomes the first branch's."""
        assert job.reading is not None  # noqa: S101
        row, job.reading = job.reading.row, None
        job.prefix = self._runner.snapshot(row, job.prompt)
        job.first_logits = logits
        self._prefixes.add(job.prefix, job.generation.adapter)
        shifted = shift(logits[None], [job.generation.shifts({})])
        (first,) = self._grammars.mask(shifted, [job.constraint]).softmax(dim=-1)
        possible = int((first > _BANNED).count_nonzero())
        likeliest = first.topk(min(_FIRST_TOKENS, possible))
        job.decoding.begin(
            list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
        )
        job.shared = job.decoding.wanted > 1 and len(job.prompt) >= _SHARED_FROM
        if job.shared:
            self._runner.free(row)
            row = self._fork(job, job.prefix)
        self._first(self._open(job, row))

    def _fork(self, job: _ActiveRequest, prefix: Prefix) -> Row:
        return self._runner.fork(prefix, shared=job.shared, adapter=job.generation.adapter)

    def _open(self, job: _ActiveRequest, row: Row) -> list[_Sequence]:
        branch = job.decoding.open()
        if branch is None:
            self._runner.free(row)
            return []
        if not (job.decoding.wanted or job.shared) and job.decoding.live:
            job.prefix = None
        row.steering = branch.steering
        transcript = Transcript(
            job.opened,
            self._format,
            job.generation.stop,
            thinking=job.thinking,
            tools=job.tools,
            markers=markers(job.generation),
        )
        constraint = None if job.constraint is None else job.constraint.fork()
        rng = random.Random(f"{job.seed}:{job.opened}")  # noqa: S311 (no secret)
        job.opened += 1
        running = _Sequence(job, branch, row, transcript, rng, constraint)
        job.branches.append(running)
        return [running]

    def _first(self, opened: Sequence[_Sequence]) -> None:
        logits = [b.job.first_logits for b in opened if b.job.first_logits is not None]
        if logits:
            self._write(opened, torch.stack(logits))

    def _write(self, running: Sequence[_Sequence], logits: Tensor) -> None:
        """Draw each branch's next token from its row of `logits` and write it."""
        seen = _measured(running, logits)
        laws = [b.branch.law(m) for b, m in zip(running, seen, strict=True)]
        shifted = shift(logits, [b.job.generation.shifts(b.counts) for b in running])
        masked = self._grammars.mask(shifted, [b.constraint for b in running])
        tokens = draw(masked, laws, [b.rng.random() for b in running])
        scores = _scored(running, logits, tokens)
        for b, token, m, scored in zip(running, tokens, seen, scores, strict=True):
            try:
                self._take(b, token, m, scored)
            except ProviderFailed as exc:
                b.job.asked.deliver(exc)
                b.job.asked.cancelled = True

    def _take(
        self, b: _Sequence, token: int, measured: Measured, scored: ScoredToken | None
    ) -> None:
        job = b.job
        taken = b.branch.take(token, measured, end=token in self._format.end_ids)
        for place, written in enumerate(taken):
            if b.constraint is not None:
                b.constraint.take(written)
            last = len(b.transcript.ids) + 1 >= job.room
            drawn = scored if place == 0 and written == token else None
            piece = b.transcript.add(written, drawn, last=last)
            if piece is not None and job.decoding.live:
                job.asked.deliver(piece)
            job.drawn += 1
            b.waiting.append(written)
            b.counts[written] += 1
            if b.transcript.finish_reason is not None:
                break
        if b.transcript.finish_reason is not None or b.branch.stopped:
            self._close(b)

    def _close(self, b: _Sequence) -> None:
        self._runner.free(b.row)
        b.job.branches.remove(b)
        b.job.reasoning_tokens += b.transcript.reasoning_tokens
        b.job.decoding.close(b.branch, b.transcript.written(stopped=b.branch.stopped))

    def _finish(self, job: _ActiveRequest) -> None:
        outcome = job.decoding.outcome()
        if not job.decoding.live:
            reader = ReplyReader(opened=job.thinking, tools=job.tools)
            for shown in (reader.feed(outcome.text), reader.close()):
                job.asked.deliver(Piece(0, shown.text, shown.reasoning, tool_calls=shown.calls))
            called = reader.called and outcome.finish_reason == "stop"
            job.asked.deliver(
                Piece(0, finish_reason="tool_calls" if called else outcome.finish_reason)
            )
        counts = (len(job.prompt), job.drawn, job.cached_tokens, job.reasoning_tokens)
        job.asked.deliver(Finished(*counts, outcome.facts))
        self._leave(job)

    def _leave(self, job: _ActiveRequest) -> None:
        self._jobs.remove(job)
        if job.reading is not None:
            self._runner.free(job.reading.row)
            job.reading = None
        for b in job.branches:
            self._runner.free(b.row)
        job.branches.clear()


def _question(messages: Messages) -> str:
    return next((as_text(m) for m in reversed(messages) if m.get("role") == "user"), "")


def _measured(running: Sequence[_Sequence], logits: Tensor) -> list[Measured]:
    asked = frozenset().union(*(b.branch.asks for b in running))
    measured = [Measured()] * len(running)
    asking = [i for i, b in enumerate(running) if b.branch.asks]
    if asking:
        for i, m in zip(asking, measure(logits[asking], asked), strict=True):
            measured[i] = m
    return measured


def _scored(
    running: Sequence[_Sequence], logits: Tensor, tokens: Sequence[int]
) -> list[ScoredToken | None]:
    scores: list[ScoredToken | None] = [None] * len(running)
    asking = [i for i, b in enumerate(running) if b.job.generation.top_logprobs is not None]
    if asking:
        top = max(running[i].job.generation.top_logprobs or 0 for i in asking)
        some = score(logits[asking], [tokens[i] for i in asking], top)
        for i, scored in zip(asking, some, strict=True):
            mine = running[i].job.generation.top_logprobs
            scores[i] = ScoredToken(scored.id, scored.logprob, scored.top[:mine])
    return scores
