"""The import of OptiLLM's strategies."""

import json
from pathlib import Path

import pytest

from optillm_hooks.store.import_strategies import main
from optillm_hooks.store.records import Method, Namespace
from optillm_hooks.store.store import FILE, Store

pytestmark = pytest.mark.anyio

OPTILLMS = [
    {
        "strategy_id": "strategy_1",
        "problem_type": "word_problem",
        "strategy_text": "Name the unknowns.",
        "examples": ["A train leaves Bern.", "A train to Anna leaves at 9.", "Trains?"],
        "success_count": 3,
        "total_attempts": 5,
    },
    {"strategy_id": "fallback_1a2b3c4d", "strategy_text": "Think.", "problem_type": "x"},
    {"strategy_id": "strategy_2", "strategy_text": " "},
    {"strategy_id": "strategy_3", "strategy_text": "Sort first.", "examples": None},
]


async def test_strategies_are_imported_once_without_users_questions(
    url: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "strategies.json"
    file.write_text(json.dumps(OPTILLMS))
    place = ["--url", url] if url else ["--directory", str(tmp_path)]
    for _ in range(2):
        assert main([str(file), "--scope", "team", "--owner", "t1", *place]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "2 strategies added, 0 were there already",
        "0 strategies added, 2 were there already",
    ]
    store = Store(directory=tmp_path, url=url)
    [first, second] = await store.strategies(Namespace("team", "t1"))
    store.close()
    assert set(first.method.keywords.split()) == {"word", "problem", "train", "leaves"}
    assert (first.method.when, first.method.steps) == ("word problem", "Name the unknowns.")
    assert (first.uses, first.rewarded) == (0, 0)
    assert second.method == Method(
        when="general problem", keywords="general problem", steps="Sort first."
    )


@pytest.mark.parametrize("text", ["{}", "[1]", "{", "[" * 100_000, ""])
def test_another_file_is_refused_before_the_store_is_made(text: str, tmp_path: Path) -> None:
    file = tmp_path / "strategies.json"
    file.write_text(text)
    with pytest.raises(SystemExit):
        main([str(file), "--scope", "key", "--owner", "x", "--directory", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["strategies.json"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (["--directory", "{tmp}/damaged"], "damaged or not a store"),
        (["--directory", "{tmp}/strategies.json"], "strategies.json"),
        (["--url", "nonsense"], "not a URL"),
        (["--url", "postgresql://nobody@127.0.0.1:1/none"], "the store does not answer"),
    ],
    ids=["damaged", "no directory", "no URL", "no server"],
)
def test_a_store_that_cannot_be_opened_is_a_message(
    place: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "strategies.json"
    file.write_text(json.dumps(OPTILLMS))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_text("no database" * 100)
    where = [part.replace("{tmp}", str(tmp_path)) for part in place]
    with pytest.raises(SystemExit):
        main([str(file), "--scope", "team", "--owner", "t1", *where])
    assert said in capsys.readouterr().err
