"""What may import what, who may start tasks or read the environment, and what loading costs."""

import ast
import compileall
import json
import os
import subprocess
import sys
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
EVERY = pytest.mark.parametrize("module", MODULES)

LAYERS = [
    {"types"},
    {"errors", "machine", "packages", "config_files", "wrong_values"},
    {"answers", "search", "sandbox", "llm", "prompts", "pauses", "embedded_model"},
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


@EVERY
def test_imports_go_one_way(module: str) -> None:
    here = top(module)
    assert here in RANKS, f"say in LAYERS where {here} stands"
    wrong = {name for name in own_imports(module) if RANKS[name] >= RANKS[here] and name != here}
    assert not wrong


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


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("approaches.")])
def test_an_approach_is_one_file(module: str) -> None:
    others = {
        name for name in imports(MODULES[module]) if name.startswith("optillm_hooks.approaches")
    }
    assert not others


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


@EVERY
def test_only_the_gateway_and_the_local_handler_import_litellm(module: str) -> None:
    may = top(module) == "gateway" or module == "local_provider.custom_llm"
    assert may or "litellm" not in foreign_imports(module)


@EVERY
def test_only_the_local_provider_imports_torch(module: str) -> None:
    may = top(module) == "local_provider"
    assert may or not {"torch", "transformers"} & foreign_imports(module)


@EVERY
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    """Of the solver, the store and the local provider, what a process or a first use loads."""
    if top(module) in ("solver", "local_provider", "store"):
        return
    at_once = [n for n in MODULES[module].body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not {name.split(".")[0] for node in at_once for name in imports(node)} & set(HEAVY)


@EVERY
def test_only_the_settings_read_the_environment(module: str) -> None:
    # `serve` and the demonstration pass it to a proxy, the commands read what OptiLLM reads.
    may = ("settings", "serve", "evaluation.own_proxy", "commands.convert", "commands.loading")
    if module in may:
        return
    found = [
        node
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    ]
    assert not found
    assert not {"os.environ", "os.environb", "os.getenv"} & set(imports(MODULES[module]))


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


@EVERY
def test_only_the_fanout_starts_tasks(module: str) -> None:
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Attribute):
            of_asyncio = isinstance(node.value, ast.Name) and node.value.id == "asyncio"
            if node.attr in STARTERS or (of_asyncio and node.attr in OF_ASYNCIO):
                found.add(node.attr)
    found |= {
        name.removeprefix("asyncio.")
        for name in imports(MODULES[module])
        if name.removeprefix("asyncio.") in STARTERS | OF_ASYNCIO
    }
    assert found <= ALLOWED.get(module, set())


@EVERY
def test_nothing_sleeps_or_evaluates(module: str) -> None:
    """No code out of a model's mouth but in the sandbox, and no blocking of the event loop."""
    if module == "code_execution.harness":
        return
    names = {
        node.func.id
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not names & {"eval", "exec", "compile", "__import__"}
    assert (
        "time.sleep"
        not in {
            ast.unparse(node.func)
            for node in ast.walk(MODULES[module])
            if isinstance(node, ast.Call)
        }
        or module == "serve"
    )


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

    Both are compiled before, as what pip installs is. The share is about 0.05. Other processes can
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
    while len(shares) < 3 and min(shares, default=1.0) >= 0.06:
        found = loaded(script)
        assert found["heavy"] == []
        assert isinstance(found["share"], float)
        shares.append(found["share"])
    assert min(shares) < 0.06


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
