"""A problem of the configuration, and the words for it."""

import logging
from typing import NamedTuple


class Problem(NamedTuple):
    """Something that is wrong in the proxy's YAML."""

    path: str
    """Its place, such as `model_list[2].litellm_params.model`."""

    text: str
    """What is wrong, and what to write instead. It holds no key and no password."""

    level: int = logging.ERROR
    """That of the log line: a warning, if it may not be a mistake."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"
