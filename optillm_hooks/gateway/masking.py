"""Masking of credentials in texts of providers, which errors pass on to clients.

LiteLLM's proxy masks some forms in what it sends; from Python it does not, and it knows fewer.
"""

import re
from typing import Final

from optillm_hooks.privacy.keys import PREFIXES

MASK: Final = "[key]"

_NAMED: Final = r"""["']?\s{0,4}[:=]\s{0,4}["']?"""
"""What stands between the name of a credential and its value."""

_VALUE: Final = r"(?:(?=[\w.*~+/=%-]{0,64}[\d*])[\w.*~+/=%-]{6,}|[\w.*~+/=%-]{20,})(?<!\.)"
"""A credential by its looks: with a digit or partly masked, or long. Words are neither."""

_SCHEMES: Final = (
    rf"(?i:bearer\s{{1,4}}{_VALUE})",
    rf"(?i:authorization{_NAMED})(?:\w{{1,20}}\s{{1,4}})?{_VALUE}",
    rf"(?i:authorization{_NAMED}basic\s{{1,4}})(?=[a-z+/]{{0,64}}[A-Z=])[\w+/=]{{6,}}",
    rf"(?i:(?:\w{{1,16}}[-_])?(?:(?:api|subscription)[-_ ]?key|(?:client|api|access)[-_ ]secret"
    rf"|secret[-_ ](?:access[-_ ])?key|(?:access|auth|session)[-_ ]token|password)"
    rf"{_NAMED}{_VALUE})",
    rf"key={_VALUE}",
    rf"(?<=key provided: ){_VALUE}",
)
_IN_URLS: Final = (
    r"(?<=[?&])(?i:(?:api[-_]?|subscription-)?key|sig|token|auth|secret|password"
    r"|\w{0,16}_(?:token|secret)|x-amz-(?:signature|credential|security-token))=[^\s&'\"]{4,}",
    r"(?<=://)[^\s/@:]{0,256}:[^\s/@]{1,256}(?=@)",  # user:password
)
_IDENTIFIER: Final = (
    r"""(?P<kept>(?i:id|trace|request|digest|hash|fingerprint|sha256)["']?\s{0,2}[:=#]?\s{0,2}"""
    r"""["'(]?[A-Za-z0-9]{32,})"""
)
_OPAQUE: Final = r"(?=[A-Za-z]{0,64}\d)(?=\d{0,64}[A-Za-z])[A-Za-z0-9]{32,}[\w+/=-]*"
"""A long run of digits and letters, such as keys of Azure, Mistral, Cohere and Together."""

_CREDENTIAL: Final = re.compile(
    "|".join(
        [
            *_IN_URLS,
            rf"(?<![\w-])(?:{'|'.join([*PREFIXES, *_SCHEMES])})",
            rf"(?<![A-Za-z0-9]){_IDENTIFIER}",
            rf"(?<![\w-]){_OPAQUE}",
        ]
    )
)


def mask_credentials(text: str) -> str:
    """Return `text` with `MASK` in place of each credential, by the forms of known providers.

    Long random texts count as credentials too, unless they are named as the id of something.
    """
    return _CREDENTIAL.sub(lambda found: found["kept"] or MASK, text)
