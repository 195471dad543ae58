"""Round-trip optimization: what each call sees, and which version is returned."""

import pytest

from optillm_hooks.approaches.rto import MERGE, SAME, code_of
from optillm_hooks.errors import ProviderFailed, SampleError
from optillm_hooks.judging.verdicts import says
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import Reply, ScriptedLLM, answer, context, params
from optillm_hooks.types import Completion, Message, Sampling, ToolCall
from tests.simulated import kind

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Use Python."),
    Message("user", "Hello."),
    Message("assistant", "Hello!"),
    Message("user", "Add the numbers of a secret file."),
)
FIRST = "Here:\n```python\nprint(1)\n```\n"
OTHER = "```python\nprint(2)\n```"
MERGED = "```python\nprint(3)\n```"
TWO_FILES = "a.py:\n```python\na = 1\n```\nb.py:\n```python\nb = {}\n```\nRun b.py."


async def test_different_versions_are_merged() -> None:
    llm = ScriptedLLM([FIRST, "Print one.", OTHER, MERGED])
    ctx = context()
    assert (await answer("rto", CHAT, llm, ctx)).text == MERGED
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (4, 4)
    cost = get_approach("rto").cost(params("rto"))
    assert (cost.calls, cost.depth) == (4, 4)


async def test_equal_code_ends_after_three_calls_with_the_first_answer_as_it_is() -> None:
    llm = ScriptedLLM([FIRST, "Print one.", "```\nprint(1)  \n\n```"])
    ctx = context()
    assert (await answer("rto", CHAT, llm, ctx)).text == FIRST
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (3, 3)
    assert ctx.trace.events == [("round_trip", {"equal": True})]


@pytest.mark.parametrize(
    "verdict",
    [
        SAME,
        f"**{SAME}**.",
        f"<think>Hm.</think>\n{SAME.lower()}",
        f"{SAME}. Both print one number.",
        f"{SAME}\n\nBoth versions print the same in every case.",
        f"Both print one number, whatever the input.\n\n**{SAME}**",
    ],
)
async def test_versions_judged_equivalent_give_the_first(verdict: str) -> None:
    llm = ScriptedLLM([FIRST, "Print one.", OTHER, verdict])
    assert (await answer("rto", CHAT, llm)).text == FIRST


@pytest.mark.parametrize(
    "merged",
    [f"NOT {SAME}.\n{MERGED}", f"Two fractions are equivalent.\n{MERGED}", "Equivalently, 2."],
)
async def test_an_answer_that_speaks_of_equivalence_is_an_answer(merged: str) -> None:
    llm = ScriptedLLM([FIRST, "Print one.", OTHER, merged])
    assert (await answer("rto", CHAT, llm)).text == merged


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("The capital of France is Paris.", id="a fact"),
        pytest.param("法国的首都是巴黎。", id="in Chinese"),
        pytest.param("x = 7\ny = 3", id="equations"),
        pytest.param("$$\n\\begin{cases}\nx = 1 \\\\\ny = 2\n\\end{cases}\n$$", id="LaTeX"),
        pytest.param("Roses are red,\nviolets blue;\nsugar is sweet,\nand so are you.", id="verse"),
        pytest.param("1. Wash the rice.\n2. Boil it:\n   - 12 minutes\n   - a lid", id="a list"),
        pytest.param('{\n  "city": "Rome",\n  "size": 3\n}', id="JSON"),
        pytest.param("Use `len(x)` for that.", id="a word of code"),
        pytest.param("<think>```py\na\n```</think>It is 7.", id="code that was only thought of"),
    ],
)
async def test_an_answer_without_code_is_the_first_call_alone(text: str) -> None:
    ctx = context()
    assert (await answer("rto", CHAT, ScriptedLLM([text]), ctx)).text == text
    assert (ctx.trace.depth, ctx.trace.calls_saved) == (1, 3)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("def a(x):\n    return b(x)\n\ndef b(x):\n    return x", id="Python"),
        pytest.param("#include <stdio.h>\nint main(void) {\n  return 0;\n}", id="C"),
        pytest.param("fn main() {\n    let x = 1;\n    println!();\n}", id="Rust"),
        pytest.param("<html>\n<body>\n<p>Hallo</p>\n</body>\n</html>", id="HTML"),
        pytest.param("SELECT a\nFROM b;\nSELECT c\nFROM d;", id="SQL"),
        pytest.param("const f = (x) => x * x\nlet y = f(3)\nconsole.log(y)", id="JavaScript"),
    ],
)
async def test_code_without_a_fence_is_code(text: str) -> None:
    llm = ScriptedLLM([text, "Do it.", text])
    assert (await answer("rto", CHAT, llm)).text == text
    llm.assert_used_up()


async def test_in_json_mode_there_is_no_round_trip() -> None:
    ctx = context(client=Sampling(fields={"response_format": {"type": "json_object"}}))
    text = '{"code": "```python\\nprint(1)\\n```"}\n```\nx\n```'
    assert (await answer("rto", CHAT, ScriptedLLM([text]), ctx)).text == text


async def test_the_description_is_made_without_the_query() -> None:
    llm = ScriptedLLM([FIRST, "Print one.", OTHER, MERGED])
    await answer("rto", CHAT, llm)
    describing, _ = llm.calls[1]
    assert kind(*llm.calls[1]) == "describe"
    assert FIRST.strip() in describing[-1].text
    assert not any("secret" in message.text for message in describing)


async def test_the_second_version_is_made_from_the_description_and_the_rules_alone() -> None:
    llm = ScriptedLLM([FIRST, "<think>Hm.</think>Print one.", OTHER, MERGED])
    await answer("rto", CHAT, llm)
    again, sampling = llm.calls[2]
    assert again == (CHAT[0], Message("user", "Print one."))
    assert sampling.purpose == "draft"


async def test_the_merger_sees_the_conversation_and_both_versions_whole() -> None:
    llm = ScriptedLLM([TWO_FILES, "Make two files.", OTHER, MERGED])
    await answer("rto", CHAT, llm)
    merging, _ = llm.calls[3]
    assert merging[:3] == CHAT[:3]
    assert merging[3].text.startswith(f"{CHAT[3].text}\n\n{MERGE}")
    assert TWO_FILES in merging[3].text
    assert OTHER in merging[3].text


async def test_which_version_comes_first_is_drawn() -> None:
    orders = set()
    for seed in range(40):  # all the same with probability 2**-39
        llm = ScriptedLLM([FIRST, "Print one.", OTHER, MERGED])
        await answer("rto", CHAT, llm, context(seed=seed))
        shown = llm.calls[3][0][-1].text
        orders.add(shown.index("print(1)") < shown.index("print(2)"))
    assert orders == {True, False}


async def test_answers_of_several_files_survive() -> None:
    same_but_for_words = TWO_FILES.replace("Run b.py.", "Done.")
    llm = ScriptedLLM([TWO_FILES, "Make two files.", same_but_for_words])
    assert (await answer("rto", CHAT, llm)).text == TWO_FILES
    second_file_differs = TWO_FILES.replace("{}", "[]")
    llm = ScriptedLLM([TWO_FILES, "Make two files.", second_file_differs, TWO_FILES * 2])
    assert (await answer("rto", CHAT, llm)).text == TWO_FILES * 2


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param([ProviderFailed("502")], id="the description fails"),
        pytest.param(["<think>Hm.</think>"], id="the description says nothing"),
        pytest.param(["Print one.", ProviderFailed("502")], id="the second version fails"),
        pytest.param(["Print one.", ""], id="the second version is empty"),
        pytest.param(
            ["Print one.", Completion(OTHER, finish_reason="length")],
            id="the second version is truncated",
        ),
        pytest.param(["Print one.", OTHER, ProviderFailed("502")], id="the merger fails"),
        pytest.param(
            ["Print one.", OTHER, Completion(MERGED, finish_reason="length")],
            id="the merger is truncated",
        ),
    ],
)
async def test_the_first_answer_survives_when(replies: list[Reply]) -> None:
    llm = ScriptedLLM([FIRST, *replies])
    assert (await answer("rto", CHAT, llm)).text == FIRST
    llm.assert_used_up()


async def test_a_long_description_is_not_cut() -> None:
    llm = ScriptedLLM([FIRST, "Print one." * 5000, OTHER, MERGED])
    await answer("rto", CHAT, llm)
    assert all(sampling.max_tokens is None for _, sampling in llm.calls)


async def test_a_truncated_answer_and_tool_calls_are_returned_as_they_are() -> None:
    cut = Completion(FIRST, finish_reason="length")
    assert (await answer("rto", CHAT, ScriptedLLM([cut]))).truncated
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    assert (await answer("rto", CHAT, ScriptedLLM([calling]))).tool_calls == calling.tool_calls


async def test_without_a_first_answer_there_is_an_error() -> None:
    with pytest.raises(SampleError):
        await answer("rto", CHAT, ScriptedLLM([ProviderFailed("502")]))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("```py\na\n```", ["a"], id="one block"),
        pytest.param("x\n```\na\n```\ny\n~~~c\nb\n~~~", ["a", "b"], id="two blocks, two fences"),
        pytest.param("````md\n```\na\n```\n````", ["```\na\n```"], id="a fence inside"),
        pytest.param("  a  \nb ", ["a\nb"], id="no block"),
        pytest.param("```\na", ["```\na"], id="a block that never ends"),
        pytest.param("<think>```\nx\n```</think>a", ["a"], id="code that was only thought of"),
    ],
)
def test_code_of(text: str, code: list[str]) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize("reply", ["EQUIVALENT except for n = 0", "EQUIVALENT? No."])
def test_a_reservation_is_no_equivalence(reply: str) -> None:
    assert not says(SAME, reply)
