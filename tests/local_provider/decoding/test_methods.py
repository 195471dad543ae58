"""Each method on the real model, asked for as a stage asks, through LiteLLM."""

from typing import Any

import litellm
import pytest
import torch

from optillm_hooks.local_provider.loading import LoadedModel

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("litellm_in_this_loop"),
    # LiteLLM's own use of pydantic.
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance"),
]


async def decoded(served: dict[str, Any], method: str, settings: Any = None, **call: Any) -> Any:
    fields = {"optillm_decoding": {method: settings or {}}}
    return await litellm.acompletion(**{**served, **fields, **call})


async def test_cot_decoding_answers_with_one_of_k_greedy_branches(
    served: dict[str, Any], loaded: LoadedModel
) -> None:
    response = await decoded(served, "cot_decoding", {"k": 3}, max_tokens=12)
    ids = loaded.tokenizer.apply_chat_template(
        served["messages"], add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        firsts = loaded.model(torch.tensor([ids])).logits[0, -1].topk(3).indices
    branches = []
    for first in firsts:
        prompt = torch.tensor([[*ids, first]])
        out = loaded.model.generate(
            prompt, attention_mask=prompt * 0 + 1, max_new_tokens=11, do_sample=False
        )
        branches.append(loaded.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    assert response.choices[0].message.content in branches
    assert response.optillm_decoding["paths"] == 3
    assert 3 * 2 < response.usage.completion_tokens <= 3 * 12


async def test_deepconf_votes_and_counts_all_its_tokens(served: dict[str, Any]) -> None:
    served["messages"] = [{"role": "user", "content": "What is 2+3? Answer with a number."}]
    settings = {"warmup_samples": 4, "max_traces": 6}
    response = await decoded(served, "deepconf", settings, max_tokens=16, seed=1)
    facts = response.optillm_decoding
    assert 4 <= facts["traces"] <= 6
    assert response.choices[0].message.content
    assert response.usage.completion_tokens > 4 * 2


async def test_thinkdeeper_stays_within_max_tokens(served: dict[str, Any]) -> None:
    settings = {"reasoning_effort": "high"}
    response = await decoded(served, "thinkdeeper", settings, max_tokens=60, temperature=0)
    assert response.usage.completion_tokens <= 60
    assert response.choices[0].message.reasoning_content
    assert "think>" not in response.choices[0].message.content
    assert 10 < response.usage.completion_tokens_details.reasoning_tokens < 60


async def test_entropy_decoding_at_temperature_zero_is_greedy(served: dict[str, Any]) -> None:
    call = {"max_tokens": 8, "temperature": 0}
    plain = await litellm.acompletion(**served, **call)
    found = await decoded(served, "entropy_decoding", **call)
    assert found.choices[0].message.content == plain.choices[0].message.content
    assert sum(found.optillm_decoding.values()) == found.usage.completion_tokens


@pytest.mark.parametrize("method", ["entropy_decoding", "autothink"])
async def test_the_other_methods_stream_and_keep_to_the_seed(
    served: dict[str, Any], method: str
) -> None:
    call = {"max_tokens": 20, "seed": 4}
    whole = await decoded(served, method, **call)
    parts = [p async for p in await decoded(served, method, **call, stream=True)]
    deltas = [part.choices[0].delta for part in parts if part.choices]
    text = "".join(delta.content or "" for delta in deltas)
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    message = whole.choices[0].message
    assert text == (message.content or "")
    assert thoughts == (getattr(message, "reasoning_content", None) or "")
    assert text + thoughts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optillm_decoding": {"beam": {}}}, "no decoding method 'beam'"),
        ({"optillm_decoding": {"cot_decoding": {"k": 0}}}, "k: .*greater than"),
        ({"optillm_decoding": {"cot_decoding": {"kk": 1}}}, "kk"),
        ({"optillm_decoding": {"deepconf": {}}, "n": 2}, "deepconf returns one choice"),
    ],
    ids=["method", "bounds", "name", "n"],
)
async def test_wrong_settings_are_refused(
    served: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(litellm.BadRequestError, match=message):
        await litellm.acompletion(**served, **fields)
