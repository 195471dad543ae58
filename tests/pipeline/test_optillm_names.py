"""Names of OptiLLM's that mean nothing here: none of them is ours too, and each has a hint."""

import pytest

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.pipeline import optillm_names
from optillm_hooks.pipeline.optillm_names import FIELDS, PLUGINS, unknown_approach
from optillm_hooks.registry import all_approaches, get_approach

NAMES = [approach.name for approach in all_approaches()]
READ = {field for approach in all_approaches() for field in approach.params.request_fields()}


DOCUMENTED: dict[str, dict[str, object]] = {
    "compact": {
        "compact_context_window": 128_000, "compact_threshold": 0.75, "compact_keep_recent": 4,
    },
    "deep_research": {"max_iterations": 5, "max_sources": 30},
    "deepthink": {
        "deepthink_samples": 3, "confidence_threshold": 0.7, "enable_self_discover": True,
        "reasoning_modules_limit": 7,
    },
    "genselect": {
        "num_candidates": 4, "comparison_temperature": 0.3, "comparison_mode": "batch",
        "include_reasoning": False,
    },
    "majority_voting": {"k": 6},
    "spl": {"spl_learning": True},
    "web_search": {"num_results": 10, "delay_seconds": 8, "headless": True},
}  # fmt: skip
"""The body fields of OptiLLM's plugins, with its defaults; those of any call (`timeout`) are left
out."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_fields_of_a_plugin_work(name: str) -> None:
    params = get_approach(name).params
    names = params.request_fields()
    sent = DOCUMENTED[name]
    assert names.keys() >= sent.keys()
    made = params.model_validate({names[field]: value for field, value in sent.items()})
    for field, value in sent.items():
        if field in params.body_fields:
            assert getattr(made, names[field]) == value


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
