"""The forms of well-known credentials, as parts of regular expressions."""

from typing import Final

PREFIXES: Final = (
    r"sk-(?=[\w.*-]{0,64}[\d*]|[\w.*-]{12})[\w.*-]{4,}(?<!\.)",  # OpenAI, Anthropic, LiteLLM, ...
    r"(?:gsk_|hf_|xai-|pplx-|nvapi-|csk-|fw_|r8_|tgp_v1_|gh[oprsu]_)"
    r"(?:[\w-]{20,}|\w{2,12}\*+\w*)",  # Groq, Hugging Face, xAI, Perplexity, GitHub, ...
    r"github_pat_\w{20,}",
    r"AIza[\w-]{20,}",  # Google
    r"AQ\.[\w-]{20,}",
    r"ya29\.[\w.-]{8,}(?<!\.)",
    r"A(?:KIA|SIA)[A-Z0-9]{12,}",  # AWS
    r"ABSK[\w+/=]{20,}",
    r"eyJ[\w-]{8,}(?:\.[\w-]+){1,4}",  # a JSON web token
    r"xox[a-z]-[\w-]{8,}",  # Slack
    r"xapp-[\w-]{8,}",
    r"dapi[0-9a-f]{32}",  # Databricks
    r"[rsp]k_(?:live|test)_\w{16,}",  # Stripe
    r"glpat-[\w-]{20,}",  # GitLab
    r"npm_\w{36,}",
    r"pypi-[\w-]{32,}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
)
