"""Names of OptiLLM's that mean nothing here: none of them is ours too, and each has a hint."""

import pytest

from optillm_hooks.pipeline import optillm_names
from optillm_hooks.pipeline.optillm_names import FIELDS, PLUGINS, unknown_approach
from optillm_hooks.registry import all_approaches

NAMES = [approach.name for approach in all_approaches()]
READ = {field for approach in all_approaches() for field in approach.params.request_fields()}


def test_a_hint_goes_when_an_approach_of_its_name_comes() -> None:
    assert not set(PLUGINS) & set(NAMES)
    assert not set(FIELDS) & READ


def test_an_approach_reads_every_field_that_providers_share_with_it() -> None:
    assert optillm_names._SHARED <= READ


@pytest.mark.parametrize("name", PLUGINS)
def test_the_message_about_a_plugin_says_what_to_use(name: str) -> None:
    assert unknown_approach(name).endswith(f"does not exist here: {PLUGINS[name]}")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("mcst", "mcts"), ("Bon", "bon"), ("self-consistency", "self_consistency"), ("RE2", "re2")],
)
def test_a_near_miss_is_recognised(written: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in unknown_approach(written)


def test_the_message_about_another_name_lists_all() -> None:
    assert unknown_approach("xyzzy") == f"unknown approach 'xyzzy'; known: {', '.join(NAMES)}"
