"""The provider as LiteLLM's users meet it, on the real model."""

import json
import subprocess
import sys
from typing import Any

import jsonschema
import litellm
import pytest
import torch

from optillm_hooks.local_provider import models

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("litellm_in_this_loop"),
    # LiteLLM's own use of pydantic.
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance"),
]

PARIS = "The capital of France is Paris."


async def chunks(**call: Any) -> list[Any]:
    return [chunk async for chunk in await litellm.acompletion(**call, stream=True)]


async def test_a_question_is_answered_with_true_usage(served: dict[str, Any]) -> None:
    response = await litellm.acompletion(**served, temperature=0)
    (choice,) = response.choices
    assert choice.message.content == PARIS
    assert choice.finish_reason == "stop"
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (37, 8)
    assert response._hidden_params["response_cost"] == 0.0


@pytest.mark.parametrize("penalty", [1.0, 1.3])
async def test_greedy_text_is_that_of_transformers(
    served: dict[str, Any], loaded: models.LoadedModel, penalty: float
) -> None:
    ids = loaded.tokenizer.apply_chat_template(
        served["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    out = loaded.model.generate(
        ids,
        do_sample=False,
        max_new_tokens=24,
        attention_mask=ids * 0 + 1,
        repetition_penalty=penalty,
    )
    expected = loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    response = await litellm.acompletion(
        **served, temperature=0, max_tokens=24, repetition_penalty=penalty
    )
    assert response.choices[0].message.content == expected


async def test_a_stream_has_the_same_text_the_reason_and_the_usage(served: dict[str, Any]) -> None:
    parts = await chunks(**served, temperature=0, stream_options={"include_usage": True})
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == PARIS
    assert sum(bool(p.choices and p.choices[0].delta.content) for p in parts) == 7
    assert [p.choices[0].finish_reason for p in parts if p.choices][-2] == "stop"
    assert len({part.id for part in parts}) == 1
    assert parts[-1].usage.completion_tokens == 8
    assert parts[-1].usage.prompt_tokens == 37


HARMLESS: dict[str, Any] = {
    "extra_body": {"prediction": {"type": "content", "content": "x"}},
    "logit_bias": {},
    "max_completion_tokens": -1,
    "max_tokens": -1,
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "prompt_cache_key": "k",
    "repetition_penalty": 1.0,
    "response_format": {"type": "text"},
    "safety_identifier": "u",
    "service_tier": "auto",
    "stop": "",
    "store": False,
    "tools": [],
    "top_k": 0,
    "top_p": 0,
    "user": "u",
}


async def test_fields_that_clients_send_to_every_model_change_nothing(
    served: dict[str, Any],
) -> None:
    nulls: dict[str, Any] = dict.fromkeys([*HARMLESS, "seed", "n", "min_p", "presence_penalty"])
    for fields in (HARMLESS, nulls):
        response = await litellm.acompletion(**served, temperature=0, **fields)
        assert response.choices[0].message.content == PARIS


async def test_max_tokens_ends_with_length(served: dict[str, Any]) -> None:
    response = await litellm.acompletion(**served, temperature=0, max_tokens=3)
    assert response.choices[0].finish_reason == "length"
    assert response.choices[0].message.content == "The capital of"
    assert response.usage.completion_tokens == 3


async def test_a_stop_string_is_found_across_tokens_and_cut(served: dict[str, Any]) -> None:
    response = await litellm.acompletion(**served, temperature=0, stop="is Pa")
    assert response.choices[0].message.content == "The capital of France "
    assert response.choices[0].finish_reason == "stop"


async def test_a_seed_gives_the_same_choices_again_and_choice_0_alone(
    served: dict[str, Any],
) -> None:
    several = [
        await litellm.acompletion(**served, seed=5, n=3, max_tokens=12, temperature=1.2)
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in response.choices] for response in several]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    alone = await litellm.acompletion(**served, seed=5, max_tokens=12, temperature=1.2)
    assert alone.choices[0].message.content == texts[0][0]


async def test_n_choices_stream_under_their_indexes_each_with_its_reason(
    served: dict[str, Any],
) -> None:
    call = {**served, "seed": 3, "n": 2, "max_tokens": 6, "temperature": 1.0}
    whole = await litellm.acompletion(**call)
    texts = {0: "", 1: ""}
    reasons: dict[int, str] = {}
    for part in await chunks(**call):
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert reasons == {c.index: c.finish_reason for c in whole.choices}


async def test_logprobs_are_those_of_an_independent_pass(
    served: dict[str, Any], loaded: models.LoadedModel, token_ids: dict[bytes, int]
) -> None:
    response = await litellm.acompletion(
        **served, temperature=1.0, seed=2, max_tokens=10, logprobs=True, top_logprobs=2
    )
    entries = response.choices[0].logprobs.content
    spelled = b"".join(bytes(entry.bytes) for entry in entries)
    assert spelled.decode() == response.choices[0].message.content
    prompt = loaded.tokenizer.apply_chat_template(
        served["messages"], add_generation_prompt=True, return_dict=False
    )
    answer = [token_ids[bytes(entry.bytes)] for entry in entries]
    end = response.choices[0].finish_reason == "stop"
    assert len(answer) == response.usage.completion_tokens - end
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    for row, token, entry in zip(logprobs, answer, entries, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-3)
        best = [alternative.logprob for alternative in entry.top_logprobs]
        assert best == pytest.approx(row.topk(2).values.tolist(), abs=1e-3)


@pytest.mark.parametrize("n", [1, 2])
async def test_streamed_logprobs_are_those_of_the_whole_answer(
    served: dict[str, Any], n: int
) -> None:
    call = {**served, "seed": 3, "n": n, "max_tokens": 8, "temperature": 1.0}
    call |= {"logprobs": True, "top_logprobs": 2}
    whole = await litellm.acompletion(**call)
    streamed: list[list[Any]] = [[] for _ in range(n)]
    for part in await chunks(**call):
        for choice in part.choices:
            streamed[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice, entries in zip(whole.choices, streamed, strict=True):
        assert len(entries) >= 4
        for mine, theirs in zip(entries, choice.logprobs.content, strict=True):
            assert mine.bytes == theirs.bytes
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [top.bytes for top in mine.top_logprobs] == [
                top.bytes for top in theirs.top_logprobs
            ]


async def test_a_schema_is_obeyed_by_the_real_model(served: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {
            "capital": {"type": "string", "maxLength": 20},
            "continent": {"enum": ["Africa", "Europe", "Asia"]},
        },
        "required": ["capital", "continent"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "facts", "schema": schema}}
    call = {**served, "response_format": form, "max_tokens": 40, "n": 2, "temperature": 0.3}
    response = await litellm.acompletion(**call, seed=1)
    answers = [json.loads(choice.message.content) for choice in response.choices]
    for answer in answers:
        jsonschema.validate(answer, schema)
    assert "Paris" in [answer["capital"] for answer in answers]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"temperature": 5}, litellm.BadRequestError, "temperature.*less than or equal to 2"),
        ({"n": 0}, litellm.BadRequestError, "n: .*greater than"),
        ({"no_such_field": 1}, litellm.BadRequestError, "do not support the field 'no_such_field'"),
        ({"top_logprobs": 2}, litellm.BadRequestError, "top_logprobs requires logprobs"),
        ({"modalities": ["text", "audio"]}, litellm.BadRequestError, "modalities.1: .*'text'"),
        ({"max_tokens": 0}, litellm.BadRequestError, "max_tokens: .*greater than or equal to 1"),
        ({"messages": []}, litellm.BadRequestError, "messages must not be empty"),
        (
            {"tools": [{"type": "function", "function": {"name": "now"}}]},
            litellm.BadRequestError,
            "chat template does not support tools",
        ),
        ({"model": "optillm-local/gpt-9"}, litellm.NotFoundError, "no local model 'gpt-9'"),
        (
            {"messages": [{"role": "user", "content": "hi " * 8200}]},
            litellm.ContextWindowExceededError,
            "context of 8192",
        ),
    ],
)
async def test_a_wrong_request_is_refused(
    served: dict[str, Any],
    fields: dict[str, Any],
    error: type[Exception],
    message: str,
    stream: bool,
) -> None:
    call = {**served, **fields}
    with pytest.raises(error, match=message):
        await (chunks(**call) if stream else litellm.acompletion(**call))


def test_the_synchronous_sdk_works_too(served: dict[str, Any]) -> None:
    assert litellm.completion(**served, temperature=0).choices[0].message.content == PARIS
    parts = litellm.completion(**served, temperature=0, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == PARIS


def test_naming_the_provider_in_a_config_loads_no_torch() -> None:
    code = (
        "import sys; import optillm_hooks.local_provider as local;"
        "assert 'litellm' not in sys.modules;"
        "local.provider; assert local.provider is local.provider;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
