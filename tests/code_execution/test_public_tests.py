"""Tests in a request, and the program in a reply."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.code_execution.public_tests import (
    MAX_CHARACTERS,
    MAX_TESTS,
    CallTest,
    InputTest,
    PublicTests,
    read_program,
    read_tests,
)

PRINTED = "_shown = ({})\nif _shown is not None:\n    print(repr(_shown))"


@pytest.mark.parametrize(
    ("request_text", "calls", "inputs"),
    [
        pytest.param("Write a poem of f(2) lines.", [], [], id="none"),
        pytest.param(
            "def f(x):\n    '''Square.\n\n    >>> f(2)\n    4\n"
            "    >>> y = f(3)\n    >>> y\n    9\n    '''",
            [
                CallTest(PRINTED.format("f(2)"), "4\n"),
                CallTest("y = f(3)\n"),
                CallTest(PRINTED.format("y"), "9\n"),
            ],
            [],
            id="an interpreter's session in a docstring",
        ),
        pytest.param(
            "Negative numbers fail:\n>>> f(-1)\nTraceback (most recent call last):\n"
            "  ...\nValueError: no\n\nThat is all.",
            [CallTest(PRINTED.format("f(-1)"), raises="ValueError: no")],
            [],
            id="an exception that is wanted",
        ),
        pytest.param(">>>f(1)\n2", [], [], id="no interpreter's session"),
        pytest.param(
            "Your code must pass:\nassert f(2) == 4\n  assert f('a')\nassert that it is good",
            [CallTest("assert f(2) == 4"), CallTest("assert f('a')")],
            [],
            id="assertions, of which one is prose",
        ),
        pytest.param(
            "Sample Input 1\n```\n3\n4 5\n```\nSample Output 1\n```\n9\n```\n\n"
            "**Input:**\n1 2\n\n**Output:**\n3\n",
            [],
            [InputTest("3\n4 5", "9"), InputTest("1 2", "3")],
            id="input and output, fenced and not",
        ),
        pytest.param("The input is a number and the output is text.", [], [], id="prose"),
    ],
)
def test_the_tests_of_a_request(
    request_text: str, calls: list[CallTest], inputs: list[InputTest]
) -> None:
    assert read_tests(request_text) == PublicTests(calls, inputs)


@given(st.text(alphabet=st.sampled_from(">>> \ninput:OUTPUT`assert()='12f\t"), max_size=200))
def test_any_text_has_at_most_so_many_tests(text: str) -> None:
    tests = read_tests(text * 20)
    assert max(len(tests.calls), len(tests.inputs)) <= MAX_TESTS
    for test in tests.calls:
        assert test.snippet.strip()


PROGRAM = "def f(x):\n    return x * x\n"


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        pytest.param(f"Here it is:\n```python\n{PROGRAM}```\nDone.", PROGRAM, id="a block"),
        pytest.param(f"```py\nf(1)\n```\n```python3\n{PROGRAM}```", PROGRAM, id="the longest"),
        pytest.param(
            f"```python3\n{PROGRAM}```\n```py\nf(1)\n```", PROGRAM, id="the longest, not the last"
        ),
        pytest.param(f"```\n{PROGRAM}```", PROGRAM, id="a block without a language"),
        pytest.param(f"```java\nint f;\n```\n```\n{PROGRAM}```", PROGRAM, id="another language"),
        pytest.param(f"```python\n{PROGRAM}", PROGRAM, id="a block that is cut off"),
        pytest.param(PROGRAM, PROGRAM, id="nothing but a program"),
        pytest.param("Forty-two.\nThat is it.", None, id="prose"),
        pytest.param("42", None, id="a single line"),
        pytest.param("```json\n{}\n```", None, id="no Python at all"),
        pytest.param(f"```python\n{'x' * MAX_CHARACTERS}\n```", None, id="too long to read"),
    ],
)
def test_the_program_in_a_reply(reply: str, program: str | None) -> None:
    assert read_program(reply) == program


@given(st.text(max_size=300))
def test_a_program_is_part_of_its_reply(reply: str) -> None:
    program = read_program(reply)
    assert program is None or program in reply
    if program == reply:
        ast.parse(program.strip())
