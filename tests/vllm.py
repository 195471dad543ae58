"""A fake of vLLM's chat API: it continues prefixes and returns top_logprobs.

What it writes is scripted token by token. It is as strict as vLLM: a request that ends with an
assistant's message must say that it is to be continued, and one that does not must not.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optillm_hooks.testing import AnsweringLLM
from optillm_hooks.types import Chat, Completion, Delta, Sampling, TokenLogprob, Usage
from tests.upstream import Billed, Call, Reply, Script

END = "<|im_end|>"
FIELDS = ("continue_final_message", "logprobs", "top_logprobs")

Writes = Callable[[str, Mapping[str, Any]], Sequence[TokenLogprob]]
"""What the model writes after a prefix ("" if there is none), given the request's body."""


def token(text: str, p: float, *others: tuple[str, float]) -> TokenLogprob:
    """Return a token of probability `p` and its alternatives, most likely first."""
    ranked = sorted([(text, p), *others], key=lambda pair: -pair[1])
    return TokenLogprob(text, math.log(p), tuple((t, math.log(q)) for t, q in ranked))


def sure(*texts: str, margin: float = 0.9) -> list[TokenLogprob]:
    """Return tokens that lead the second most likely token by `margin`."""
    p = (1 + margin) / 2
    return [token(text, p, ("~", 1 - p)) for text in texts]


def peaked(text: str, confidence: float) -> TokenLogprob:
    """Return a token whose 20 alternatives have `confidence`."""
    top = ((text, -0.1), *((f"~{i}", (0.1 - 20 * confidence) / 19) for i in range(19)))
    return TokenLogprob(text, -0.1, top)


@dataclass(frozen=True, slots=True)
class Written:
    """One choice of the server."""

    tokens: tuple[TokenLogprob, ...]
    text: str
    finish_reason: str


def serve(writes: Writes, body: Mapping[str, Any]) -> Written:
    """Return the choice of a request: cut at its `max_tokens` or at a stop string."""
    last = body["messages"][-1]
    continues = last["role"] == "assistant"
    assert body.get("continue_final_message", False) is continues, "continue_final_message"
    assert body.get("add_generation_prompt", True) is not continues, "add_generation_prompt"
    asked = body.get("top_logprobs", 0)
    assert asked <= 20, "vLLM's --max-logprobs"
    assert not asked or body.get("logprobs") is True, "top_logprobs needs logprobs"
    tokens = list(writes(last["content"] if continues else "", body))
    most = body.get("max_tokens") or len(tokens)
    assert most > 0
    finish_reason, tokens = "length" if most < len(tokens) else "stop", tokens[:most]
    text = ""
    for at, written in enumerate(tokens):
        text += "" if written.token == END else written.token
        found = [text.index(stop) for stop in body.get("stop") or () if stop in text]
        if found:
            text, tokens, finish_reason = text[: min(found)], tokens[: at + 1], "stop"
            break
    shown = tuple(_shown(t, asked) for t in tokens) if body.get("logprobs") else ()
    return Written(shown or tuple(TokenLogprob(t.token, 0.0) for t in tokens), text, finish_reason)


def _shown(written: TokenLogprob, asked: int) -> TokenLogprob:
    """Return a token as vLLM shows it: among its alternatives first, whatever its rank."""
    others = [pair for pair in written.top if pair[0] != written.token]
    return replace(written, top=((written.token, written.logprob), *others)[:asked])


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm(Script):
    """The script of an `Upstream` that serves what `writes` says, billed by its tokens."""

    writes: Writes

    def bill(self, call: Call, choices: int) -> Billed:
        tokens = len(serve(self.writes, call.body).tokens)
        return Billed(prompt_tokens=100, completion_tokens=tokens * choices)


def vllm(writes: Writes, **how: Any) -> Vllm:
    """Return the script of a server that writes this."""

    def reply(call: Call, _choice: int) -> Reply:
        made = serve(writes, call.body)
        scored = made.tokens if call.body.get("logprobs") else ()
        return Reply(made.text, logprobs=scored, finish_reason=made.finish_reason)

    return Vllm(reply=reply, writes=writes, **how)


class PrefixLLM(AnsweringLLM):
    """The same without a network: streams token by token, and says what it has sent."""

    def __init__(self, writes: Writes, *, fields: Sequence[str] = FIELDS) -> None:
        super().__init__(self._reply, fields=fields)
        self._writes = writes
        self.sent = 0
        """Tokens that were streamed."""

    def _reply(self, asked: Chat, sampling: Sampling) -> Completion:
        made = serve(self._writes, self._body(asked, sampling))
        return Completion(
            made.text,
            "length" if made.finish_reason == "length" else "stop",
            logprobs=made.tokens if sampling.fields.get("logprobs") else (),
            usage=Usage(calls=1, prompt_tokens=100, completion_tokens=len(made.tokens)),
        )

    async def complete(self, asked: Chat, sampling: Sampling, /) -> Completion:
        await asyncio.sleep(0)  # as a network does: calls at once are all begun before one ends
        return await super().complete(asked, sampling)

    async def stream(self, asked: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        self.calls.append((asked, sampling))
        await asyncio.sleep(0)
        made = self._reply(asked, sampling)
        for scored in made.logprobs:
            self.sent += 1
            yield Delta(text="" if scored.token == END else scored.token, logprobs=(scored,))
        yield Delta(finish_reason=made.finish_reason, usage=made.usage)

    @staticmethod
    def _body(asked: Chat, sampling: Sampling) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.text} for message in asked]
        most, stop = sampling.max_tokens, list(sampling.stop or ())
        return {
            **sampling.fields,
            "messages": messages,
            "max_tokens": most,
            "stop": stop,
            "temperature": sampling.temperature,
            "sample": sampling.sample,
        }
