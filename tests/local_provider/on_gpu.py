"""A plugin of pytest that runs tests on a GPU, without LiteLLM and the fixtures that need it.

    python -m pytest --noconftest -p tests.local_provider.on_gpu \
        tests/local_provider/test_exactness.py tests/local_provider/test_gpu_kernels.py
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def _on_gpu() -> Iterator[None]:
    """Models and tensors that name no device are made on the GPU."""
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)
