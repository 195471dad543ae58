"""LiteLLM's YAML files, read as LiteLLM reads them."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from litellm.proxy.common_utils.config_includes import (
    resolve_include_file_path,
    resolve_includes,
)

from optillm_hooks.config_files import CannotRun, read_config, read_if_there, repetitions

FILES: Mapping[str, object] = {
    "config.yaml": {
        "include": ["parts/models.yaml", "parts/models.yaml", "empty.yaml"],
        "model_list": [{"model_name": "a"}],
        "litellm_settings": {"x": 1},
    },
    "parts/models.yaml": {
        "include": ["more.yaml", "beside_root.yaml"],
        "model_list": [{"model_name": "b"}],
        "litellm_settings": {"y": 2},
    },
    "parts/more.yaml": {"include": ["../config.yaml"], "model_list": [{"model_name": "c"}]},
    "more.yaml": {"model_list": [{"model_name": "not this one"}]},
    "beside_root.yaml": {"model_list": [{"model_name": "d"}], "general_settings": {"z": 3}},
    "empty.yaml": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    for name, content in FILES.items():
        (tmp_path / name).write_text("" if content is None else yaml.safe_dump(content))
    return tmp_path


def litellms(path: Path) -> dict[str, Any]:
    """Return what LiteLLM makes of a file."""
    texts = {str(each): each.read_text() for each in path.parent.rglob("*.yaml")}

    async def read(location: str) -> dict[str, Any]:
        read: dict[str, Any] = yaml.safe_load(texts[location]) or {}
        return read

    def resolve(name: str, declared_in: str) -> str:
        return str(resolve_include_file_path(name, declared_in, str(path)))

    config = yaml.safe_load(path.read_text())
    found = resolve_includes(config=config, location=str(path), resolve=resolve, read=read)
    return dict(asyncio.run(found))


def test_included_files_are_merged_as_litellm_merges_them(folder: Path) -> None:
    found = read_config(folder / "config.yaml")
    assert found == litellms(folder / "config.yaml")
    assert [model["model_name"] for model in found["model_list"]] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("given", ["models.yaml", [1]])
def test_an_include_that_is_no_list_of_names_is_one_clear_line(
    tmp_path: Path, given: object
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"include": given}))
    with pytest.raises(CannotRun, match=r"config\.yaml: include must be a list of file names"):
        read_config(tmp_path / "config.yaml")


def test_a_missing_included_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("include: [no.yaml]")
    with pytest.raises(CannotRun, match=r"no\.yaml cannot be read"):
        read_config(tmp_path / "config.yaml")


def test_keys_that_a_mapping_has_twice_are_found_in_every_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "include: [more.yaml]\n"
        "litellm_settings: {callbacks: []}\n"
        "model_list:\n"
        "  - {model_name: a, model_name: b}\n"
        "  - {model_name: c, 1: x, '1': y}\n"
        "litellm_settings: {callbacks: []}\n"
        "litellm_settings: {callbacks: []}\n"
    )
    (tmp_path / "more.yaml").write_text("x: &x {a: 1, b: 2, b: 3}\ny: [*x, {<<: *x, <<: *x}]")
    found = [(each.file.name, *each[1:]) for each in repetitions(tmp_path / "config.yaml")]
    assert sorted(found) == [
        ("config.yaml", "litellm_settings", 2, 6),
        ("config.yaml", "litellm_settings", 6, 7),
        ("config.yaml", "model_list[0].model_name", 4, 4),
        ("more.yaml", "x.b", 1, 1),
    ]


def test_the_file_of_the_current_folder_is_read_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_if_there(None) == {}
    (tmp_path / "litellm_config.yaml").write_text("model_list: []")
    assert read_if_there(None) == {"model_list": []}
    with pytest.raises(CannotRun, match="cannot be read"):
        read_if_there(Path("other.yaml"))
