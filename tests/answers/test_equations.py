"""What a short request asks for, and which solutions an answer gives."""

import pytest

from optillm_hooks.answers.equations import count_solved, read_posed


@pytest.mark.parametrize(
    ("request_text", "variables"),
    [
        ("6 * 7?", []),
        ("What is 12*34+5?", []),
        ("12 \u00d7 34 = ?", []),
        ("Calculate $\\frac{1}{2} + \\frac{1}{3}$.", []),
        ("Was ist 12 * 34?", []),
        ("Compute 7!", []),
        ("Solve x^2 - 5x + 6 = 0.", ["x"]),
        ("Solve for x: 2x + 3 = 7", ["x"]),
        ("If 2y = 10, what is y?", ["y"]),
        ("L\u00f6se die Gleichung x^2 = 2", ["x"]),
        ("\u89e3\u65b9\u7a0b x^2 = 4", ["x"]),
        ("x + y = 5 and x - y = 1. Find x and y.", ["x", "y"]),
    ],
)
def test_requests_that_are_read(request_text: str, variables: list[str]) -> None:
    posed = read_posed(request_text)
    assert posed is not None
    assert posed.variables == variables


@pytest.mark.parametrize(
    "request_text",
    [
        "How many solutions does x^2 = 9 have?",
        "What is the sum of the roots of x^2 - 5x + 6 = 0? Explain.",
        "Solve x + 2 = 5 and then add 7.",
        "I have 3 + 4 apples. How many pears?",
        "What is 3/4?",
        "2024-01-05?",
        "E = mc^2",
        "x + y = 5",
        "Solve sin(x) = 0",
        "Solve x^2 < 4",
        "What is 2 + 2 in binary?",
        "Hello!",
        "",
        "6 * 7 " + "please " * 50,
    ],
)
def test_requests_that_ask_for_something_else(request_text: str) -> None:
    assert read_posed(request_text) is None


ROOTS = [{"x": "2"}, {"x": "3"}]
POINT = [{"x": "3", "y": "2"}]


@pytest.mark.parametrize(
    ("final", "variables", "solutions", "counted"),
    [
        ("x = 2 or x = 3", ["x"], ROOTS, [2, 0]),
        ("3, 2", ["x"], ROOTS, [2, 0]),
        ("{2, 3}", ["x"], ROOTS, [2, 0]),
        ("2", ["x"], ROOTS, [1, 0]),
        ("2 and 5", ["x"], ROOTS, [1, 1]),
        ("4", ["x"], ROOTS, [0, 1]),
        ("\\pm\\sqrt{2}", ["x"], [{"x": "sqrt(2)"}, {"x": "-sqrt(2)"}], [2, 0]),
        ("1.414", ["x"], [{"x": "sqrt(2)"}], [1, 0]),
        ("x = 3, y = 2", ["x", "y"], POINT, [1, 0]),
        ("y = 2 and x = 3", ["x", "y"], POINT, [1, 0]),
        ("(3, 2)", ["x", "y"], POINT, [1, 0]),
        ("(2, 3)", ["x", "y"], POINT, [0, 1]),
        ("3", ["x", "y"], POINT, None),
        ("42", [], [{"": "42"}], [1, 0]),
        ("5/6", [], [{"": "5/6"}], [1, 0]),
        ("a lot", [], [{"": "42"}], None),
    ],
)
def test_solutions_in_an_answer(
    final: str,
    variables: list[str],
    solutions: list[dict[str, str]],
    counted: list[int] | None,
) -> None:
    assert count_solved(final, variables, solutions) == counted
