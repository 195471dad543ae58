"""The critical path of the methods of many calls, at defaults, through the proxy."""

import pytest

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.registry import get_approach
from tests.proxy import Proxy
from tests.upstream import Call, Script, Upstream

LATENCY_S = 0.5
MOST = {
    "mcts": 6,
    "rstar": 5,
    "rto": 4,
    "pvg": 5,
    "plansearch": 4,
    "leap": 2,
    "z3": 2,
    "cepo": 5,
    "mars": 7,
    "genselect": 2,
    "majority_voting": 1,
}


def cooperative(call: Call, choice: int) -> str:
    """A reply that is of use to whoever asked: a list, a rating, a verdict and an answer."""
    return (
        f"1. The numbers are {call.index} and {choice}.\n2. They are to be multiplied.\n\n"
        f"Rating: 1\nBEST: 1\nVERDICT: CORRECT\nANSWER: {call.index * 100 + choice}"
    )


@pytest.mark.parametrize(("approach", "most"), MOST.items(), ids=MOST)
def test_the_critical_path_is_no_longer_than_the_method_needs(
    proxy: Proxy, upstream: Upstream, approach: str, most: int
) -> None:
    upstream.play(Script(reply=cooperative, latency_s=LATENCY_S))
    answer = proxy.openai().chat.completions.with_raw_response.create(
        model=f"{approach}-base", messages=[{"role": "user", "content": "What is 6 times 7?"}]
    )
    declared = get_approach(approach)
    assert upstream.depth <= most
    assert int(answer.headers["x-optillm-depth"]) <= most
    assert len(upstream.calls) <= declared.cost(declared.params()).calls
