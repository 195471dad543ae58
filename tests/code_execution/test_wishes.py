"""Which requests ask for their code to be run: words of many languages, as words."""

import pytest

from optillm_hooks.code_execution.reading import programs_to_run
from optillm_hooks.code_execution.wishes import MAX_PROGRAMS, read_programs, wants_run

CODE = "```python\nprint(6 * 7)  # run the output\n```"


@pytest.mark.parametrize(
    "words",
    [
        "Run this.",
        "What does it output?",
        "Please EXECUTE the code:",
        "What is the result?",
        "Führe das aus.",
        "Was ist die Ausgabe?",
        "Exécute ce code.",
        "¿Cuál es la salida?",
        "Execute este código.",
        "Esegui questo codice.",
        "Voer dit uit.",
        "Запусти этот код.",
        "运行这段代码",
        "このコードを実行してください",
        "이 코드를 실행해 줘",
    ],
)
@pytest.mark.parametrize("form", ["{words}\n\n{code}", "{code}\n\n{words}"])
def test_words_that_ask_for_it(words: str, form: str) -> None:
    assert wants_run(form.format(words=words, code=CODE))


@pytest.mark.parametrize(
    "words",
    [
        "",
        "What is a trunk?",  # OptiLLM's own: it contains "run"
        "Prune the brunch, and review it.",
        "Explain this.",
        "Don't run it, explain it.",
        "Don’t run it, explain it.",
        "Do not execute this.",
        "Explain it without running it.",
        "Bitte nicht ausführen.",
        "Ne pas exécuter.",
        "Не выполняй.",
        "不要运行",
    ],
)
def test_words_that_do_not(words: str) -> None:
    assert not wants_run(f"{words}\n\n{CODE}")


def test_the_code_itself_does_not_ask_for_it() -> None:
    assert not wants_run(CODE)
    assert not wants_run(f"Review:\n{CODE}\nand\n{CODE}")


@pytest.mark.anyio
async def test_the_blocks_are_those_that_are_python() -> None:
    text = f"Run:\n```\nx = 1\n```\nas in\n```sh\nls\n```\nand\n{CODE}"
    assert await programs_to_run(text) == ["x = 1\n", "print(6 * 7)  # run the output\n"]
    assert await programs_to_run("Run `x = 1`.") == []
    assert await programs_to_run("Explain." + CODE) == []


def test_their_number_is_bounded() -> None:
    assert len(read_programs("Run all.\n" + f"{CODE}\n" * 50)) == MAX_PROGRAMS
