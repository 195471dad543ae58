"""The table of architectures in the documentation says what happens.

Those in the batch are also tested in `test_architectures`, those row by row in `test_row_runner`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.model_spec import ModelSpec
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.runners import runner_of
from tests.local_provider.architectures import PAGE, with_table
from tests.local_provider.families import NO_DECODERS, REFUSED, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_table_is_current() -> None:
    """If not: `python -m tests.local_provider.architectures`."""
    page = PAGE.read_text()
    assert with_table(page) == page


def test_a_granite_4_model_without_mamba_layers_is_batched() -> None:
    model = tiny_model("granitemoehybrid", layer_types=["attention"] * 2)
    assert isinstance(runner_of(model), Runner)


@pytest.mark.parametrize(("family", "reason"), [(f, r) for f, (_, r) in REFUSED.items()])
def test_a_family_is_refused_in_one_sentence(family: str, reason: str) -> None:
    with pytest.raises(ProviderFailed, match=f"{family} models are not supported: {reason}$"):
        runner_of(tiny_model(family))


@pytest.mark.parametrize(("kind", "reason"), [(k, r) for k, (_, r) in NO_DECODERS.items()])
@pytest.mark.parametrize("asks", [models.weight_bytes, models.load], ids=["weight_bytes", "load"])
def test_a_folder_without_a_decoder_is_refused_in_one_sentence(
    tmp_path: Path, kind: str, reason: str, asks: Callable[[ModelSpec], object]
) -> None:
    CONFIG_MAPPING[kind](**NO_DECODERS[kind][0]).save_pretrained(tmp_path)
    spec = models.find("mine", {"path": str(tmp_path), "device": "cpu"})
    with pytest.raises(ProviderFailed, match=f"^{kind} models are not supported: {reason}$"):
        asks(spec)
