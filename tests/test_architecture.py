"""What may import what, who may start tasks or read the environment, and what loading costs."""

import ast
import compileall
import json
import os
import subprocess
import sys
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter

import pytest
import yaml
from litellm.proxy.types_utils.utils import get_instance_fn

from optillm_hooks import gateway, local_provider
from optillm_hooks.registry import all_approaches
from scripts.imports import (
    MODULES,
    PACKAGE,
    TOPS,
    imported_modules,
    imports,
    modules_in_strings,
    own_imports,
    top,
    used_names,
)

CONFIG = PACKAGE.parent / "litellm_config.yaml"

LAYERS = [
    {"types"},
    {"errors", "machine", "packages", "config_files", "wrong_values"},
    {
        "answers",
        "search",
        "sandbox",
        "llm",
        "messages",
        "prompts",
        "pauses",
        "embedded_model",
        "policies",
    },
    {
        "solver",
        "code_execution",
        "trace",
        "budget",
        "caller_cache",
        "own_fields",
        "retrieval",
        "store",
    },
    {"services"},
    {"context", "web"},
    {"reading"},
    {"answer_format", "registry", "fanout", "final_answer", "merging"},
    {
        "approach_docs",
        "decoding",
        "judging",
        "privacy",
        "programs",
        "settings",
        "structured",
        "tools",
    },
    {"long_context", "waves"},
    {"research", "verifiers"},
    {"approaches", "local_provider", "plugin_files"},
    {"pipeline", "testing", "extensions"},
    {"gateway", "converters", "serve", "__init__"},
    {"evaluation"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""A module imports from layers before its own, and from its own package."""

RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = (
    "torch", "transformers", "z3", "sympy", "phonenumbers", "stdnum", "spacy", "presidio_analyzer",
    "pydantic_monty", "trafilatura", "pypdf", "lxml",
    "sqlalchemy", "psycopg",
)  # fmt: skip


def foreign_imports(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(MODULES[module])}


def offenders(found: Callable[[str], set[str]]) -> dict[str, set[str]]:
    """Return what is found in modules where nothing should be."""
    return {module: names for module in MODULES if (names := found(module))}


def test_imports_go_one_way() -> None:
    def upwards(module: str) -> set[str]:
        here = top(module)
        assert here in RANKS, f"say in LAYERS where {here} stands"
        return {name for name in own_imports(module) if RANKS[name] >= RANKS[here] and name != here}

    assert not offenders(upwards)


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports within functions, for type checkers and by a string count too."""
    graph = {module: imported_modules(module) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(f"an import circle: {' <- '.join(circle.args[1])}")


def test_a_string_that_names_a_module_is_an_import() -> None:
    """A worker's script is text: the sandbox once ran a module of a layer above it so."""
    script = ast.parse(
        '"""See optillm_hooks.gateway."""\nRUN = "from optillm_hooks.solver.x import y"'
    )
    assert list(modules_in_strings(script)) == ["optillm_hooks.solver.x"]


def test_every_layer_has_its_modules() -> None:
    assert set(RANKS) == TOPS


def test_an_approach_is_one_file() -> None:
    def others(module: str) -> set[str]:
        if not module.startswith("approaches."):
            return set()
        names = imports(MODULES[module])
        return {name for name in names if name.startswith("optillm_hooks.approaches")}

    assert not offenders(others)


RUNNERS = ("runner", "monty", "bubblewrap_runner", "bubblewrap", "harness")
PROGRAMMERS = ("abmcts", "coc", "executecode", "plansearch", "spl", "verified")


def runs_programs(module: str) -> bool:
    """Return whether a module can run a program that a model wrote."""
    of_runner = [*(f"code_execution.{name}" for name in RUNNERS), "verifiers.panel"]
    return not imported_modules(module).isdisjoint(of_runner) or any(
        isinstance(node, ast.Attribute) and node.attr == "code_runner"
        for node in ast.walk(MODULES[module])
    )


def test_an_approach_that_can_run_programs_declares_it() -> None:
    """Or `safe`, which operators trust with tags, would let a stranger's text start a program."""
    can_run = {f"optillm_hooks.{m}" for m in MODULES if top(m) == "approaches" and runs_programs(m)}
    declared = {a.run.__module__ for a in all_approaches() if "code" in a.needs}
    assert can_run == {f"{PACKAGE.name}.approaches.{name}" for name in PROGRAMMERS}
    assert can_run <= declared


LOCAL = {"types", "errors", "machine", "answers", "decoding", "local_provider", "wrong_values"}


def test_the_grammar_knows_no_approach_and_the_local_provider_no_pipeline() -> None:
    assert own_imports("pipeline.expression") == {"errors"}
    for module in MODULES:
        if top(module) == "local_provider":
            assert own_imports(module) <= LOCAL, module
            assert not any(p[1:3] == ["decoding", "remote"] for p in used_names(module)), module


def test_only_the_gateway_and_the_local_handler_import_litellm() -> None:
    importing = offenders(lambda module: {"litellm"} & foreign_imports(module))
    may = {"local_provider.custom_llm"}
    assert {module for module in importing if top(module) != "gateway"} <= may


def test_only_the_local_provider_imports_torch() -> None:
    importing = offenders(lambda module: {"torch", "transformers"} & foreign_imports(module))
    assert {top(module) for module in importing} <= {"local_provider"}


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """Of the solver, the store and the local provider, what a process or a first use loads."""

    def at_once(module: str) -> set[str]:
        nodes = [n for n in MODULES[module].body if isinstance(n, ast.Import | ast.ImportFrom)]
        return {name.split(".")[0] for node in nodes for name in imports(node)} & set(HEAVY)

    assert {top(module) for module in offenders(at_once)} <= {"solver", "local_provider", "store"}


READERS = {"settings", "serve", "evaluation.own_proxy", "commands.convert", "commands.loading"}
"""`serve` and the demonstration pass it to a proxy, the commands read what OptiLLM reads."""


def test_only_the_settings_read_the_environment() -> None:
    def read(module: str) -> set[str]:
        nodes = ast.walk(MODULES[module])
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {name.removeprefix("os.") for name in imports(MODULES[module])}
        return names & {"environ", "environb", "getenv"}

    assert offenders(read).keys() <= READERS


STARTERS = {
    "create_task", "ensure_future", "TaskGroup", "run_coroutine_threadsafe", "new_event_loop",
    "run_until_complete", "to_thread", "run_in_executor",
}  # fmt: skip
OF_ASYNCIO = {"gather", "run", "Runner", "wait_for", "as_completed"}
"""Names that others use too, so that they count only as asyncio's."""

ALLOWED = {
    "fanout": {"create_task", "TaskGroup", "run"},
    # Clients, outside the proxy.
    "evaluation.asking": {"create_task", "TaskGroup", "to_thread"},
    "evaluation.demo": {"create_task", "TaskGroup", "run"},
    "commands.eval": {"run"},
    "gateway.web_access": {"run_in_executor"},  # the resolution of names blocks
    "store.store": {"run_in_executor"},  # so do transactions
}


def test_only_the_fanout_starts_tasks() -> None:
    def started(module: str) -> set[str]:
        found = set()
        for node in ast.walk(MODULES[module]):
            if isinstance(node, ast.Attribute):
                of_asyncio = isinstance(node.value, ast.Name) and node.value.id == "asyncio"
                if node.attr in STARTERS or (of_asyncio and node.attr in OF_ASYNCIO):
                    found.add(node.attr)
        imported = {name.removeprefix("asyncio.") for name in imports(MODULES[module])}
        return (found | imported & (STARTERS | OF_ASYNCIO)) - ALLOWED.get(module, set())

    assert not offenders(started)


def test_nothing_sleeps_or_evaluates() -> None:
    """No code out of a model's mouth but in the sandbox, and no blocking of the event loop."""

    def called(module: str) -> set[str]:
        calls = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        return names & {"eval", "exec", "compile", "__import__", "time.sleep"}

    assert offenders(called).keys() == {"code_execution.harness"}


def loaded(statements: str) -> dict[str, object]:
    """Run `statements` in a new process; return what `print(json.dumps(...))` there says."""
    done = subprocess.run(
        [sys.executable, "-c", statements],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_the_package_loads_no_heavy_one_and_not_litellm() -> None:
    found = loaded(
        "import json, sys, optillm_hooks, optillm_hooks.approaches, optillm_hooks.pipeline.run;"
        f"print(json.dumps({{n: n in sys.modules for n in ('litellm', *{HEAVY!r})}}))"
    )
    assert found == dict.fromkeys(("litellm", *HEAVY), False)


def test_the_proxys_entries_load_no_heavy_package_and_little_time_beyond_litellm() -> None:
    """CPU time as a share of the proxy's own: a slow or a busy machine slows down both.

    Both are compiled before, as what pip installs is. The share is about 0.057. Other processes can
    only add to it, so the least of three measurements counts.
    """
    compileall.compile_dir(PACKAGE, quiet=1)
    theirs = sorted(
        {"litellm.proxy.proxy_server"}
        | {
            node.module
            for tree in MODULES.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            if top(node.module) in ("litellm", "openai", "pydantic", "fastapi", "yaml")
        }
    )
    script = (
        "import json, sys, time; begun = time.process_time();"
        f"import {', '.join(theirs)};"
        "before = set(sys.modules); started = time.process_time();"
        "import optillm_hooks.gateway, optillm_hooks.local_provider;"
        "share = (time.process_time() - started) / (started - begun);"
        f"heavy = [n for n in {HEAVY!r} if n in set(sys.modules) - before];"
        "print(json.dumps({'share': share, 'heavy': heavy}))"
    )
    shares = list[float]()
    while len(shares) < 3 and min(shares, default=1.0) >= 0.08:
        found = loaded(script)
        assert found["heavy"] == []
        assert isinstance(found["share"], float)
        shares.append(found["share"])
    assert min(shares) < 0.08


def names_in_the_config() -> list[str]:
    settings = yaml.safe_load(CONFIG.read_text())["litellm_settings"]
    handlers = [entry["custom_handler"] for entry in settings["custom_provider_map"]]
    return [*handlers, *(name for name in settings["callbacks"] if "." in name)]


def test_the_names_of_the_config_are_the_imported_objects() -> None:
    expected = {
        "optillm_hooks.gateway.hook": gateway.hook,
        "optillm_hooks.gateway.provider": gateway.provider,
        "optillm_hooks.gateway.scorer": gateway.scorer,
        "optillm_hooks.local_provider.provider": local_provider.provider,
    }
    assert set(names_in_the_config()) == set(expected)
    for name, instance in expected.items():
        assert get_instance_fn(name, config_file_path=str(CONFIG)) is instance
        assert get_instance_fn(name) is instance


def test_litellm_finds_the_hook_in_its_own_class() -> None:
    """It skips a callback that merely inherits the method."""
    assert "async_pre_call_hook" in vars(type(gateway.hook))


@pytest.mark.parametrize("package", ["gateway", "local_provider"])
def test_no_module_bears_the_name_of_an_instance(package: str) -> None:
    """Importing it would put the module where the YAML's name expects the instance."""
    taken = {module.split(".")[1] for module in MODULES if module.startswith(f"{package}.")}
    assert not taken & {"hook", "provider"}
