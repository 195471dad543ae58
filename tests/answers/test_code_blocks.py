"""Fenced code blocks: what models write around and inside them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.code_blocks import code_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        pytest.param("a\n```py\nx\n```\nb", [("py", "x\n", True)], id="one block"),
        pytest.param(
            "```\nx\n```\n~~~c\ny\n~~~", [("", "x\n", True), ("c", "y\n", True)], id="two blocks"
        ),
        pytest.param("```Python 3\nx\n```", [("python", "x\n", True)], id="a label of two words"),
        pytest.param("```\nx", [("", "x", False)], id="a block that is cut off"),
        pytest.param("```py", [("py", "", False)], id="nothing but an opening fence"),
        pytest.param(
            "````md\n```\nx\n```\n````", [("md", "```\nx\n```\n", True)], id="a shorter one inside"
        ),
        pytest.param(
            "```md\n```py\nx\n```", [("md", "```py\nx\n", True)], id="a label closes nothing"
        ),
        pytest.param("~~~\n```\n~~~", [("", "```\n", True)], id="the other kind closes nothing"),
        pytest.param("The code: ```py\nx```", [("py", "x", True)], id="text before the fences"),
        pytest.param(
            "1. So:\n   ```py\n   x\n   ```", [("py", "   x\n   ", True)], id="an indented block"
        ),
        pytest.param(
            '```py\ns = "```"\n```', [("py", 's = "```"\n', True)], id="a fence inside a string"
        ),
        pytest.param("Say ```x``` here\n```\ny\n```", [("", "y\n", True)], id="code in a line"),
        pytest.param("``\nx\n``", [], id="two backticks are no fence"),
        pytest.param("a ~~~\nb", [], id="tildes in a line are no fence"),
    ],
)
def test_the_blocks_of_a_text(text: str, blocks: list[tuple[str, str, bool]]) -> None:
    assert [(b.language, b.content, b.closed) for b in code_blocks(text)] == blocks


@given(st.text("`~\n ax", max_size=60))
def test_a_block_is_part_of_the_text_at_the_index_it_names(text: str) -> None:
    end = 0
    for block in code_blocks(text):
        assert block.start >= end
        end = block.start + len(block.content)
        assert text[block.start : end] == block.content


@given(st.lists(st.text("ab \n", max_size=9).map(lambda code: f"{code}\n"), max_size=4))
def test_blocks_that_are_written_are_read_back(contents: list[str]) -> None:
    text = "And:\n".join(f"```py\n{content}```\n" for content in contents)
    assert [block.content for block in code_blocks(text)] == contents


HOSTILE = {
    "backticks": "`" * 200_000,
    "backticks in pairs of three": "```a" * 50_000,
    "a fence and blanks": f"```{' ' * 200_000}`",
    "openings": "```json\n" * 25_000,
    "fences": "```\n" * 50_000,
    "tildes": "~" * 200_000 + "`",
    "blanks": f"{' ' * 200_000}~",
    "a long line": "a" * 200_000 + "```",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_reading_takes_time_in_proportion_to_the_length(text: str) -> None:
    """200,000 characters take some milliseconds; quadratic time would be minutes."""
    started = time.process_time()
    code_blocks(text)
    assert time.process_time() - started < 2
