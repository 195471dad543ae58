"""Plugin files: loaded as they are, run in a thread, their calls metered."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optillm_hooks import packages, registry
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    EmptyCompletion,
    ProviderFailed,
    Refused,
    SampleError,
    TooManyThreads,
    UnusableReply,
)
from optillm_hooks.fanout import LoopOfThread, in_thread
from optillm_hooks.plugin_files.loading import load_plugins
from optillm_hooks.plugin_files.running import flattened
from optillm_hooks.registry import get_approach
from optillm_hooks.settings import Settings, forbidden, plugins_directory
from optillm_hooks.testing import HANG, AnsweringLLM, ScriptedLLM, answer, chat, context, run
from optillm_hooks.types import Chat, Completion, Message, Sampling, ToolCall
from tests.plugin_files.written import BROKEN, GOOD, write

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_approaches", dict(registry._approaches))


@pytest.fixture
def loaded(tmp_path: Path) -> None:
    assert load_plugins(write(tmp_path, GOOD)) == []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    until = time.monotonic() + 30
    while any(t.name == "optillm-work" for t in threading.enumerate()):
        assert time.monotonic() < until, "a plugin's thread still works"
        time.sleep(0.005)


def unlimited(**given: Any) -> Context:
    return context(limits=Limits(), **given)


def load(tmp_path: Path, text: str) -> None:
    assert load_plugins(write(tmp_path, {"mine.py": text})) == []


def returning(tmp_path: Path, value: str) -> None:
    load(tmp_path, f"SLUG = 'mine'\ndef run(s, q, client, model):\n    return {value}\n")


# ------------------------------------------------------------------------------------- loading


def test_a_broken_file_is_reported_and_the_others_are_loaded(tmp_path: Path) -> None:
    problems = load_plugins(write(tmp_path, {**BROKEN, "lists.py": GOOD["lists.py"]}))
    found = {name: [p for p in problems if name in p] for name in BROKEN}
    # Files are read in the order of their names, so the first to take a slug keeps it.
    assert {name: len(lines) for name, lines in found.items()} == {
        **dict.fromkeys(BROKEN, 1), "g_twice.py": 0,
    }  # fmt: skip
    assert any("lists.py" in problem and "another approach" in problem for problem in problems)
    for name, words in {
        "a_syntax": "SyntaxError", "b_import": "no_such_package", "c_exits": "no licence",
        "d_no_slug": "no SLUG", "e_taken": "'bon'", "f_dashes": "'my-plugin'",
        "h_calls": "EXPECTED_CALLS",
    }.items():  # fmt: skip
        assert words in found[f"{name}.py"][0]
    assert not [name for name in sys.modules if name.startswith("optillm_plugin_file_b")]
    assert get_approach("lists").kind == "answerer"
    assert get_approach("lists").origin == str(tmp_path / "g_twice.py")  # whose slug it is


def test_installed_packages_offer_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = "optillm_hooks.plugins"
    package = write(tmp_path, {"their_plugin.py": GOOD["lists.py"]})
    monkeypatch.syspath_prepend(str(package))
    entries = [EntryPoint(name, name, group) for name in ("their_plugin", "not_there")]
    found = {group: EntryPoints(entries)}
    monkeypatch.setattr(packages, "entry_points", lambda group: found[group])
    assert load_plugins(None) == []  # none is allowed
    monkeypatch.setattr(packages, "_ALLOWED", SimpleNamespace(packages="all"))
    [problem] = load_plugins(None)
    assert "not_there" in problem
    assert get_approach("lists").kind == "answerer"


@pytest.mark.parametrize("given", ["plugins", "/no/such/directory"])
def test_a_directory_that_cannot_be_the_operators_is_refused(given: str) -> None:
    [problem] = load_plugins(Path(given))
    assert given in problem


def test_no_file_of_the_current_directory_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"optillm/plugins/evil.py": "raise AssertionError('it was run')"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTILLM_PLUGINS_DIR", raising=False)
    assert plugins_directory(Settings()) is None
    assert load_plugins(plugins_directory(Settings())) == []


def test_the_setting_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTILLM_PLUGINS_DIR", "/env")
    assert plugins_directory(Settings()) == Path("/env")
    assert plugins_directory(Settings(plugins_dir="/yaml")) == Path("/yaml")


@pytest.mark.usefixtures("loaded")
def test_a_plugin_is_none_of_the_safe_approaches() -> None:
    assert forbidden([get_approach("votes")], "safe") == ["votes"]


# ------------------------------------------------------------------------------------- running


@pytest.mark.usefixtures("loaded")
async def test_a_vote_asks_for_n_of_a_provider_that_honours_it() -> None:
    llm = ScriptedLLM(["41", "so\n42", "well\n42", "43"], max_n=8)
    ctx = unlimited(client=Sampling(temperature=0.2, max_tokens=50, fields={"user": "u"}))
    reply = await answer("votes", chat("6 * 7?"), llm, ctx)
    assert reply.text == "so\n42"
    [(asked, sampling)] = llm.calls
    assert [m.role for m in asked] == ["user"]  # some providers refuse an empty system prompt
    assert asked[-1].text == "6 * 7?"
    assert (sampling.temperature, sampling.max_tokens) == (0.2, 50)
    assert "user" not in sampling.fields  # the plugin says everything that its calls send


@pytest.mark.usefixtures("loaded")
async def test_n_is_made_of_single_calls_elsewhere() -> None:
    llm = ScriptedLLM(["41", "42", "42"])
    assert (await answer("votes", chat("6 * 7?"), llm, unlimited(), k=3)).text == "42"
    assert len(llm.calls) == 3
    assert len({sampling.sample for _, sampling in llm.calls}) == 3


@pytest.mark.usefixtures("loaded")
async def test_a_judge_chooses() -> None:
    llm = ScriptedLLM(["one", "two", "I say BEST CANDIDATE: 2"])
    assert (await answer("selects", chat("?"), llm, unlimited())).text == "two"
    assert llm.calls[-1][1].max_tokens == 2048


@pytest.mark.usefixtures("loaded")
async def test_an_async_plugin_calls_from_threads_of_its_own() -> None:
    llm = AnsweringLLM(lambda asked, _: asked[-1].text.split(":")[0].lower())
    ctx = unlimited()
    assert (await answer("in_its_own_loop", chat("tea"), llm, ctx)).text == "for / against"
    assert ctx.budget.usage.calls == 2


@pytest.mark.usefixtures("loaded")
async def test_a_stream_arrives_in_pieces_with_its_usage() -> None:
    llm = ScriptedLLM(["one\ntwo\nthree"])
    ctx = unlimited()
    asked = (Message("system", "Be brief."), *chat("Count."))
    assert (await answer("legacy", asked, llm, ctx)).text == "one\ntwo\nthree"
    assert [m.text for m in llm.calls[0][0]] == ["Be brief.", "Count."]
    assert ctx.budget.usage.total_tokens == 15


@pytest.mark.usefixtures("loaded")
async def test_a_whole_completion_is_an_answer_with_its_tool_calls() -> None:
    call = ToolCall("call_1", "weather", '{"city": "Oslo"}')
    llm = ScriptedLLM([Completion("", "tool_calls", "hm", (call,))])
    fields: dict[str, Any] = {"tools": [{"type": "function"}], "seed_words": ["a"]}
    messages = (
        Message("user", ({"type": "text", "text": "Oslo?"}, {"type": "image_url"})),
        Message("assistant", None, {"tool_calls": [{"id": "x"}]}),
        Message("tool", "rain", {"tool_call_id": "x"}),
    )
    ctx = unlimited(client=Sampling(temperature=0.3, fields=fields))
    reply = await answer("passes", messages, llm, ctx, extra=1)
    assert (reply.tool_calls, reply.finish_reason, reply.reasoning) == ((call,), "tool_calls", "hm")
    [(asked, sampling)] = llm.calls
    assert asked == messages
    assert sampling.fields == {**fields, "extra": 1, "tool_choice": "auto"}
    assert sampling.temperature == 0.3


@pytest.mark.usefixtures("loaded")
async def test_of_several_answers_the_first_is_taken_and_the_others_are_reported() -> None:
    ctx = unlimited()
    assert (await answer("lists", chat("?"), ScriptedLLM([]), ctx)).text == "first"
    assert ctx.trace.lost == ("choices:2/3",)


@pytest.mark.parametrize(
    "value", ["None", "42", "{'text': 'x'}", "[]", "{'choices': [1]}", "(1, 2)"]
)
async def test_what_is_no_answer_is_an_error(tmp_path: Path, value: str) -> None:
    returning(tmp_path, value)
    with pytest.raises(UnusableReply):
        await run("mine", chat("?"), ScriptedLLM([]), unlimited())


async def test_an_empty_text_is_no_answer(tmp_path: Path) -> None:
    returning(tmp_path, "'', 0")
    with pytest.raises(EmptyCompletion):
        await run("mine", chat("?"), ScriptedLLM([]), unlimited())


def test_a_conversation_is_flattened_as_optillm_does() -> None:
    turns: Chat = (
        Message("system", "x"), Message("user", "Hi"), Message("assistant", "Hello"),
        Message("assistant", None, {"tool_calls": []}), Message("tool", "y"),
        Message("user", ({"type": "text", "text": "Why?"},)),
    )  # fmt: skip
    assert flattened(turns) == "User: Hi\nAssistant: Hello\nUser: Why?"
    assert flattened(chat("Hi")) == "Hi"


# -------------------------------------------------------------------------------------- limits


@pytest.mark.usefixtures("loaded")
async def test_if_every_call_fails_so_does_the_plugin_whatever_it_returns() -> None:
    llm = AnsweringLLM(lambda *_: ProviderFailed("down", status=503))
    with pytest.raises(SampleError, match="down") as caught:
        await run("votes", chat("?"), llm, unlimited(), k=2)
    assert caught.value.status == 503


async def test_an_error_that_the_plugin_lets_through_is_the_providers(tmp_path: Path) -> None:
    load(
        tmp_path,
        "import openai\nSLUG = 'mine'\n"
        "def run(s, q, client, model):\n"
        "    try:\n"
        "        return client.chat.completions.create(model=model, messages=[{'role': 'user',"
        " 'content': q}]).choices[0].message.content\n"
        "    except openai.RateLimitError as e:\n"
        "        assert e.status_code == 429 and e.code == 'rate_limit_exceeded', e\n"
        "        raise ValueError('my own') from e\n",
    )
    busy = ProviderFailed("busy", status=429, code="rate_limit_exceeded")
    with pytest.raises(ProviderFailed, match="busy"):
        await run("mine", chat("?"), ScriptedLLM([busy]), unlimited())


@pytest.mark.usefixtures("loaded")
async def test_the_budget_holds_and_what_was_answered_counts() -> None:
    """OptiLLM's own voting falls back to single calls: they are refused too."""
    ctx = context(limits=Limits(max_calls=2))
    llm = AnsweringLLM(lambda *_: "42")
    assert (await answer("votes", chat("?"), llm, ctx, k=4)).text == "42"
    assert len(llm.calls) == 2
    assert ctx.budget.stopped_by == "max_calls"
    with pytest.raises(SampleError) as caught:
        await run("votes", chat("?"), llm, context(limits=Limits(max_calls=0)), k=4)
    assert caught.value.code == "budget_exceeded"


@pytest.mark.usefixtures("loaded")
async def test_a_reply_to_the_users_own_question_is_kept() -> None:
    ctx = unlimited()
    with pytest.raises(ProviderFailed):
        await run("selects", chat("?"), ScriptedLLM(["a", "b", ProviderFailed("down")]), ctx)
    assert ctx.best is not None
    assert ctx.best.text == "a"


async def test_a_model_that_the_request_does_not_name_is_refused(tmp_path: Path) -> None:
    load(
        tmp_path,
        "SLUG = 'mine'\n"
        "def run(s, q, client, model):\n"
        "    return client.chat.completions.create(model='other', messages=[{'role': 'user',"
        " 'content': q}]).choices[0].message.content\n",
    )
    other = ScriptedLLM(["from the other"], model="other")
    with pytest.raises(Refused, match="'other'"):
        await run("mine", chat("?"), ScriptedLLM([]), unlimited(models=[other]))
    reply = await answer(
        "mine", chat("?"), ScriptedLLM([]), unlimited(models=[other]), models=["other"]
    )
    assert reply.text == "from the other"


@pytest.mark.usefixtures("loaded")
async def test_cancelling_ends_a_plugin_that_catches_everything() -> None:
    llm = ScriptedLLM([HANG])
    running = asyncio.ensure_future(run("stubborn", chat("?"), llm, unlimited()))
    await llm.until_hanging(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert llm.inside == 0
    # `no_thread_is_left`: the next call of the client has ended its loop.


@pytest.mark.usefixtures("loaded")
async def test_cancelling_ends_an_async_plugin_and_its_calls() -> None:
    llm = ScriptedLLM([HANG, HANG])
    running = asyncio.ensure_future(run("in_its_own_loop", chat("?"), llm, unlimited()))
    await llm.until_hanging(2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert llm.inside == 0


async def test_the_loop_is_free_while_a_plugin_works() -> None:
    free = threading.Event()

    def work(_: LoopOfThread) -> bool:
        return free.wait(5)

    async def set_it() -> None:
        free.set()

    worked, _ = await asyncio.gather(in_thread(work), set_it())
    assert worked


async def test_threads_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optillm_hooks.fanout._threads", threading.BoundedSemaphore(1))
    free = threading.Event()
    first = asyncio.ensure_future(in_thread(lambda _: free.wait(5)))
    await asyncio.sleep(0)
    with pytest.raises(TooManyThreads):
        await in_thread(lambda _: None)
    free.set()
    assert await first


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "StopIteration"])
async def test_no_exception_of_a_plugin_ends_the_proxy(tmp_path: Path, error: str) -> None:
    load(tmp_path, f"SLUG = 'mine'\ndef run(s, q, client, model):\n    raise {error}\n")
    with pytest.raises(RuntimeError, match=error):
        await run("mine", chat("?"), ScriptedLLM([]), unlimited())
