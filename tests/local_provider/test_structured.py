"""Constrained decoding: replies match their schema, whatever the model would rather write."""

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import jsonschema
import llguidance
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.decoding.entropy_decoding import EntropySettings
from optillm_hooks.decoding.thinkdeeper import ThinkSettings
from optillm_hooks.errors import OptiLLMError, ProviderFailed, RequestRejected
from optillm_hooks.local_provider import grammar
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import (
    Choice,
    EngineRequest,
    Event,
    Piece,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.grammar import Constraint, Grammars, Thinking
from optillm_hooks.local_provider.request import parse_request
from tests.local_provider import tiny
from tests.local_provider.distributions import assert_follows, exact

HI = [{"role": "user", "content": "Hi"}]
FORMAT = tiny.chat_format()
(QUOTE,) = FORMAT.encode_text('"')
FLAT = {QUOTE: 5.0}
"""A random model ends a string about never; with this bias, soon."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    runner = tiny.runner()
    engine = Engine("tiny", lambda: Batch(runner, FORMAT, Capacity()))
    yield engine
    engine.close()
    assert not list(runner.kv_cache.rows())


def replies(engine: Engine, request: EngineRequest) -> list[Choice]:
    choices = [Choice() for _ in range(request.n)]
    for event in engine.stream_sync(request):
        if isinstance(event, Piece):
            choices[event.choice].add(event)
    return choices


def make_request(schema: dict[str, Any], **fields: Any) -> EngineRequest:
    """Return a request with this schema, parsed from the body that a client sends."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    request = parse_request(HI, {"response_format": form, **fields})
    return replace(request, logit_bias={**FLAT, **request.logit_bias})


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "height": {"type": ["number", "null"]},
        "eyes": {"enum": ["blue", "brown", 7, None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
    },
    "required": ["name", "age", "height", "eyes", "tags"],
    "additionalProperties": False,
    "$defs": {
        "tag": {
            "type": "object",
            "properties": {"word": {"type": "string", "pattern": "^[a-z]{1,6}$"}},
            "required": ["word"],
            "additionalProperties": False,
        }
    },
}

SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, width: {"type": "integer", "minimum": low, "maximum": low + width},
        st.integers(-200, 200),
        st.integers(0, 300),
    ),
    st.just({"type": "number", "minimum": -1.5, "exclusiveMaximum": 20}),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 6),
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(
            st.one_of(
                st.none(), st.booleans(), st.integers(-9, 99), st.text('aä"\\ 😀', max_size=4)
            ),
            min_size=1,
            max_size=4,
        ),
    ),
    st.sampled_from(
        [
            {"const": "a\nb"},
            {"type": "string", "format": "date"},
            {"type": "string", "pattern": "^(ab|[0-9]{2})$"},
            {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
        ]
    ),
)


def wider(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def of_object(properties: dict[str, Any], optional: int) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[optional:],
            "additionalProperties": False,
        }

    return st.one_of(
        st.builds(
            of_object,
            st.dictionaries(st.text('abé "', min_size=1, max_size=3), inner, max_size=3),
            st.integers(0, 2),
        ),
        st.builds(
            lambda items, least, more: {
                "type": "array",
                "items": items,
                "minItems": least,
                "maxItems": least + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2)),
    )


SCHEMAS = st.recursive(SCALARS, wider, max_leaves=5)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_a_reply_that_ends_by_itself_matches_its_schema(
    engine: Engine, schema: dict[str, Any], seed: int
) -> None:
    for choice in replies(engine, make_request(schema, n=3, seed=seed, max_tokens=500)):
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.text), schema)
        else:
            assert choice.finish_reason == "length"


def test_nearly_every_reply_matches_a_schema_of_all_kinds(engine: Engine) -> None:
    choices = replies(engine, make_request(PERSON, n=16, seed=1, max_tokens=500))
    ended = [choice for choice in choices if choice.finish_reason == "stop"]
    assert len(ended) > 12
    for choice in ended:
        jsonschema.validate(json.loads(choice.text), PERSON)
    assert len({choice.text for choice in choices}) == 16


def test_json_object_is_any_object(engine: Engine) -> None:
    request = parse_request(HI, {"response_format": {"type": "json_object"}, "n": 8, "seed": 3})
    more = {FORMAT.encode_text("}")[0]: 4.0, QUOTE: 4.0}
    choices = replies(engine, replace(request, logit_bias=more, max_tokens=600))
    ended = [choice.text for choice in choices if choice.finish_reason == "stop"]
    assert len(ended) >= 4
    assert all(isinstance(json.loads(text), dict) for text in ended)


NEXT = [True, False, None, 1, 22, "x"]


@pytest.mark.parametrize(
    ("sampling", "bias"),
    [
        (SamplingParams(), {}),
        (SamplingParams(temperature=0.6), {}),
        (SamplingParams(1.3, top_p=0.8), {}),
        (SamplingParams(top_k=4), {5: 1.5}),
    ],
    ids=["plain", "cold", "top_p", "top_k and a bias"],
)
def test_tokens_follow_the_models_distribution_renormalised_over_the_allowed_ones(
    engine: Engine, sampling: SamplingParams, bias: dict[int, float]
) -> None:
    """Chi-square of 2,000 first tokens against exact probabilities: false alarm below 1e-7."""
    prompt = FORMAT.encode(HI)
    spelled = [json.dumps(value).encode() for value in NEXT]
    legal = [
        token
        for token in tiny.SPELLED
        if any(text.startswith(FORMAT.token_bytes(token)) for text in spelled)
    ]
    assert len(legal) == 9  # t f n 1 2 " true false null
    with torch.inference_mode():
        logits = tiny.model()(torch.tensor([prompt])).logits[0, -1]
    shifted = {token: logits[token].item() + bias.get(token, 0.0) for token in legal}
    expected = exact(shifted, sampling)
    counts: Counter[bytes] = Counter()
    for seed in range(16):
        request = EngineRequest(
            messages=HI, n=125, seed=seed, max_tokens=1, sampling=sampling, schema={"enum": NEXT},
            logit_bias=bias, top_logprobs=0,
        )  # fmt: skip
        counts.update(choice.tokens[0].token for choice in replies(engine, request))
    assert set(counts) <= {FORMAT.token_bytes(token) for token in expected}
    assert_follows(
        [counts[FORMAT.token_bytes(token)] for token in expected], list(expected.values())
    )


def test_logprobs_are_those_of_the_model_without_the_constraint(engine: Engine) -> None:
    (choice,) = replies(engine, make_request({"enum": NEXT}, seed=1, logprobs=True, top_logprobs=2))
    prompt = FORMAT.encode(HI)
    with torch.inference_mode():
        logprobs = tiny.model()(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    ids = {FORMAT.token_bytes(token): token for token in tiny.SPELLED}
    first = choice.tokens[0]
    assert first.logprob == pytest.approx(logprobs[ids[first.token]].item(), abs=1e-3)
    assert [p for _, p in first.top] == pytest.approx(logprobs.topk(2).values.tolist(), abs=1e-3)


def test_constrained_and_free_rows_share_a_batch_without_disturbing_each_other(
    engine: Engine,
) -> None:
    requests = [
        make_request(PERSON, seed=1, n=2, max_tokens=200),
        EngineRequest(messages=HI, seed=2, max_tokens=40),
        make_request(
            {"type": "array", "items": {"type": "boolean"}, "minItems": 9}, seed=3, max_tokens=60
        ),
        EngineRequest(messages=HI, seed=4, n=3, max_tokens=30, top_logprobs=1),
    ]
    alone = [[choice.text for choice in replies(engine, one)] for one in requests]

    async def all_at_once() -> list[list[str]]:
        async def answer(one: EngineRequest) -> list[str]:
            choices = [Choice() for _ in range(one.n)]
            async for event in engine.stream(one):
                if isinstance(event, Piece):
                    choices[event.choice].add(event)
            return [choice.text for choice in choices]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(one)) for one in requests]
        return [task.result() for task in tasks]

    assert asyncio.run(all_at_once()) == alone


def test_a_reply_that_is_cut_off_says_so(engine: Engine) -> None:
    (choice,) = replies(engine, make_request(PERSON, seed=1, max_tokens=5))
    assert choice.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.text)


def test_a_stop_string_still_stops(engine: Engine) -> None:
    (choice,) = replies(engine, make_request(PERSON, seed=1, stop='"age', max_tokens=200))
    assert choice.finish_reason == "stop"
    assert choice.text.startswith("{")
    assert '"name"' in choice.text
    assert '"age' not in choice.text


def test_a_bias_cannot_force_a_token_that_the_schema_forbids(engine: Engine) -> None:
    (letter,) = FORMAT.encode_text("Z")
    wanted = make_request(
        {"enum": ["yes", "no"]}, seed=1, logit_bias={letter: 100.0, tiny.END: 100.0}
    )
    (choice,) = replies(engine, wanted)
    assert json.loads(choice.text) in ("yes", "no")


def test_blanks_are_limited(engine: Engine) -> None:
    (blank,) = FORMAT.encode_text(" ")
    (choice,) = replies(
        engine, make_request(PERSON, seed=1, max_tokens=400, logit_bias={blank: 100.0})
    )
    assert " " * 20 in choice.text
    assert " " * 21 not in choice.text


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "not": {}}, r'Unimplemented keys: \["not"\]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "strng"}, "Invalid type: strng"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around, .* is not supported"),
        ({"type": "string", "format": "klingon"}, "Unknown format: klingon"),
        ({"type": "string", "enum": [1]}, "Unsatisfiable schema"),
        ({"oneOf": [{"type": "string"}, {"enum": ["x"]}]}, "oneOf constraints are not supported"),
        ({"$ref": "#/nope"}, "Pointer '/nope' does not exist"),
        ({"$ref": "https://example.org/x"}, "does not fetch"),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "uniqueItems"),
        ({"enum": ["x" * 130_000]}, "more than 120000 characters"),
    ],
    ids=[
        "not", "uniqueItems", "type", "look-ahead", "format", "contradiction", "oneOf", "pointer",
        "remote", "told to be lenient", "huge",
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_refused_by_field(
    engine: Engine, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestRejected, match=reason) as refusal:
        replies(engine, make_request(schema))
    assert refusal.value.param == "response_format"
    assert "start:" not in str(refusal.value)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"type": "yaml"}, "response_format.*json_object"),
        ({"type": "json_schema"}, "json_schema: is missing"),
        ({"type": "json_schema", "json_schema": {"schema": 3}}, "schema.*object"),
        ("json", "response_format"),
    ],
    ids=["kind", "no schema", "number", "text"],
)
def test_a_malformed_response_format_is_refused(form: Any, message: str) -> None:
    with pytest.raises(RequestRejected, match=message):
        parse_request(HI, {"response_format": form})


def test_the_format_text_is_no_constraint() -> None:
    assert parse_request(HI, {"response_format": {"type": "text"}}).schema is None


def test_a_grammar_is_compiled_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_it = llguidance.LLMatcher

    def counted(tokenizer: Any, text: str, **options: Any) -> Any:
        compiled.append(text)
        return compile_it(tokenizer, text, **options)

    monkeypatch.setattr("optillm_hooks.local_provider.grammar.LLMatcher", counted)
    for seed in range(3):
        replies(engine, make_request({"enum": ["compiled once"]}, n=2, seed=seed, max_tokens=9))
    assert len(compiled) == 1


HOSTILE = {"allOf": [{"type": "string", "pattern": f".*a{n}.*"} for n in range(14)]}
"""Compiling this takes minutes."""


class Compilers:
    """Compiler threads that spend no CPU on `HOSTILE`: they wait until they are released."""

    def __init__(self) -> None:
        self.started, self.released = threading.Semaphore(0), threading.Event()

    def compile(self, tokenizer: Any, text: str, **options: Any) -> Any:
        if ".*a" in text:
            self.started.release()
            self.released.wait(60)
            text = 'start: "late"'
        return llguidance.LLMatcher(tokenizer, text, **options)


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compilers]:
    compilers = Compilers()
    monkeypatch.setattr(grammar, "LLMatcher", compilers.compile)
    yield compilers
    compilers.released.set()


def hostile(number: int) -> EngineRequest:
    return make_request({"description": str(number), **HOSTILE}, seed=1, max_tokens=20)


async def refused(engine: Engine, request: EngineRequest) -> OptiLLMError:
    with pytest.raises((RequestRejected, ProviderFailed)) as refusal:
        await anext(engine.stream(request))
    assert isinstance(refusal.value, OptiLLMError)
    return refusal.value


async def texts(engine: Engine, request: EngineRequest) -> str:
    return "".join([e.text async for e in engine.stream(request) if isinstance(e, Piece)])


def test_others_run_while_a_grammar_compiles_which_is_refused_in_time(
    engine: Engine, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replies(engine, make_request({"const": 1}, seed=1))[0].text == "1"

    async def all_at_once() -> tuple[list[OptiLLMError], OptiLLMError, OptiLLMError]:
        async with asyncio.TaskGroup() as group:
            endless = [group.create_task(refused(engine, hostile(i))) for i in range(2)]
            for _ in endless:
                assert await asyncio.to_thread(compilers.started.acquire, timeout=60)
            assert await texts(engine, EngineRequest(messages=HI, seed=2, max_tokens=20))
            assert await texts(engine, make_request({"const": 1}, seed=1)) == "1"
            assert not any(task.done() for task in endless)
            monkeypatch.setattr(grammar, "_MAX_COMPILE_S", 0.0)
        again = await refused(engine, hostile(0))
        return [task.result() for task in endless], again, await refused(engine, hostile(2))

    endless, again, queued = asyncio.run(all_at_once())
    for refusal in [*endless, again]:
        assert isinstance(refusal, RequestRejected)
        assert refusal.param == "response_format"
        assert "takes too long to prepare" in str(refusal)
    assert isinstance(queued, ProviderFailed)
    assert queued.status == 503
    monkeypatch.setattr(grammar, "_MAX_COMPILE_S", 60.0)
    compilers.released.set()
    assert replies(engine, hostile(0))[0].text == "late"


@pytest.mark.usefixtures("compilers")
def test_a_cancelled_request_and_a_failed_batch_wait_for_no_grammar() -> None:
    batch, events = Batch(tiny.runner(), FORMAT, Capacity()), list[Event]()
    left, failed = (Submission(hostile(i), events.append) for i in (3, 4))
    for submission in (left, failed):
        batch.add(submission)
    left.cancelled = True
    batch.step()
    assert not batch.idle
    batch.fail(ProviderFailed("gone", status=500))
    assert batch.idle
    assert len(events) == 1


def test_llguidance_compiles_without_the_lock_of_the_interpreter() -> None:
    """In a process of its own, which ends although the compiler has not."""
    code = (
        "from optillm_hooks.local_provider.grammar import json_rule\n"
        "from tests.local_provider import tiny\n"
        "import json, sys\n"
        "grammars = tiny.chat_format().grammars\n"
        "rule = 'answer: ' + json_rule(json.loads(sys.argv[1]))\n"
        "text = grammars.reply({'answer': rule}, 'none')\n"
        "assert grammars.start(text, 'x').constraint(wait_s=0.5) is None\n"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(HOSTILE)], check=True, timeout=100)


def test_a_constraint_that_cannot_be_kept_fails_only_its_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a grammar grows over llguidance's limits in the middle of a reply."""
    with monkeypatch.context() as patched:
        matcher = Mock(**{"consume_token.return_value": False, "get_error.return_value": "too big"})
        patched.setattr(Constraint, "fork", lambda _: Mock(wraps=Constraint(matcher)))
        patched.setattr(Grammars, "mask", lambda _self, logits, _constraints: logits)
        with pytest.raises(ProviderFailed, match="constrained decoding failed: too big"):
            replies(engine, make_request(PERSON, n=3))
        batch, events = Batch(tiny.runner(), FORMAT, Capacity()), list[Event]()
        batch.add(Submission(make_request(PERSON, n=3), events.append))
        while not batch.idle:
            batch.step()
        assert isinstance(events[0], ProviderFailed)
    assert replies(engine, make_request({"const": 1}, seed=1))[0].text == "1"


@pytest.mark.parametrize(
    "decoding",
    [CotSettings(k=4), DeepConfSettings(warmup_samples=3, max_traces=5), EntropySettings()],
    ids=lambda settings: type(settings).__name__,
)
def test_decoding_methods_keep_to_the_schema(engine: Engine, decoding: Any) -> None:
    schema = {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0},
              "minItems": 1, "maxItems": 2}  # fmt: skip
    (choice,) = replies(
        engine, replace(make_request(schema, seed=2, max_tokens=200), decoding=decoding)
    )
    jsonschema.validate(json.loads(choice.text), schema)


def test_thinking_comes_before_the_constrained_reply_and_is_free(engine: Engine) -> None:
    thinking = ThinkSettings(min_thinking_tokens=40, max_thinking_tokens=60)
    request = make_request({"const": [1, 2]}, seed=2, max_tokens=300)
    (choice,) = replies(engine, replace(request, decoding=thinking))
    assert json.loads(choice.text) == [1, 2]
    assert len(choice.reasoning) > 20


def test_a_schema_with_other_thinking_markers_is_refused() -> None:
    decoding = {"thinkdeeper": {"end_think_token": "</hm>"}}
    with pytest.raises(RequestRejected, match="must be <think> and </think>"):
        parse_request(
            HI, {"response_format": {"type": "json_object"}, "optillm_decoding": decoding}
        )


@pytest.mark.parametrize("words", [tiny.WORDS, ()], ids=["markers are tokens", "in letters"])
@pytest.mark.parametrize(
    ("thinking", "reply", "fits"),
    [
        ("none", '"x"', True),
        ("none", '<think>a</think>"x"', False),
        ("possible", '"x"', True),
        ("possible", '<think>\na "y" {</think>\n\n"x"', True),
        ("possible", "<think>a</think>b", False),
        ("possible", 'a</think>"x"', False),
        ("opened", 'a <b> </think>"x"', True),
        ("opened", '</think>"x"', True),
        ("opened", '"x"', False),
    ],
)
def test_what_a_reply_with_thinking_may_be(
    words: Sequence[str], thinking: Thinking, reply: str, fits: bool
) -> None:
    chat_format = tiny.chat_format(words=words)
    grammar = chat_format.grammars.reply({"answer": 'answer: "\\"x\\""'}, thinking)
    constraint = chat_format.grammars.start(grammar, "response_format").constraint(wait_s=60)
    assert constraint is not None

    def take_all() -> None:
        for token in [*chat_format.encode_text(reply), tiny.END]:
            constraint.accept(token)

    if fits:
        take_all()
    else:
        with pytest.raises(ProviderFailed, match="constrained decoding failed"):
            take_all()


@pytest.mark.parametrize("opened", [True, False], ids=["opened by the prompt", "by the model"])
def test_a_thinking_model_thinks_before_its_constrained_reply(opened: bool) -> None:
    template = tiny.CHATML + ("<think>\n" if opened else "{% if false %}</think>{% endif %}")
    chat_format, runner = tiny.chat_format(template), tiny.runner()
    engine = Engine("thinking", lambda: Batch(runner, chat_format, Capacity()))
    begin, end = (chat_format.encode_text(marker)[0] for marker in ("<think>", "</think>"))
    wanted = make_request({"const": "answer"}, seed=1, max_tokens=200, n=12)
    choices = replies(engine, replace(wanted, logit_bias={begin: 4.0, QUOTE: 4.0, end: 3.0}))
    engine.close()
    assert {choice.text for choice in choices} <= {'"answer"', ""}
    assert sum(choice.finish_reason == "stop" for choice in choices) > 6
    thoughtful = sum(bool(choice.reasoning) for choice in choices)
    assert thoughtful > 9 if opened else 0 < thoughtful < 12
