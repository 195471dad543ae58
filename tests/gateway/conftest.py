"""The whole product from outside: a real proxy, a real client, a scripted provider."""

from collections.abc import Iterator

import anthropic
import openai
import pytest

from tests.gateway.shared import STOCK_KEYS, shared_config
from tests.proxy import Proxy, model_group, plain_config
from tests.upstream import Script, Upstream


@pytest.fixture(scope="package")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def plain_script(upstream: Upstream) -> None:
    """Let the provider answer at once, whatever the module before has told it to do."""
    upstream.play(Script())


@pytest.fixture(scope="package")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """The shared proxy; modules that need other keys or settings start their own."""
    with Proxy(shared_config(upstream), tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with proxy.openai() as made:
        yield made


@pytest.fixture(scope="module")
def claude(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=proxy.url, api_key=proxy.master_key, max_retries=0, timeout=60
    ) as made:
        yield made


@pytest.fixture(scope="package")
def stock(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """A proxy without our hook, with the virtual keys `STOCK_KEYS`."""
    models = [model_group(name, upstream.url) for name in ("base", "other")]
    folder = tmp_path_factory.mktemp("stock")
    with Proxy(plain_config(models), folder, keys=STOCK_KEYS) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_alive(upstream: Upstream) -> Iterator[None]:
    """Check after every test that no call to the provider is still running."""
    yield
    upstream.wait_until_idle()
