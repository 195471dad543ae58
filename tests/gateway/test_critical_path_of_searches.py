"""The critical path of methods that make many calls, with default parameters, on the proxy."""

import itertools
import json

import httpx
import pytest

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.approaches import leap, plansearch
from optillm_hooks.registry import get_approach
from tests.proxy import Proxy
from tests.upstream import Call, ReplyRule, Script, Upstream

LATENCIES_S = (0.2, 1.0, 5.0)
"""Tried one after another, until the calls of each stage overlap, as in `test_critical_path`."""

# Without code, examples or a use for a solver, rto, leap and z3 cost one call.
MOST = {
    "mcts": 6,
    "rstar": 13,
    "rto": 1,
    "pvg": 5,
    "plansearch": 4,
    "leap": 1,
    "z3": 1,
    "cascade": 2,
    "cepo": 7,
    "mars": 7,
    "genselect": 3,
    "majority_voting": 2,
    "rsa": 4,
}


def cooperative(call: Call, choice: int) -> str:
    """A reply that is of use to whoever asked: a list, a rating, a verdict and an answer."""
    return (
        f"1. The numbers are {call.index} and {choice}.\n2. They are to be multiplied.\n\n"
        f"Rating: 1\nBEST: 1\nVERDICT: CORRECT\nANSWER: {call.index * 100 + choice}"
    )


def asked_slowly(
    proxy: Proxy, upstream: Upstream, model: str, text: str, reply: ReplyRule, most: int
) -> httpx.Response:
    """Return an answer of a slow provider, which saw a chain of at most `most` calls if it can."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    for latency_s in LATENCIES_S:
        upstream.play(Script(reply=reply, latency_s=latency_s))
        answer = proxy.post("/v1/chat/completions", body).raise_for_status()
        upstream.wait_until_idle()
        if upstream.depth <= most:
            break
    return answer


@pytest.mark.parametrize(("approach", "most"), MOST.items(), ids=MOST)
def test_the_critical_path_is_no_longer_than_the_method_needs(
    proxy: Proxy, upstream: Upstream, approach: str, most: int
) -> None:
    answer = asked_slowly(
        proxy, upstream, f"{approach}-base", "What is 6 times 7?", cooperative, most
    )
    declared = get_approach(approach)
    assert upstream.depth <= most
    assert int(answer.headers["x-optillm-depth"]) <= most
    assert len(upstream.calls) <= declared.cost(declared.params()).calls


@pytest.mark.parametrize("approach", ["rto", "leap", "z3"])
def test_where_a_method_does_not_apply_a_stream_is_one_call_too(
    proxy: Proxy, upstream: Upstream, approach: str
) -> None:
    upstream.play(Script(reply=lambda *_: "Tides follow the moon."))
    pieces = proxy.openai().chat.completions.create(
        model=f"{approach}-base",
        messages=[{"role": "user", "content": "It is ebb. Then it is flood. Why is that?"}],
        stream=True,
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == "Tides follow the moon."
    assert len(upstream.calls) == 1


EXAMPLES = [{"question": f"{n} * {n}?", "answer": str(n * n)} for n in (2, 3, 4)]


def taught(call: Call, _choice: int) -> str:
    """A reply that finds the examples and errs on each, as a student of leap does."""
    asked = call.body["messages"][-1]["content"]
    return json.dumps(EXAMPLES) if leap.FIND in asked else "1. Mind the sign.\nANSWER: 7"


def test_mistakes_on_all_examples_of_the_request_are_learnt_from_at_once(
    proxy: Proxy, upstream: Upstream
) -> None:
    shown = "\n".join(f"Q: {each['question']} A: {each['answer']}" for each in EXAMPLES)
    answer = asked_slowly(proxy, upstream, "leap-base", f"{shown}\n6 * 7?", taught, 5)
    # To find the examples, solve them, learn from the mistakes, merge what was learnt, answer.
    assert upstream.depth == int(answer.headers["x-optillm-depth"]) == 5
    assert len(upstream.calls) == 3 + 2 * len(EXAMPLES)


SQUARES = "Write f, the square.\n\n>>> f(3)\n9"


class ByPlan:
    """Replies that hold programs; only the first answer's squares, and all are rated alike."""

    def __init__(self) -> None:
        self._answers = itertools.count()

    def __call__(self, call: Call, choice: int) -> str:
        if plansearch.ANSWER not in call.body["messages"][-1]["content"]:
            return cooperative(call, choice)
        return f"```python\ndef f(x):\n    return x * x + {next(self._answers)}\n```"


def test_where_programs_may_run_the_tests_of_the_request_choose(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=ByPlan()))
    answer = proxy.openai().chat.completions.create(
        model="tested", messages=[{"role": "user", "content": SQUARES}]
    )
    assert "return x * x + 0" in str(answer.choices[0].message.content)
    assert len(upstream.calls) == 7
