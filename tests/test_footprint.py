"""What an installation takes, and that the documentation says so, with OptiLLM's names."""

import re

import optillm_hooks.approaches  # noqa: F401 (registers them)
from benchmarks.footprint import dependencies, imported, installed, needed
from optillm_hooks.pipeline.optillm_names import AUTO, PLUGINS
from optillm_hooks.registry import all_approaches
from tests.proxy import ROOT

PAGE = (ROOT / "docs/migrating.md").read_text()
SLUGS = {
    "none", "mcts", "bon", "moa", "rto", "z3", "self_consistency", "pvg", "rstar", "cot_reflection",
    "plansearch", "leap", "re2", "cepo", "mars", "auto",
    "cot_decoding", "entropy_decoding", "thinkdeeper", "autothink", "deepconf",
    "memory", "privacy", "json", "executecode", "coc", "deep_research", "deepthink", "mcp",
    "router", "spl", "longcepo", "majority_voting", "genselect", "readurls", "web_search",
    "compact", "proxy",
}  # fmt: skip
"""Everything that OptiLLM 0.4.0 takes as an approach or a decoding method."""


def test_the_readme_has_every_name_of_optillm() -> None:
    table = PAGE.partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= SLUGS


def test_every_name_of_optillm_works_or_says_what_takes_its_place() -> None:
    assert {approach.name for approach in all_approaches()} | PLUGINS.keys() | {AUTO} >= SLUGS


def test_the_default_installation_has_nothing_heavy() -> None:
    found = needed(dependencies())
    assert "litellm" in found
    heavy = {"torch", "transformers", "selenium", "spacy", "scikit-learn", "outlines", "z3-solver"}
    assert not heavy & found.keys()


def test_the_size_in_the_readme_is_about_right() -> None:
    said = re.search(r"has (\d+) distributions, (\d+) MB", PAGE)
    assert said
    size = installed(dependencies())
    assert abs(size.distributions - int(said[1])) <= 10
    assert abs(size.megabytes - int(said[2])) <= 100


def test_importing_the_package_takes_less_than_a_second() -> None:
    assert imported("import optillm_hooks.approaches", runs=1).seconds < 1.0
