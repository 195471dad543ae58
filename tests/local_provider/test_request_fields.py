"""What request fields change in replies, from the request's body to the engine's text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider import models, request
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.engine_request import Choice, Finished, Piece, Submission
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.local_provider.sampling_defaults import sampling_defaults
from tests.local_provider import tiny

HI = [{"role": "user", "content": "Hi"}]
RUNNER = tiny.runner()
MODEL = tiny.model()
TEMPLATE = tiny.CHATML.replace(
    "<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)
FORMAT = tiny.chat_format(TEMPLATE)


def reply(
    fields: Mapping[str, Any],
    messages: list[dict[str, Any]] = HI,
    defaults: Mapping[str, float] | None = None,
    chat_format: ChatFormat = FORMAT,
) -> tuple[Choice, Finished]:
    """Return the choice that a request body gets, and the counts."""
    events: list[Any] = []
    batch = Batch(RUNNER, chat_format, Capacity(), defaults or {})
    batch.add(Submission(parse_request(messages, fields), events.append))
    while not batch.idle:
        batch.step()
    if isinstance(events[-1], Exception):
        raise events[-1]
    choice = Choice()
    for piece in events[:-1]:
        assert isinstance(piece, Piece)
        choice.add(piece)
    return choice, events[-1]


def generated(prompt: Sequence[int], **options: Any) -> bytes:
    """Return the greedy reply of transformers."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = MODEL.generate(
            ids, do_sample=False, attention_mask=ids * 0 + 1, pad_token_id=tiny.END, **options
        )
    written = out[0, len(prompt) :].tolist()
    return b"".join(FORMAT.token_bytes(token) for token in written if token != tiny.END)


def written(choice: Choice) -> bytes:
    """Return the bytes of a choice's tokens, also of those that are no whole character."""
    return b"".join(token.token for token in choice.tokens)


def biased(*tokens: int) -> dict[int, int]:
    """Return a logit bias under which a reply consists of `tokens`."""
    return dict.fromkeys(tokens, 90)


WORD = {word: tiny.SPELLED[-len(tiny.WORDS) + i] for i, word in enumerate(tiny.WORDS)}
TRUE, THINK, THOUGHT = WORD["true"], WORD["<think>"], WORD["</think>"]
LIKELY_END = {"logit_bias": {tiny.END: 8}}


@pytest.mark.parametrize("least", [1, 5, 12])
def test_min_tokens_ban_the_end_as_in_transformers(least: int) -> None:
    fields = {"temperature": 0, "max_tokens": 30, "logprobs": True, **LIKELY_END}
    assert reply(fields)[1].completion_tokens < 5
    choice, finished = reply({**fields, "min_tokens": least})
    bias = {(tiny.END,): 8.0}
    assert written(choice) == generated(
        FORMAT.encode(HI),
        max_new_tokens=30,
        min_new_tokens=least,
        sequence_bias=bias,
        eos_token_id=tiny.END,
    )
    assert finished.completion_tokens > least


def test_min_tokens_ban_stop_tokens_and_stop_strings_too() -> None:
    always = {"logit_bias": biased(TRUE), "temperature": 0, "max_tokens": 9, "min_tokens": 4}
    choice, finished = reply({**always, "stop": "true"})
    assert (choice.text, choice.finish_reason) == ("true" * 4, "stop")
    assert finished.completion_tokens == 5
    choice, finished = reply({**always, "stop_token_ids": [TRUE]})
    assert "true" not in choice.text[:4]
    assert (choice.finish_reason, finished.completion_tokens) == ("stop", 5)


@pytest.mark.parametrize("fields", [{"min_tokens": 20}, {"ignore_eos": True}])
def test_a_complete_reply_ends_whatever_its_least_length(fields: dict[str, Any]) -> None:
    schema = {"type": "json_schema", "json_schema": {"schema": {"const": True}}}
    choice, _ = reply({"response_format": schema, "max_tokens": 30, "temperature": 1, **fields})
    assert (choice.text, choice.finish_reason) == ("true", "stop")


def test_ignored_end_tokens_end_nothing_and_show_nothing() -> None:
    fields = {"temperature": 0, "max_tokens": 7, "logit_bias": biased(tiny.END)}
    assert reply(fields)[1].completion_tokens == 1
    choice, finished = reply({**fields, "ignore_eos": True})
    assert (choice.text, choice.finish_reason) == ("", "length")
    assert finished.completion_tokens == 7
    choice, _ = reply({**fields, "ignore_eos": True, "skip_special_tokens": False})
    assert choice.text == "<|im_end|>" * 7
    _, finished = reply({**fields, "ignore_eos": True, "stop_token_ids": [tiny.END]})
    assert finished.completion_tokens == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stop_token_ids": [TRUE]}, ""),
        ({"stop_token_ids": [TRUE], "include_stop_str_in_output": True}, "true"),
        ({"stop": ["ru"]}, "t"),
        ({"stop": ["ru"], "include_stop_str_in_output": True}, "tru"),
        ({"stop": ["ue", "rue"], "include_stop_str_in_output": True}, "true"),
    ],
)
def test_stops_end_a_reply_and_are_shown_on_request(fields: dict[str, Any], text: str) -> None:
    always = {"logit_bias": biased(TRUE), "temperature": 0, "max_tokens": 9}
    choice, finished = reply({**always, **fields})
    assert (choice.text, choice.finish_reason) == (text, "stop")
    assert finished.completion_tokens == 1


def test_a_stop_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestRejected, match="stop_token_ids accepts token ids from 0 to"):
        reply({"stop_token_ids": [10**6]})


@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize("opened", [True, False], ids=["opened by the prompt", "by the reply"])
def test_a_budget_ends_the_thinking(budget: int, opened: bool) -> None:
    """The bias makes the model think until it is stopped."""
    chat_format = tiny.chat_format(TEMPLATE + "<think>\n") if opened else FORMAT
    bias = {TRUE: 90} if opened else {TRUE: 90, THINK: 91}
    fields = {"temperature": 0, "max_tokens": 20, "logit_bias": bias, "frequency_penalty": 2}
    thinking = {"type": "enabled", "budget_tokens": budget}
    free, _ = reply(fields, chat_format=chat_format)
    assert not free.text
    choice, finished = reply({**fields, "thinking": thinking}, chat_format=chat_format)
    words = choice.reasoning.count("true") + choice.reasoning.count("<think>")
    assert words == budget
    assert "true" in choice.text
    assert "</think>" not in choice.text
    assert finished.completion_tokens == 20
    assert (
        reply({**fields, "thinking": {**thinking, "type": "disabled"}}, chat_format=chat_format)[0]
        == free
    )


def test_a_reply_without_thinking_has_no_use_for_a_budget() -> None:
    fields = {"temperature": 0, "max_tokens": 20}
    budget = {"thinking": {"type": "enabled", "budget_tokens": 3}}
    assert reply({**fields, **budget})[0] == reply(fields)[0]


def test_a_final_message_is_continued_with_the_text_that_follows() -> None:
    fields = {"temperature": 0, "max_tokens": 12, "logprobs": True, "ignore_eos": True}
    begun = [*HI, {"role": "assistant", "content": "x"}]
    continued, _ = reply({**fields, "continue_final_message": True}, begun)
    prompt = FORMAT.encode(HI) + FORMAT.encode_text("x")
    assert written(continued) == generated(prompt, max_new_tokens=12, eos_token_id=None)
    answered, _ = reply(fields, begun)
    assert written(answered) != written(continued)


@pytest.mark.parametrize(
    ("message", "thinks"),
    [
        ({"content": "<think>\nSo"}, True),
        ({"content": "<think>\nSo</think>4"}, False),
        ({"content": "4"}, False),
        ({"content": "", "reasoning_content": "So"}, True),
    ],
    ids=["in a thought", "after it", "no thought", "as reasoning"],
)
def test_a_continued_thought_is_reasoning(message: dict[str, Any], thinks: bool) -> None:
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}")
    chat = [*HI, {"role": "assistant", **message}]
    fields = {"logit_bias": biased(TRUE), "max_tokens": 3, "continue_final_message": True}
    choice, _ = reply(fields, chat, chat_format=tiny.chat_format(template))
    assert (choice.reasoning, choice.text) == (("true" * 3, "") if thinks else ("", "true" * 3))


DEFAULTS = {"temperature": 0.7, "top_p": 0.8, "top_k": 3, "repetition_penalty": 1.2}


def test_a_request_that_sets_no_sampling_gets_the_models_own() -> None:
    fields = {"seed": 4, "max_tokens": 30, "logit_bias": {tiny.END: -100}}
    by_default, _ = reply(fields, defaults=DEFAULTS)
    assert by_default == reply({**fields, **DEFAULTS})[0]
    assert by_default != reply(fields)[0]


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_request_sets_stays(name: str) -> None:
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    fields = {"seed": 4, "max_tokens": 30, "logit_bias": {tiny.END: -100}, name: neutral[name]}
    expected, _ = reply({**fields, **DEFAULTS, name: neutral[name]})
    assert reply(fields, defaults=DEFAULTS)[0] == expected


def test_the_defaults_are_those_of_the_models_folder(tmp_path: Path) -> None:
    model = tiny.model()
    model.generation_config.update(do_sample=True, temperature=0.5, top_k=50, max_new_tokens=7)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    spec = models.ModelSpec(path=str(tmp_path), device="cpu", threads=1)
    assert models.start(spec)._defaults == {"temperature": 0.5, "top_k": 50}
    off = spec.model_copy(update={"sampling_defaults": "none"})
    assert models.start(off)._defaults == {}


def test_the_embedded_model_recommends_no_sampling(loaded: models.LoadedModel) -> None:
    assert sampling_defaults(loaded.model.generation_config) == {}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


DEEP = 5000
SCHEMA = {"type": "json_schema", "json_schema": {"schema": nested(DEEP)}}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": nested(DEEP)},
        {"chat_template_kwargs": nested(DEEP)},
        {"response_format": SCHEMA},
    ],
    ids=["a number", "variables", "schema"],
)
def test_fields_that_are_nested_too_deeply_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestRejected):
        parse_request(HI, fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {f"a{token}": 1 for token in range(10_000)}},
        {"logit_bias": {str(token): 1000 for token in range(10_000)}},
        {"modalities": ["audio"] * 10_000},
        {f"field{number}": 1 for number in range(10_000)},
        {"chat_template_kwargs": {f"v{number}": 1 for number in range(10_000)}},
        {"optillm_decoding": {"deepconf": {f"setting{number}": 1 for number in range(10_000)}}},
    ],
    ids=["token", "bias", "modality", "field", "variable", "setting"],
)
def test_of_thousands_of_wrong_values_few_become_errors(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs microseconds of the event loop."""
    counts: list[int] = []
    reject = request._rejection

    def counted(exc: ValidationError) -> RequestRejected:
        counts.append(exc.error_count())
        return reject(exc)

    monkeypatch.setattr(request, "_rejection", counted)
    with pytest.raises(RequestRejected):
        parse_request(HI, fields)
    assert sum(counts) <= 2000


def test_biases_for_a_whole_vocabulary_are_kept() -> None:
    biases = {str(token): -100.0 for token in range(3000)}
    kept = parse_request(HI, {"logit_bias": biases}).logit_bias
    assert kept == dict.fromkeys(range(3000), -100.0)


@pytest.mark.parametrize("name", ["temperature", "\ud83d"], ids=["value", "name"])
def test_half_a_surrogate_pair_is_named_in_text_that_can_be_sent(name: str) -> None:
    with pytest.raises(RequestRejected) as refusal:
        parse_request(HI, {name: "\ud83d"})
    assert "\\ud83d" in str(refusal.value).encode().decode()
    assert refusal.value.param is not None
    refusal.value.param.encode()
