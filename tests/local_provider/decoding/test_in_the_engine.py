"""Each method in the engine, step by step, on a small random model."""

from functools import cache
from typing import Any

import pytest
from pydantic import BaseModel

from optillm_hooks.decoding.autothink import AutoThinkSettings
from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.decoding.markers import MARKERS
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.engine_request import (
    Choice,
    EngineRequest,
    Event,
    Finished,
    Piece,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

FORMAT = tiny.chat_format()
(A,) = FORMAT.encode_text("a")
ONLY_A = {A: 100.0}
"""The bias by which the model writes this letter and never ends."""
VOCABULARY = tiny.SPELLED.stop + 7
"""Rows of the model's logits; the last few have no token."""


@cache
def runner() -> Runner:
    return tiny.runner()


def make_request(text: str = "Hi", **fields: Any) -> EngineRequest:
    return EngineRequest(messages=[{"role": "user", "content": text}], **fields)


def replies(
    *requests: EngineRequest, chat_format: ChatFormat = FORMAT, rows: int = 64
) -> list[tuple[list[Choice], Finished]]:
    """Return what each of the requests, which begin together, gets."""
    batch = Batch(runner(), chat_format, Capacity(rows=rows, prefix_bytes=0))
    heard: list[list[Event]] = [[] for _ in requests]
    for request, events in zip(requests, heard, strict=True):
        batch.add(Submission(request, events.append))
    while not batch.idle:
        batch.step()
    assert not list(runner().kv_cache.rows())
    return [read(request.n, events) for request, events in zip(requests, heard, strict=True)]


def read(n: int, events: list[Event]) -> tuple[list[Choice], Finished]:
    *pieces, finished = events
    if isinstance(finished, Exception):
        raise finished
    assert isinstance(finished, Finished)
    choices = [Choice() for _ in range(n)]
    for piece in pieces:
        assert isinstance(piece, Piece)
        choices[piece.choice].add(piece)
    return choices, finished


@pytest.mark.parametrize(
    ("markers", "special"),
    [(("<t>", "</t>"), ()), (MARKERS, ()), (MARKERS, MARKERS)],
    ids=["of the request", "of the model", "special tokens"],
)
def test_thinking_is_parted_from_the_text_at_the_markers(
    markers: tuple[str, str], special: tuple[str, ...]
) -> None:
    start, end = markers
    settings = ThinkSettings(
        max_thinking_tokens=1, prefill="So: ", start_think_token=start, end_think_token=end
    )
    [((choice,), finished)] = replies(
        make_request(decoding=settings, max_tokens=40, logit_bias=ONLY_A),
        chat_format=tiny.chat_format(special=special),
    )
    assert choice.reasoning.strip() == "So: a"
    assert set(choice.text) == {"a"}
    written = FORMAT.encode_text(f"So: a\n{end}")
    assert finished.reasoning_tokens == len(written), "the opening is not counted"


@pytest.mark.parametrize("prefill", ["", "So: "], ids=["nothing", "a prefill"])
@pytest.mark.parametrize("special", [(), MARKERS], ids=["plain markers", "special markers"])
def test_thinking_that_the_prompt_has_opened_is_not_opened_again(
    prefill: str, special: tuple[str, ...]
) -> None:
    chat_format = tiny.chat_format(tiny.CHATML + "<think>\n", special=special)
    settings = ThinkSettings(max_thinking_tokens=1, prefill=prefill)
    request = make_request(decoding=settings, max_tokens=20, logit_bias=ONLY_A)
    [((choice,), finished)] = replies(request, chat_format=chat_format)
    assert choice.reasoning == f"{prefill}a\n"
    assert set(choice.text) == {"a"}
    ending = chat_format.encode_text("\n</think>\n\n")
    assert finished.completion_tokens == len(prefill) + 1 + len(ending) + len(choice.text)


def test_autothink_does_not_open_again_what_the_prompt_has_opened() -> None:
    request = make_request(decoding=AutoThinkSettings(), max_tokens=40, logit_bias=ONLY_A)
    chat_format = tiny.chat_format(tiny.CHATML + "<think>\n")
    [((choice,), _)] = replies(request, chat_format=chat_format)
    assert set(choice.reasoning.strip()) == set(choice.text) == {"a"}


def test_the_answer_keeps_its_room_behind_a_long_prefill() -> None:
    """Of 100 tokens the opening takes 2 and the prefill 50; half of the others are the answer's."""
    settings = ThinkSettings(reasoning_effort="high", prefill="x" * 50)
    [((choice,), finished)] = replies(
        make_request(decoding=settings, max_tokens=100, logit_bias=ONLY_A)
    )
    assert choice.text == "a" * 24
    assert finished.completion_tokens == 100


def test_a_prefill_that_leaves_no_room_for_an_answer_is_refused() -> None:
    settings = ThinkSettings(prefill="x" * 50)
    with pytest.raises(RequestRejected, match="it takes 56 of 57 tokens"):
        replies(make_request(decoding=settings, max_tokens=57))
    [((choice,), _)] = replies(make_request(decoding=settings, max_tokens=58, logit_bias=ONLY_A))
    assert choice.text == "a"


def test_a_banned_token_opens_no_branch_of_cot_decoding() -> None:
    letters = {A, *FORMAT.encode_text("b")}
    bans = {token: -100.0 for token in range(VOCABULARY) if token not in letters}
    request = make_request(decoding=CotSettings(k=3), max_tokens=4, logit_bias=bans)
    [((choice,), finished)] = replies(request)
    assert set(choice.text) <= {"a", "b"}
    assert (finished.facts["paths"], finished.completion_tokens) == (2, 2 * 4)


def test_a_token_that_is_written_for_the_model_has_no_log_probability() -> None:
    """Blank lines alone are drawn, and are in the opening and the ending too."""
    (blank,) = FORMAT.encode_text("\n")
    settings = ThinkSettings(max_thinking_tokens=8, min_thinking_tokens=0)
    request = make_request(
        decoding=settings, max_tokens=20, logit_bias={blank: 100.0}, top_logprobs=0
    )
    [((choice,), finished)] = replies(request)
    forced = len(FORMAT.encode_text("<think>\n")) + len(FORMAT.encode_text("\n</think>\n\n"))
    assert finished.completion_tokens == 20
    assert [token.token for token in choice.tokens] == [b"\n"] * (20 - forced)
    assert len({token.logprob for token in choice.tokens}) == len(choice.tokens), "each its own"


def test_a_stopped_trace_of_deepconf_makes_room_for_the_next() -> None:
    """The texts are random and no two agree, so that all traces are wanted, on three rows."""
    traces, length = 12, 48
    settings = DeepConfSettings(warmup_samples=4, max_traces=traces, variant="high")
    request = make_request(
        decoding=settings, max_tokens=length, seed=1, logit_bias={tiny.END: -100.0}
    )
    [(_, finished)] = replies(request, rows=3)
    stopped = finished.facts["stopped"]
    assert isinstance(stopped, int)
    assert finished.facts["traces"] == traces
    assert 0 < stopped <= traces - 4
    whole = (traces - stopped) * length
    assert whole + stopped * 16 <= finished.completion_tokens < whole + stopped * length


METHODS: dict[str, BaseModel] = {
    "cot_decoding": CotSettings(k=3, branch_temperature=0.7),
    "entropy_decoding": EntropySettings(),
    "thinkdeeper": ThinkSettings(),
    "autothink": AutoThinkSettings(),
    "deepconf": DeepConfSettings(warmup_samples=3, max_traces=6, variant="high"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_seeded_request_gets_the_same_alone_and_in_a_crowd(method: str) -> None:
    sampling = SamplingParams(0.8, top_p=0.95)
    seeded = make_request(
        "6 * 7?", decoding=METHODS[method], sampling=sampling, seed=3, max_tokens=40
    )
    crowd = [make_request(f"Number {i}", seed=i, max_tokens=9 * i) for i in range(1, 5)]
    [(alone, finished)] = replies(seeded)
    (among, also), *_ = replies(seeded, *crowd)
    assert among == alone
    assert also == finished
    assert finished.facts
    assert alone[0].text or alone[0].reasoning
