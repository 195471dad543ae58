"""The output of one sequence: tokens to deltas, with stop strings and the finish reason."""

from collections.abc import Collection, Sequence

from optillm_hooks.decoding.markers import Markers
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.decoding.base import BranchOutput
from optillm_hooks.local_provider.engine_request import Piece, ScoredToken, TokenLogprob
from optillm_hooks.local_provider.text import StopFinder
from optillm_hooks.local_provider.tool_calls.tools import Tools
from optillm_hooks.types import FinishReason


class ChoiceOutput:
    """The output of one sequence: converts tokens to deltas and finds the finish reason."""

    def __init__(
        self,
        choice: int,
        chat_format: ChatFormat,
        stop: Sequence[str],
        *,
        end_ids: Collection[int] | None = None,
        min_tokens: int = 0,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        thinking: bool = False,
        tools: Tools | None = None,
        markers: Markers | None = None,
    ) -> None:
        """`end_ids`: the tokens that end it; default: the model's. `min_tokens`: tokens in which
        stop strings are not looked for. `include_stop`: whether the text includes what ends it.
        """
        self._choice = choice
        self._reader = chat_format.reader(tools, opened=thinking, markers=markers)
        self._format = chat_format
        self._end_ids = chat_format.end_ids if end_ids is None else end_ids
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._detokenizer = chat_format.detokenizer(
            tools, markers, skip_special_tokens=skip_special_tokens
        )
        self._stop = StopFinder(stop, include=include_stop)
        self._waiting: list[tuple[int, TokenLogprob]] = []
        self._ends: list[int] = []
        self._shown = ""
        self.ids: list[int] = []
        self.reasoning_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, token: int, scored: ScoredToken | None, *, last: bool) -> Piece | None:
        """Return the delta that `token` completes, or None. `last`: the length limit is reached."""
        start = self._ends[-1] if self._ends else 0
        text = written = ""
        if token in self._end_ids:
            self.finish_reason = "stop"
        elif last:
            self.finish_reason = "length"
        shows_end = self._include_stop and token not in self._format.end_ids
        if token not in self._end_ids or shows_end:
            written = self._detokenizer.feed(token)
            if scored is not None:
                self._waiting.append((start, self._format.with_bytes(scored)))
            early = len(self.ids) < self._min_tokens
            text = written if early else self._stop.feed(written)
            if self._stop.found:
                self.finish_reason = "stop"
        self.ids.append(token)
        self.reasoning_tokens += self._reader.thinking
        self._ends.append(start + len(written))
        if self.finish_reason is not None:
            text += self._stop.close()
        return self._piece(text)

    def result(self, *, stopped: bool) -> BranchOutput:
        """Return the complete output, including text that was held back for stop strings."""
        text = self._shown + self._stop.close()
        reason = self.finish_reason or "length"
        return BranchOutput(text, tuple(self.ids), tuple(self._ends), reason, stopped)

    def _piece(self, text: str) -> Piece | None:
        self._shown += text
        shown = self._reader.feed(text)
        if self._reader.done and self.finish_reason is None:
            self.finish_reason = "tool_calls"
        if self.finish_reason is not None:
            shown = shown.plus(self._reader.close())
            if self._reader.called and self.finish_reason == "stop":
                self.finish_reason = "tool_calls"
        ended = self.finish_reason is not None and not self._stop.found
        tokens = [token for start, token in self._waiting if start < len(self._shown) or ended]
        del self._waiting[: len(tokens)]
        if not (any(shown) or tokens or self.finish_reason):
            return None
        return Piece(
            self._choice,
            shown.text,
            shown.reasoning,
            tuple(tokens),
            self.finish_reason,
            shown.calls,
        )
