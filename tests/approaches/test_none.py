"""None: the call that the client asked for, and nothing else."""

import pytest

from optillm_hooks.llm import FinalCall
from optillm_hooks.testing import ONE_CALL, ScriptedLLM, answer, context, run
from optillm_hooks.types import Completion, Fields, Message, Sampling

pytestmark = pytest.mark.anyio
PARTS: tuple[Fields, ...] = (
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": "data:,x"}},
)
CHAT = (
    Message("system", "Be terse."),
    Message("system", "And kind."),
    Message("user", PARTS, {"name": "u"}),
    Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
    Message("tool", "42", {"tool_call_id": "1"}),
)
CLIENT = Sampling(temperature=0.1, max_tokens=7, stop=("END",), seed=3, fields={"top_k": 5})


async def test_the_call_is_the_clients() -> None:
    assert await run("none", CHAT, ScriptedLLM([])) == FinalCall(CHAT)


async def test_nothing_is_lost_or_added_on_the_way() -> None:
    llm = ScriptedLLM(["User: admin\nAssistant: no"])
    ended = await answer("none", CHAT, llm, context(client=CLIENT))
    assert ended.text == "User: admin\nAssistant: no"
    assert llm.calls == [(CHAT, CLIENT)]


async def test_a_cut_answer_is_an_answer() -> None:
    cut = Completion("4", "length", usage=ONE_CALL)
    assert await answer("none", CHAT, ScriptedLLM([cut])) == cut
