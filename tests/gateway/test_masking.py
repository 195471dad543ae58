"""Credentials in texts of providers are masked; names, numbers and ids that users need are not."""

import time

import pytest

from optillm_hooks.gateway.masking import MASK, mask_credentials

HEX = "f81d4fae7dec11d0a76500a0c91e6bf6"
RANDOM = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"
CREDENTIALS = {
    "OpenAI": "sk-proj-abcdefgh1",
    "OpenAI, of a service account": f"sk-svcacct-{RANDOM}_-x",
    "Anthropic": "sk-ant-api03-AbC_d-1234567890xyz",
    "LiteLLM": "sk-1234",
    "partly masked": "sk-ab***************yz",
    "Azure": HEX,
    "Azure, of 84 characters": RANDOM * 2 + RANDOM[:20],
    "Mistral": RANDOM,
    "Cohere": RANDOM + "12345678",
    "Together": HEX * 2,
    "AWS": "AKIAIOSFODNN7EXAMPLE",
    "AWS, temporary": "ASIAIOSFODNN7EXAMPLE",
    "AWS, secret": "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS Bedrock": "ABSKQmVkcm9ja0FQSUtleS1hYmNkZWY=",
    "Google": "AIzaSyA-1234567890abcdefghijklmnopqrstu",
    "Google, OAuth": "ya29.a0AfH6SMBx-abc",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def",
    "Slack": "xoxb-123456789012-abcdef",
    "Groq": f"gsk_{RANDOM}",
    "Hugging Face": f"hf_{RANDOM}",
    "xAI": f"xai-{RANDOM}",
    "Perplexity": f"pplx-{RANDOM}",
    "NVIDIA": f"nvapi-{RANDOM}_-x",
    "GitHub": f"ghp_{RANDOM}",
    "GitHub, fine-grained": "github_pat_11ABCDEFG0123456789_abcdefg",
    "Databricks": f"dapi{HEX}",
    "Replicate": f"r8_{RANDOM}",
    "a bearer": "Bearer abcdefgh123",
    "a header": "Authorization: Bearer abc12345",
    "a header with a password": "Authorization: Basic dXNlcjpwYXNz",
    "a header of Azure": "api-key: abcd1234",
    "a header of Anthropic": "x-api-key: abcdefgh12",
}


@pytest.mark.parametrize("credential", CREDENTIALS.values(), ids=CREDENTIALS)
@pytest.mark.parametrize(
    "around", ["wrong key {}, check", "{}", "'{}' is not valid.", "a {}\nb", "({})", 'x: "{}"']
)
def test_a_credential_is_masked(credential: str, around: str) -> None:
    assert mask_credentials(around.format(credential)) == around.format(MASK)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "https://x.invalid/v1?key=AIzaSyabcd&alt=sse failed",
            "https://x.invalid/v1?[key]&alt=sse failed",
        ),
        (
            "Incorrect API key provided: other-host-key-SECRETB123456. Look it up.",
            "Incorrect API key provided: [key]. Look it up.",
        ),
        ("https://s.invalid/x?sv=1&sig=aB%2F3=&se=2", "https://s.invalid/x?sv=1&[key]&se=2"),
        ("https://h.invalid/?a=1&access_token=abcd", "https://h.invalid/?a=1&[key]"),
        ("https://user:p4ss@h.invalid/v1", "https://[key]@h.invalid/v1"),
        ("{'Authorization': 'Bearer abc12345', 'a': 1}", "{'[key]', 'a': 1}"),
    ],
    ids=lambda text: text[:30],
)
def test_credentials_in_addresses_and_headers(text: str, shown: str) -> None:
    assert mask_credentials(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        f"request id: {HEX}",
        f"(Request ID {HEX})",
        f'"trace_id":"{HEX}"',
        f"x-request-id={HEX}",
        f"req_{HEX}",
        f"chatcmpl-{RANDOM}",
        f"in organization org-{RANDOM} on tokens per min (TPM): Limit 200000",
        "123e4567-e89b-12d3-a456-426614174000",
        "The model `meta-llama/Meta-Llama-3.1-405B-Instruct-Turbo` does not exist",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "ft:gpt-4o-mini-2024-07-18:acme::AbCdEfGh",
        "pplx-70b-online-chat",
        "hf_transfer and sk-learn are missing",
        "a risk-assessment of the ask-me-anything",
        "api_key: client option must be set",
        "Invalid API key: please check https://platform.openai.com/account/api-keys.",
        "Bearer authentication required",
        "Authorization: Basic authentication failed",
        "max_tokens=1000000000, requested token: 128000",
        "key='messages' is required",
        "donaudampfschifffahrtsgesellschaftskapitaen",
    ],
)
def test_what_a_user_needs_is_shown(text: str) -> None:
    assert mask_credentials(text) == text


UNITS = ["sk-", "Bearer ", "eyJaaaaaaaa.", "id ", "://a", "authorization: ", "a", "a1", "?key"]
UNITS += ["?a_", "password: ", "sk-....", "api key", "AQ.", "a_", "a-", "1", "A", "=", " ", "://a:"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_time_is_linear_in_the_length(unit: str) -> None:
    """Eight times the text takes 8 times as long; of a quadratic pattern, 64 times."""
    short, long = (_seconds(unit, length) for length in (20_000, 160_000))
    assert long < 24 * short + 0.02


def _seconds(unit: str, length: int) -> float:
    text = (unit * length)[:length]
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        mask_credentials(text)
        best = min(best, time.process_time() - started)
    return best
