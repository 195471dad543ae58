"""Refusals of sampling fields, in the words of real providers."""

import pytest

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway.refusals import Refusals, refused_fields, refuses_n
from optillm_hooks.types import Sampling

BOTH = Sampling(temperature=0.7, top_p=0.9)
THINKS = Sampling(temperature=0.7, fields={"thinking": {"type": "enabled", "budget_tokens": 2048}})
SCHEMA = Sampling(fields={"response_format": {"type": "json_schema", "json_schema": {}}})
EFFORT = Sampling(temperature=0.7, fields={"reasoning_effort": "high"})


@pytest.mark.parametrize(
    ("sampling", "message", "refused"),
    [
        (
            BOTH,
            "OpenAIException - Unsupported value: 'temperature' does not support 0.7 with this "
            "model. Only the default (1) value is supported.",
            {"temperature"},
        ),
        (
            BOTH,
            "AzureException - Unsupported parameter: 'top_p' is not supported with this model.",
            {"top_p"},
        ),
        (
            BOTH,
            'AnthropicException - {"type":"error","error":{"type":"invalid_request_error",'
            '"message":'
            '"`temperature` and `top_p` cannot both be specified for this model. Please use only '
            'one."},"request_id":"req_011"}',
            {"temperature", "top_p"},
        ),
        (
            BOTH,
            'BedrockException - {"message":"The model returned the following errors: `temperature` '
            'and `top_p` cannot both be specified for this model. Please use only one."}',
            {"temperature", "top_p"},
        ),
        (
            BOTH,
            'AnthropicException - {"type":"error","error":{"type":"invalid_request_error",'
            '"message":'
            '"`temperature` is deprecated for this model."}}',
            {"temperature"},
        ),
        (
            BOTH,
            "The model returned the following errors: temperature is deprecated for this model.",
            {"temperature"},
        ),
        (BOTH, "temperature: Extra inputs are not permitted", {"temperature"}),
        (
            Sampling(temperature=0.1, fields={"tools": [], "tool_choice": "none"}),
            "DeepseekException - deepseek-reasoner does not support this tool_choice",
            {"tool_choice"},
        ),
        (
            THINKS,
            "`temperature` may only be set to 1 when thinking is enabled. Please consult our "
            "documentation at https://docs.anthropic.com/en/docs/build-with-claude/...",
            {"temperature", "thinking"},
        ),
        (
            EFFORT,
            "`temperature` may only be set to 1 when thinking is enabled.",
            {"temperature", "reasoning_effort"},
        ),
        (
            BOTH,
            "MoonshotException - invalid temperature: only 1 is allowed for this model",
            {"temperature"},
        ),
        (
            EFFORT,
            "OpenAIException - Unrecognized request argument supplied: reasoning_effort",
            {"reasoning_effort"},
        ),
        (
            BOTH,
            "BedrockException - topP: Input should be less than or equal to 1",
            {"top_p", "top_p=0.9"},
        ),
        (
            Sampling(temperature=1.5),
            "temperature: Input should be less than or equal to 1",
            {"temperature", "temperature=1.5"},
        ),
        (
            SCHEMA,
            "DeepseekException - This response_format type is unavailable now",
            {"response_format", "response_format=json_schema"},
        ),
        (
            SCHEMA,
            "OpenAIException - Invalid schema for response_format 'Note': 'required' is required",
            {"response_format", "response_format=json_schema"},
        ),
        (
            SCHEMA,
            "GroqException - Failed to generate JSON. See 'failed_generation' for more details.",
            {"response_format", "response_format=json_schema"},
        ),
        (
            SCHEMA,
            "VertexAIException - The specified schema produces a constraint that has too many "
            "states for serving.",
            {"response_format", "response_format=json_schema"},
        ),
        (SCHEMA, "This model's maximum context length is 8192 tokens", set()),
        (BOTH, "messages: text content blocks must be non-empty", set()),
        (BOTH, "This model's maximum context length is 8192 tokens", set()),
        (Sampling(), "`temperature` is deprecated for this model.", set()),
    ],
)
def test_real_refusals(sampling: Sampling, message: str, refused: set[str]) -> None:
    assert refused_fields(ProviderFailed(message, status=400), sampling) == refused


@pytest.mark.parametrize("status", [401, 429, 500])
def test_other_failures_refuse_nothing(status: int) -> None:
    error = ProviderFailed("`temperature` is deprecated for this model.", status=status)
    assert refused_fields(error, BOTH) == frozenset()


def test_a_refusal_holds_for_its_fields_together_and_for_its_model() -> None:
    known = Refusals()
    known.add("x", frozenset({"temperature", "top_p"}))
    assert not known.takes("x", BOTH)
    assert known.takes("x", Sampling(temperature=0.7))
    assert known.takes("y", BOTH)


def test_a_refused_value_says_nothing_about_others() -> None:
    known = Refusals()
    known.add("x", frozenset({"temperature", "temperature=1.5"}))
    assert not known.takes("x", Sampling(temperature=1.5))
    assert known.takes("x", Sampling(temperature=0.7))


def test_the_refusals_are_bounded() -> None:
    known = Refusals()
    known.add("first", frozenset({"temperature"}))
    for number in range(1000):
        known.add(f"model-{number}", frozenset({"temperature"}))
    assert known.takes("first", BOTH)
    assert not known.takes("model-999", BOTH)


@pytest.mark.parametrize(
    ("message", "refuses"),
    [
        ("n must be 1", True),
        ("Invalid value for 'n': must be 1", True),
        ('GroqException - {"error":{"message":"\'n\' : number must be at most 1"}}', True),
        ("Multiple completions are not supported by this model", True),
        ("Multiple candidates is not enabled for this model: candidateCount must be 1", True),
        ("Multiple candidates is not enabled for this model", True),
        ("Only one candidate can be specified in the current model", True),
        ("Only one completion choice is allowed", True),
        ("invalid n: only 1 is allowed for this model", True),
        ("Invalid n value (currently only n = 1 is supported)", True),
        ("Argument not supported on this model: n", True),
        ("Unrecognized request argument n", True),
        ("Invalid parameter: n must be between 1 and 1", True),
        ("不支持参数n", True),
        ("In the messages, content must be non-empty", False),
        ("Only one system message is allowed", False),
        ("invalid name: only letters are allowed", False),
        ("Argument not supported on this model: stop", False),
        ("Only one tool may be forced", False),
        ("max_tokens must be greater than 0", False),
    ],
)
def test_refusals_of_several_choices(message: str, *, refuses: bool) -> None:
    assert refuses_n(ProviderFailed(message, status=400)) is refuses
    assert not refuses_n(ProviderFailed(message, status=500))
