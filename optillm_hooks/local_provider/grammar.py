"""Constrained decoding (structured outputs): a grammar determines the allowed next tokens.

Source: Willard and Louf 2023, "Efficient Guided Generation for Large Language Models",
arXiv:2307.09702: before each token is sampled, the tokens that the grammar forbids are masked. That
leaves the model's own distribution, renormalised over the allowed tokens. The grammars are written
in llguidance's dialect of Lark.
"""

import json
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from torch import Tensor

from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.local_provider.reasoning import THINK, ReasoningFormat
from optillm_hooks.local_provider.transfer import to_device

Thinking = Literal["opened", "possible", "none"]
"""Whether a reply starts inside a thinking block, may open one, or has none."""

_MAX_KEPT = 64
"""Number of compiled grammars that are cached."""

_MAX_COMPILE_S = 5.0
"""Time limit for compiling a grammar, and before that for waiting until a thread is free."""

_COMPILER_THREADS = 2
_MAX_QUEUED = 64
"""Number of grammars that may wait for a compiler thread."""

_STRICTLY = {
    # Without a limit, small models write whitespace up to the length limit.
    "whitespace_pattern": r"[ \n\t]{1,20}",
    "lenient": False,
    "coerce_one_of": False,
}
_LINES = r"/\n{0,4}/"
"""What may stand between the thinking and the answer."""

_SOURCE_LINES = re.compile(r"\n +\d+ \|")


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return the right side of a grammar rule for JSON documents that match `schema`."""
    return "%json " + json.dumps({**schema, "x-guidance": _STRICTLY})


def as_regex(text: str) -> str:
    """Return a regular expression for `text`, to stand between slashes in a grammar."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n").replace("\\ ", " ")


class Constraint:
    """The grammar state of one reply."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def fork(self) -> "Constraint":
        """Return a copy for another reply, in the same state."""
        return Constraint(self.matcher.deep_copy())

    def accept(self, token: int) -> None:
        """Advance by one token of the reply, end tokens included.

        Raises:
            ProviderFailed: the grammar does not allow the token, or llguidance hit a limit.
        """
        if not self.matcher.consume_token(token):
            reason = _first_lines(self.matcher.get_error()) or "the grammar had ended"
            raise ProviderFailed(f"constrained decoding failed: {reason}", status=500)


class Compilation:
    """A grammar that one of the compiler threads compiles, or has compiled.

    Most grammars take milliseconds, but some take forever, and llguidance cannot be interrupted.
    """

    def __init__(self, compile_it: Callable[[], LLMatcher]) -> None:
        self._compile = compile_it
        self._matcher: Future[LLMatcher] = Future()
        self._since = time.monotonic()
        try:
            _compiler_queue().put_nowait(self)
        except queue.Full:
            self._matcher.cancel()

    @property
    def dropped(self) -> bool:
        """Whether it was given up before a thread was free."""
        return self._matcher.cancelled()

    @property
    def _late(self) -> bool:
        return time.monotonic() - self._since > _MAX_COMPILE_S

    def run(self) -> None:
        """Compile, in a compiler thread."""
        self._since = time.monotonic()
        if not self._matcher.set_running_or_notify_cancel():
            return
        try:
            self._matcher.set_result(self._compile())
        except BaseException as exc:  # a panic in Rust is no Exception
            failure = ProviderFailed(f"compiling a grammar: {type(exc).__name__}", status=500)
            failure.__cause__ = exc
            self._matcher.set_exception(failure)

    def constraint(self, param: str, wait_s: float = 0.0) -> Constraint | None:
        """Return a constraint in the grammar's initial state; None: not ready after `wait_s`.

        Raises:
            RequestRejected: the grammar, requested by the field `param`, cannot be enforced, or
                takes too long to compile.
            ProviderFailed: no thread was free in time (503), or llguidance failed.
        """
        if wait_s:
            wait([self._matcher], wait_s)
        if self.dropped or (self._late and self._matcher.cancel()):
            raise ProviderFailed("too many new grammars are being prepared; try later", status=503)
        if self._matcher.done():
            matcher = self._matcher.result()
            if matcher.is_error():
                reason = _first_lines(matcher.get_error())
                raise RequestRejected(f"{param} cannot be enforced: {reason}", param=param)
            return Constraint(matcher.deep_copy())
        if self._late:
            raise RequestRejected(
                f"{param} cannot be enforced: it takes too long to prepare", param=param
            )
        return None


class ReplyGrammar(NamedTuple):
    """The grammar of a request's replies, and the field of the request that asks for it."""

    compilation: Compilation
    param: str

    def constraint(self, wait_s: float = 0.0) -> Constraint | None:
        """Return what `Compilation.constraint` returns, and raise what it raises."""
        return self.compilation.constraint(self.param, wait_s)


class Grammars:
    """The grammars for one tokenizer, compiled by llguidance.

    Creating this takes about a second.
    """

    def __init__(self, tokenizer: Any, end_ids: Iterable[int]) -> None:
        ends = sorted(token for token in end_ids if token < len(tokenizer))
        self._can_end = bool(ends)
        self._tokenizer = from_tokenizer(tokenizer, eos_token=ends or [0])
        self._id_of = tokenizer.backend_tokenizer.token_to_id
        special = [
            re.escape(added.content)
            for token, added in tokenizer.added_tokens_decoder.items()
            if self._tokenizer.is_special_token(token)
        ]
        self._specials = re.compile(f"({'|'.join(sorted(special, reverse=True)) or '(?!)'})")
        self._executor = LLExecutor()
        self._compiled: OrderedDict[str, Compilation] = OrderedDict()
        self._lock = threading.Lock()

    def symbol(self, marker: str) -> str:
        """Return `marker` as grammar symbols: ids of its special tokens, and the text between."""
        parts = filter(None, self._specials.split(marker))
        return " ".join(
            f"<[{self._id_of(part)}]>" if self._specials.fullmatch(part) else json.dumps(part)
            for part in parts
        )

    def reply(
        self, forms: Mapping[str, str], thinking: Thinking, reasoning: ReasoningFormat = THINK
    ) -> str:
        """Return the grammar of a reply that matches one of `forms` after its thinking.

        `forms` maps the name of a rule to the text that defines it and the rules it needs.
        """
        beginnings: Mapping[Thinking, str] = {
            "opened": "thought",
            "possible": f"({self.symbol(reasoning.opening)} thought)?",
            "none": "",
        }
        start = f"start: {beginnings[thinking]} ({' | '.join(forms)})"
        thought = "" if thinking == "none" else self._thought(reasoning)
        return "\n".join([start, *forms.values(), thought])

    def start(self, grammar: str, param: str) -> ReplyGrammar:
        """Return `grammar`, requested by the field `param`; recent ones stay compiled.

        Can be called in any thread.

        Raises:
            RequestRejected: the model has no token that ends a reply.
        """
        if not self._can_end:
            raise RequestRejected(
                f"{param} cannot be enforced: this model has no end-of-sequence token", param=param
            )
        with self._lock:
            known = self._compiled.get(grammar)
            if known is None or known.dropped:
                compile_it = partial(LLMatcher, self._tokenizer, grammar, log_level=0)
                self._compiled[grammar] = Compilation(compile_it)
                if len(self._compiled) > _MAX_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            return ReplyGrammar(self._compiled[grammar], param)

    def _thought(self, reasoning: ReasoningFormat) -> str:
        """Return the grammar rule `thought`: thinking, followed by the closing marker."""
        follows = self.symbol(reasoning.next) if reasoning.next else _LINES
        closing = self.symbol(reasoning.closing)
        if not closing.startswith("<["):
            end = as_regex(reasoning.closing)
            return f"thought: thinking {follows}\nthinking[lazy]: /(?s:.*){end}/"
        # Tokens, not text: a decoding method may close the thinking in the middle of a character.
        end_id = int(closing[2 : closing.index("]")])
        ends = ",".join(str(token) for token in sorted({end_id, *self._tokenizer.eos_tokens}))
        return f"thought: <[^{ends}]>* {closing} {follows}"

    def mask(self, logits: Tensor, constraints: Sequence[Constraint | None]) -> Tensor:
        """Return `logits` [B, V] with -inf for the tokens that `constraints[b]` forbids in row b.

        End tokens are allowed only where the grammar may end.
        """
        rows = [b for b, constraint in enumerate(constraints) if constraint is not None]
        if not rows:
            return logits
        bits = allocate_token_bitmask(len(rows), self._tokenizer.vocab_size)
        matchers = [(c.matcher, i) for i, c in enumerate(filter(None, constraints))]
        fill_next_token_bitmask_par(self._executor, matchers, bits)
        packed = torch.from_numpy(bits).to(logits.device)
        shifts = torch.arange(32, device=logits.device, dtype=torch.int32)
        allowed = (packed[:, :, None] >> shifts & 1).bool().flatten(1)
        (places,) = to_device(logits.device, rows)
        masked = logits.new_full((len(rows), logits.shape[1]), -torch.inf)
        # The model may have more logits than the tokenizer has tokens, or fewer.
        width = min(allowed.shape[1], logits.shape[1])
        masked[:, :width] = logits[places, :width].masked_fill(~allowed[:, :width], -torch.inf)
        return logits.index_put((places,), masked)


@cache
def _compiler_queue() -> queue.Queue[Compilation]:
    """Return the queue of the compiler threads, which all models of the process share.

    They are daemons: an endless compilation must not keep the process from exiting.
    """
    waiting: queue.Queue[Compilation] = queue.Queue(_MAX_QUEUED)

    def work() -> None:
        while True:
            waiting.get().run()

    for number in range(_COMPILER_THREADS):
        threading.Thread(target=work, name=f"grammar-{number}", daemon=True).start()
    return waiting


def _first_lines(error: str) -> str:
    """Return an error message of llguidance without the grammar that it quotes."""
    message = _SOURCE_LINES.split(error.partition("\n<state>")[0])[0]
    return " ".join(message.rpartition("failed to compile JSON schema: ")[2].split())
