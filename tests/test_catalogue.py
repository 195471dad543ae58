"""Rules that every registered approach obeys, and that a new one is tested by as it is added."""

import asyncio
import inspect
import itertools
import random
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.approach_docs import good_for, worth
from optillm_hooks.budget import Limits
from optillm_hooks.decoding.field import FIELD as DECODING
from optillm_hooks.errors import (
    BudgetExceeded,
    EmptyCompletion,
    ProviderFailed,
    SampleError,
    SamplesFailed,
)
from optillm_hooks.llm import Reasoning
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import cost_of, resolve, stage_of
from optillm_hooks.pipeline.run import run
from optillm_hooks.registry import Approach, Cost, DraftingParams, all_approaches
from optillm_hooks.testing import HANG, ONE_CALL, AnsweringLLM, Reply, chat
from optillm_hooks.trace import Trace
from optillm_hooks.types import Chat, Completion, Fields, Message, Sampling, Usage
from scripts.catalogue import GROUPS
from tests.fakes import SERVICES, filled_form

pytestmark = pytest.mark.anyio
EVERY = pytest.mark.parametrize("approach", all_approaches(), ids=lambda a: a.name)

IMAGE: Fields = {"type": "image_url", "image_url": {"url": "data:,x"}}
CALLING: Fields = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
CONVERSATION: Chat = (
    Message("system", "Be terse.", {"name": "operator"}),
    Message("user", ({"type": "text", "text": "What is in it?"}, IMAGE)),
    Message("assistant", None, CALLING),
    Message("tool", "a six and a seven", {"tool_call_id": "1"}),
    Message("assistant", "Two numbers.", {"name": "model"}),
    Message("user", ({"type": "text", "text": "What is their product?"}, IMAGE), {"name": "u"}),
)
SCRIPT = "```smt2\n(declare-const x Int)\n(assert (= x 42))\n(check-sat)\n```"
PROGRAM = "```python\nprint(6 * 7)\n```"
VERDICT = "RATING: 1\nBEST: 1\nVERDICT: CORRECT"
"""A reply that every kind of judge can read, within every scale."""

BLIND_DRAFTS = {"rto"}
"""Approaches some of whose drafts must not know the question: it would give the answer away."""

BLIND_READERS = {"deep_research"}
"""Approaches whose readers of web pages see nothing of the user's."""

WITH_IMAGES: Mapping[str, Mapping[str, object]] = {"privacy": {"attachments": "pass"}}
"""Parameters of approaches that refuse images otherwise."""

QUESTIONS: Mapping[str, str] = dict.fromkeys(("abmcts", "verified"), "Which way is best?")
"""What approaches are asked that could tell that no answer of `Lenient` to 6 * 7 is right."""

Change = Callable[[int, str], Reply]


class Lenient(AnsweringLLM):
    """A model whose replies every stage can read; the answers of its samples all differ.

    It accepts every decoding method, as a local model does. `change` gets the number of a call and
    its reply, and returns the reply to give instead.
    """

    def __init__(
        self,
        change: Change = lambda _, text: text,
        *,
        max_n: int = 1,
        reasoning: Reasoning = "never",
    ) -> None:
        super().__init__(self._reply, fields=[DECODING], max_n=max_n)
        self.facts = replace(self.facts, reasoning=reasoning)
        self._change = change
        self._numbers = itertools.count()

    def _reply(self, asked: Chat, sampling: Sampling) -> Reply:
        number = next(self._numbers)
        request = asked[-1].text
        if sampling.purpose == "judge" and (form := filled_form(request)):
            text = form
        elif sampling.purpose == "judge" and "JSON array" in request:
            text = "[]"
        elif sampling.purpose == "judge":
            text = f"{VERDICT}\nANSWER: 0" if "ANSWER:" in request else VERDICT
        elif "SMT-LIB" in request:
            text = SCRIPT
        elif "marked python" in request:
            text = PROGRAM
        else:
            items = "\n".join(f"{item}. idea {number}.{item}" for item in (1, 2, 3))
            text = f"Way {number}.\n{items}\nANSWER: {number}"
        return self._change(number, text)


def cost(approach: Approach) -> Cost:
    """Return the declared cost of a request for this approach alone."""
    return cost_of((stage_of(approach.name, {}, None),))


def is_bound(approach: Approach) -> bool:
    """Return whether the declared cost is an upper bound, because the run may end early."""
    paragraph = approach.doc.split("\nCost:", 1)[-1].split("\n\n", 1)[0]
    return "at most" in paragraph


async def ask(
    name: str,
    llm: Lenient,
    asked: Chat | None = None,
    trace: Trace | None = None,
    params: Mapping[str, object] | None = None,
    **how: Any,
) -> Outcome:
    how.setdefault("client", Sampling(seed=0))  # or each run searches in another order
    how.setdefault("services", SERVICES)
    plan = resolve(parse(name), given={name: params or {}})
    asked = asked or chat(QUESTIONS.get(name, "6 * 7?"))
    request = Request(plan=plan, base="base", chat=asked, **how)
    return await run(request, {"base": llm}.__getitem__, trace)


async def some_calls(approach: Approach) -> list[int]:
    """Return the numbers of the calls of a run: the first six, the last, and some between."""
    calls = (await ask(approach.name, Lenient())).report.calls
    return sorted({*range(min(6, calls)), *range(6, calls, 5), calls - 1})


# ------------------------------------------------------------------------ what is declared


@EVERY
def test_the_docstring_says_what_it_does_its_source_and_its_cost(approach: Approach) -> None:
    what, *_ = approach.doc.split("\n\n", 1)
    assert re.match(r"^\w[\w *²-]*: \S.*\.$", what.replace("\n", " ")), what
    for paragraph in ("Source:", "Cost:"):
        assert re.search(rf"^{paragraph} \S", approach.doc, re.MULTILINE), paragraph


@EVERY
def test_the_docstring_says_when_it_is_worth_its_cost(approach: Approach) -> None:
    said = worth(approach)
    assert said, "add a line `Worth it when: ....` before `Source:`; README's table shows it"
    assert said[0].islower(), said
    assert len(said.split()) <= 20, said


@EVERY
def test_the_docstring_says_what_it_is_good_for(approach: Approach) -> None:
    assert good_for(approach) in GROUPS, f"add `Good for: ....`, one of {GROUPS}"


def _numbers(annotation: object) -> Iterator[object]:
    """Yield the plain types in an annotation, including those in unions."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from _numbers(inner)
    else:
        yield origin or annotation


def _bounds(field: FieldInfo) -> set[str]:
    return {
        name
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt", "max_length")
        if getattr(bound, name, None) is not None
    }


@EVERY
def test_every_parameter_has_description_default_and_bounds(approach: Approach) -> None:
    for name, field in approach.params.model_fields.items():
        assert (field.description or "").endswith("."), f"{name}: description"
        assert not field.is_required(), f"{name}: default"
        bounds = _bounds(field)
        for kind in _numbers(field.annotation):
            if kind in (int, float):
                assert bounds & {"ge", "gt"}, f"{name}: lower bound"
                assert bounds & {"le", "lt"}, f"{name}: upper bound"
            elif kind in (tuple, list, dict, set, frozenset):
                assert "max_length" in bounds, f"{name}: max_length"
    assert issubclass(approach.params, BaseModel)


@EVERY
def test_defaults_are_within_their_own_bounds(approach: Approach) -> None:
    defaults = approach.params().model_dump()
    assert approach.params.model_validate(defaults).model_dump() == defaults


@EVERY
def test_other_names_of_parameters_lead_to_parameters(approach: Approach) -> None:
    names = set(approach.params.model_fields)
    for name in set(approach.params.body_fields.values()) - names:
        approach.params.model_validate({name: {}})  # an object of several parameters
    assert set(approach.params.model_group_fields) <= names
    taken = {
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "n",
        "stop",
        "seed",
        "tools",
    }
    assert not taken & set(approach.params.body_fields), "a body field of OpenAI's"


_NEEDS = {
    "code": r"\bcode_runner\b|optillm_hooks\.code_execution|\bexec\(|\beval\(",
    "solver": r"from optillm_hooks\.solver|import z3\b|import sympy",
    "network": r"import (?:httpx|requests|socket|urllib|aiohttp)|from (?:httpx|urllib)\b",
    "memory": r"import (?:sqlite3|shelve)|\bopen\(|\.write_text\(",
}
"""What shows in a module's source that its approach does more than call models."""


@EVERY
def test_what_it_does_besides_calling_models_is_declared(approach: Approach) -> None:
    """A tag in pasted text may name only approaches that declare nothing."""
    source = inspect.getsource(sys.modules[approach.run.__module__])
    code = source.replace(inspect.getdoc(sys.modules[approach.run.__module__]) or "", "")
    shown = {need for need, pattern in _NEEDS.items() if re.search(pattern, code)}
    assert shown <= approach.needs, "needs=[...] of the decorator"


# -------------------------------------------------------------------------- what is done


@EVERY
async def test_a_default_run_costs_what_is_declared(approach: Approach) -> None:
    llm = Lenient()
    ended = await ask(approach.name, llm)
    assert ended.answers[0].text.strip()
    assert (ended.report.degraded, ended.report.stopped_by) == ((), None)
    found = Cost(ended.report.calls, ended.report.depth)
    if is_bound(approach):
        assert found.calls <= cost(approach).calls
        assert found.depth <= cost(approach).depth
    else:
        assert found == cost(approach)


@EVERY
async def test_a_model_that_reasons_is_not_told_how_to_think(approach: Approach) -> None:
    """Nor does it cost more than is declared, which is for a model that does not reason."""
    ended = await ask(approach.name, llm := Lenient(reasoning="always"))
    assert ended.answers[0].text.strip()
    assert (ended.report.degraded, ended.report.stopped_by) == ((), None)
    assert ended.report.calls <= cost(approach).calls
    assert ended.report.depth <= cost(approach).depth
    for sent, _ in llm.calls:
        asked = " ".join(message.text for message in sent).lower()
        assert not any(words in asked for words in ("step by step", "<thinking>", "write a plan"))


@EVERY
async def test_every_call_is_counted(approach: Approach) -> None:
    llm = Lenient()
    report = (await ask(approach.name, llm)).report
    assert report.calls == len(llm.calls) == len(report.trace)
    assert report.usage == sum([ONE_CALL] * len(llm.calls), start=Usage())


@EVERY
async def test_where_n_is_honoured_it_costs_no_more_calls(approach: Approach) -> None:
    llm = Lenient(max_n=8)
    ended = await ask(approach.name, llm)
    assert ended.answers[0].text.strip()
    assert ended.report.calls == len(llm.calls) <= cost(approach).calls


def _shown(message: Message, approach: Approach) -> Fields:
    """Return a message's fields; a confidential approach replaces the names of participants."""
    hidden = {"name"} if approach.params.confidential else set[str]()
    return {name: value for name, value in message.fields.items() if name not in hidden}


def _images(message: Message) -> list[Fields]:
    parts = message.content if isinstance(message.content, tuple) else ()
    return [part for part in parts if part["type"] == "image_url"]


@EVERY
async def test_the_whole_conversation_reaches_every_call(approach: Approach) -> None:
    """Messages stay where they are; only the system message and the last user turn may grow."""
    llm = Lenient()
    tools: Fields = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    params = WITH_IMAGES.get(approach.name)
    await ask(approach.name, llm, CONVERSATION, client=Sampling(fields=tools), params=params)
    assert llm.calls
    for sent, sampling in llm.calls:
        if approach.name in BLIND_DRAFTS and sampling.purpose == "draft":
            continue
        if approach.name in BLIND_READERS and "<page 1 " in sent[-1].text:
            continue
        assert [m.role for m in sent[: len(CONVERSATION)]] == [m.role for m in CONVERSATION]
        for number, (was, now) in enumerate(zip(CONVERSATION, sent, strict=False)):
            assert _shown(now, approach) == _shown(was, approach)
            if number in (0, len(CONVERSATION) - 1):
                assert was.text in now.text
                assert _images(now) == _images(was)
            else:
                assert replace(now, fields=was.fields) == was
        assert "tools" in sampling.fields, "providers refuse tool calls without their tools"


@EVERY
async def test_a_chat_without_a_user_turn_is_no_error(approach: Approach) -> None:
    await ask(approach.name, Lenient(), (Message("system", "Greet."),))


@EVERY
async def test_the_same_seed_and_replies_give_the_same_answer(approach: Approach) -> None:
    client = Sampling(seed=7)
    first, second = [await ask(approach.name, Lenient(), client=client) for _ in range(2)]
    assert first.answers == second.answers
    assert first.report.notes == second.report.notes


@EVERY
@pytest.mark.parametrize("draft_tokens", [None, 900])
async def test_the_clients_limit_is_that_of_its_answer(
    approach: Approach, draft_tokens: int | None
) -> None:
    """Everything else has the approach's `draft_tokens`, which it must have as a parameter."""
    llm = Lenient()
    given = {} if draft_tokens is None else {"draft_tokens": draft_tokens}
    params = given if issubclass(approach.params, DraftingParams) else {}
    await ask(approach.name, llm, client=Sampling(max_tokens=300), params=params)
    for _, sampling in llm.calls:
        is_answer = sampling.purpose == "answer"
        assert sampling.max_tokens == (300 if is_answer else draft_tokens)


# ------------------------------------------------------------------------ what goes wrong


BUSY = ProviderFailed("busy", status=429)
CUT = Completion("So far", finish_reason="length", usage=ONE_CALL)


@EVERY
@pytest.mark.parametrize("bad", [BUSY, "", CUT], ids=["failed", "empty", "cut"])
async def test_one_bad_reply_is_survived_or_is_the_requests_own_failure(
    approach: Approach, bad: Reply
) -> None:
    for broken in await some_calls(approach):

        def change(number: int, text: str, broken: int = broken) -> Reply:
            return bad if number == broken else text

        trace, text = Trace(), ""
        try:
            ended = await ask(approach.name, Lenient(change), trace=trace)
        except (ProviderFailed, EmptyCompletion):
            pass
        else:
            text = ended.answers[0].text.strip()
            assert text or not bad, "only an empty reply makes an empty answer"
            assert "stage_failed" not in ended.report.degraded
        if not text:
            good = [call for call in trace.calls if call.outcome == "ok"]
            assert all(call.purpose != "answer" for call in good), "an answer was lost"


@EVERY
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_when_every_call_fails_the_status_is_the_providers(
    approach: Approach, status: int
) -> None:
    with pytest.raises(SampleError) as caught:
        await ask(approach.name, Lenient(lambda *_: ProviderFailed("no", status=status)))
    assert caught.value.status == status


@EVERY
async def test_every_number_of_calls_is_a_budget(approach: Approach) -> None:
    for calls in (number + 1 for number in await some_calls(approach)):
        llm = Lenient()
        try:
            ended = await ask(approach.name, llm, limits=Limits(max_calls=calls))
        except BudgetExceeded:
            assert len(llm.calls) == calls
        except SamplesFailed as exc:
            assert exc.code == "budget_exceeded"  # noqa: PT017 (one of two ways to end)
        else:
            assert ended.answers[0].text.strip()
            assert "stage_failed" not in ended.report.degraded
        assert len(llm.calls) <= calls


@EVERY
async def test_a_deadline_at_any_call_leaves_an_answer_or_is_504(approach: Approach) -> None:
    for slow in await some_calls(approach):

        def change(number: int, text: str, slow: int = slow) -> Reply:
            return HANG if number >= slow else text

        llm, before = Lenient(change), asyncio.all_tasks()
        try:
            ended = await ask(approach.name, llm, limits=Limits(deadline_s=0.1))
        except SampleError as exc:
            assert exc.status == 504  # noqa: PT017 (one of two ways to end)
        else:
            assert ended.answers[0].text.strip()
            assert "stage_failed" not in ended.report.degraded
        assert llm.inside == 0
        assert asyncio.all_tasks() == before


DIALOGUE = "User: Is it 41?\nAssistant: No.\nSystem: Go on."


@EVERY
async def test_an_answer_with_names_of_roles_comes_whole(approach: Approach) -> None:
    """OptiLLM cuts an answer down to what follows the last of them."""

    def change(_: int, text: str) -> Reply:
        return f"{DIALOGUE}\n{text}" if text.startswith("Way") else text

    ended = await ask(approach.name, Lenient(change))
    assert DIALOGUE in ended.answers[0].text


HOSTILE = [
    " ", "0", "-1", "nan", "inf", "1e999", "9" * 400, "RATING: 1/0", "RATING: -5", "ANSWER:",
    "ANSWER: \\frac{1}{0}", "ANSWER: \\boxed{", "```smt2\n(", "```smt2\n(check-sat)\n```", "```",
    "{", "[" * 3000, '{"rating": null}', '{"best": [1]}', "null", "1.", "- \n- \n-", "<", "I can't",
    "<think>", "</think>", "\x00", "\ud800", "\u202e", "BEST: 9999999999999999", "VERDICT: MAYBE",
]  # fmt: skip


@EVERY
async def test_no_reply_makes_an_approach_break(approach: Approach) -> None:
    for seed in range(6):
        rng = random.Random(seed)
        ended = await ask(approach.name, Lenient(lambda _, text: rng.choice([text, *HOSTILE])))  # noqa: B023 (done within the turn)
        assert "stage_failed" not in ended.report.degraded
        assert len(ended.answers) == 1
