"""A request of the running batch: its prefill, its sequences, and the KV cache that it needs."""

import math
import os
import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from optillm_hooks.decoding.autothink import AutoThinkSettings
from optillm_hooks.decoding.markers import Markers
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.local_provider.chat_format import ChatFormat, as_text
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.decoding.base import Branch, Decoding, Vocabulary
from optillm_hooks.local_provider.decoding.methods import markers, start_decoding, steering
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Messages,
    Submission,
    check_adapter,
)
from optillm_hooks.local_provider.grammar import Constraint, ReplyGrammar
from optillm_hooks.local_provider.model_runner import AnyRunner, RowCache, RunnerRow
from optillm_hooks.local_provider.prefix_cache import CachedPrefix
from optillm_hooks.local_provider.prompt_length import check_length
from optillm_hooks.local_provider.tool_calls.tools import Tools

_ASSUMED_REPLY = 1024
"""Tokens of KV cache that a request without max_tokens reserves for its reply."""


@dataclass(eq=False, slots=True)
class ActiveRequest:
    """A request in the running batch, from its prefill to its last sequence."""

    submission: Submission
    prompt: list[int]
    max_tokens: int
    """Maximum number of tokens per choice, limited by the context."""

    seed: int
    decoding: Decoding
    thinking: bool
    """Whether the prompt ends inside a thinking block."""

    end_ids: frozenset[int]
    """The tokens that end a choice: the model's end tokens, and the request's."""

    tools: Tools | None = None
    grammar: ReplyGrammar | None = None
    """The grammar of the reply, which may still be compiling; None: the reply is free."""

    constraint: Constraint | None = None
    """The grammar of the reply in its initial state; each sequence forks it."""

    prefill: "Prefill | None" = None
    prefix: CachedPrefix | None = None
    """The KV cache of the whole prompt, kept while further sequences may start from it."""

    shares_prefix: bool = False
    """Whether its sequences share `prefix`; otherwise each has its own copy."""

    first_logits: Tensor | None = None
    """Logits of the reply's first token, from which every sequence starts."""

    sequences: "list[RunningSequence]" = field(default_factory=list["RunningSequence"])
    opened: int = 0
    """Number of sequences started so far."""

    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    @property
    def request(self) -> EngineRequest:
        return self.submission.request

    @property
    def rows(self) -> int:
        return len(self.sequences) + (self.prefill is not None)

    @property
    def wanted(self) -> int:
        if self.first_logits is None:
            return 0 if self.prefill else 1
        return self.decoding.wanted

    def logit_offsets(self, counts: Mapping[int, int]) -> Mapping[int, float]:
        """Return what is added to logits, by token id, after the generated tokens `counts`.

        Logit bias and penalties; end tokens are banned until there are `min_tokens`.
        """
        offsets = self.request.logit_offsets(counts)
        if not self.request.min_tokens or sum(counts.values()) >= self.request.min_tokens:
            return offsets
        return {**offsets, **dict.fromkeys(self.end_ids, -math.inf)}

    def is_ready(self, wait_s: float = 0.0) -> bool:
        """Return True if its grammar is compiled, or becomes so within `wait_s`.

        Raises:
            RequestRejected: the grammar cannot be enforced.
            ProviderFailed: the grammar could not be compiled.
        """
        if self.grammar is None:
            return True
        self.constraint = self.grammar.constraint(wait_s)
        return self.constraint is not None

    def deliver(self, event: Event) -> None:
        self.submission.deliver(event)

    def fail(self, error: Exception) -> None:
        """Deliver `error` as the last event; the next step drops the request."""
        self.deliver(error)
        self.submission.cancelled = True

    def kv_bytes(self, rows: int, cache: RowCache) -> int:
        """Return the maximum bytes of KV cache for `rows` rows and a copy of the prompt.

        Until the prefill ends, it is unknown whether rows will share the prompt or copy it.
        """
        if not rows and self.prefix is None:
            return 0
        prompt, reply = len(self.prompt), self.max_tokens
        if self.request.max_tokens is None:
            reply = min(reply, _ASSUMED_REPLY)
        copied = cache.bytes_for(rows, prompt + reply)
        if not self._keeps_prefix:
            return copied
        shared = cache.bytes_for(min(rows, 1), prompt) + cache.bytes_for(rows, reply)
        if self.first_logits is None:
            needed = max(copied, shared)
        else:
            needed = shared if self.shares_prefix else copied
        return needed + cache.prefix_bytes(prompt)

    @property
    def _keeps_prefix(self) -> bool:
        """Whether several sequences start, or will start, from a copy of its prompt."""
        if self.first_logits is None:
            return not self.decoding.live or self.decoding.wanted > 1
        return self.prefix is not None


@dataclass(eq=False, slots=True)
class Prefill:
    """The prefill of a request: its prompt enters the KV cache chunk by chunk."""

    active: ActiveRequest
    row: RunnerRow
    waiting: list[int]
    """Prompt tokens that have not been fed to the model yet."""


@dataclass(eq=False, slots=True)
class RunningSequence:
    """A sequence in its decode phase: one branch of a request, with its row of the KV cache."""

    active: ActiveRequest
    branch: Branch
    row: RunnerRow
    output: ChoiceOutput
    rng: random.Random
    constraint: Constraint | None = None
    waiting: list[int] = field(default_factory=list[int])
    """Sampled or forced tokens that have not been fed to the model yet."""

    counts: Counter[int] = field(default_factory=Counter[int])
    """Occurrences of each generated token, for the penalties."""

    @property
    def repeatable(self) -> Collection[int]:
        """The tokens so far, if there is a penalty on repeating them."""
        if self.active.request.repetition_penalty == 1:
            return ()
        return {*self.active.prompt, *self.counts}


def prepare(
    submission: Submission,
    runner: AnyRunner,
    chat_format: ChatFormat,
    *,
    reply_tokens: int,
    kv_bytes: int,
) -> ActiveRequest:
    """Return the request with its prompt tokenized and its decoding method set up.

    Its grammar, if it has one, is being compiled. Can be called in any thread.

    `reply_tokens`: maximum length of a reply to a request that sets none. `kv_bytes`: maximum size
    of the KV cache.

    Raises:
        RequestRejected: the request is invalid.
        ProviderFailed: the prompt does not fit into the KV cache.
    """
    request = submission.request
    _check_names(request, runner)
    tools = chat_format.tools(request)
    prompt = chat_format.encode(request.messages, request.tools, request.prompt, runner.context)
    _check_length(prompt, runner, kv_bytes)
    if max(prompt, default=0) >= runner.vocabulary:
        raise RequestRejected(
            f"the prompt has token {max(prompt)}, which the tokenizer has and the model lacks",
            param="messages",
        )
    max_tokens = min(runner.context - len(prompt), request.max_tokens or reply_tokens)
    reasoning = chat_format.reasoning(markers(request))
    thinking = chat_format.opens_thinking(prompt, reasoning)
    if request.prompt.continue_final:
        thinking = _leaves_thinking_open(request.messages[-1], reasoning.markers)
    vocabulary = Vocabulary(chat_format.encode_text, chat_format.token_bytes)
    question = _question(request.messages)
    decoding = start_decoding(
        request, question, max_tokens, vocabulary, opened=thinking, reasoning=reasoning
    )
    thinks = isinstance(request.decoding, ThinkSettings | AutoThinkSettings)
    grammar = chat_format.reply_grammar(request, tools, reasoning, opened=thinking, thinks=thinks)
    seed = request.seed if request.seed is not None else int.from_bytes(os.urandom(8))
    end_ids = request.stop_token_ids | (frozenset() if request.ignore_eos else chat_format.end_ids)
    return ActiveRequest(
        submission, prompt, max_tokens, seed, decoding, thinking, end_ids, tools, grammar
    )


def _check_names(request: EngineRequest, runner: AnyRunner) -> None:
    """Raise if the request names an adapter, steering vector or token that does not exist."""
    check_adapter(request.adapter, runner.adapters.names)
    unknown = steering(request).keys() - runner.steering.names
    if unknown:
        known = ", ".join(sorted(runner.steering.names)) or "none"
        raise RequestRejected(
            f"no steering vector {min(unknown)[:80]!r}; this model has: {known}",
            param="pattern_strengths",
        )
    named = {"logit_bias": request.logit_bias, "stop_token_ids": request.stop_token_ids}
    for field_name, tokens in named.items():
        if any(not 0 <= token < runner.vocabulary for token in tokens):
            raise RequestRejected(
                f"{field_name} accepts token ids from 0 to {runner.vocabulary - 1}",
                param=field_name,
            )


def _check_length(prompt: list[int], runner: AnyRunner, kv_bytes: int) -> None:
    """Raise PromptTooLong or ProviderFailed if no reply fits after `prompt`."""
    check_length(len(prompt), runner.context)
    if runner.kv_cache.bytes_for(1, len(prompt) + 1) > kv_bytes:
        raise ProviderFailed("the prompt does not fit the engine's memory", status=503)


def _question(messages: Messages) -> str:
    """Return the text of the last user turn, or an empty string."""
    return next((as_text(m) for m in reversed(messages) if m.get("role") == "user"), "")


def _leaves_thinking_open(message: Mapping[str, Any], markers: Markers) -> bool:
    """Return True if the text of a message, which the reply continues, ends inside a thought."""
    text, (opening, closing) = as_text(message), markers
    if not text:
        return bool(message.get("reasoning_content"))
    return text.rfind(opening) > text.rfind(closing)
