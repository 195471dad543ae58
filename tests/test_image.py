"""The image's processes: what is process 1, and who runs the proxy."""

import json
import re

from tests.proxy import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_process_1_is_an_init_that_the_image_installs() -> None:
    """Process 1 inherits what a killed zygote leaves, and `litellm` would never reap it."""
    [entrypoint] = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    init, separator, *command = json.loads(entrypoint)
    assert (init, separator, command[0]) == ("tini", "--", "litellm")
    assert re.search(rf"apt-get install .*\b{init}\b", DOCKERFILE)


def test_the_proxy_runs_without_privileges() -> None:
    users = re.findall(r"^(?:FROM|USER) .+$", DOCKERFILE, re.MULTILINE)
    last = [user for user, then in zip(users, [*users[1:], "FROM"], strict=True) if "FROM" in then]
    assert last == ["USER 10001"] * 2
