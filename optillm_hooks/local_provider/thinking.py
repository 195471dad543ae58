"""When a local model reasons by itself, as its chat template shows, without loading the model."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Literal

_FILES = ("chat_template.jinja", "tokenizer_config.json")

_SWITCH = re.compile(r"\benable_thinking\b|\bthinking\b(?=\s*(?:is|==|%|and|or|\)))")
_OPENING = re.compile(r"<(?:seed:)?think")
_ALWAYS = re.compile(r"\breasoning_effort\b|\bthinking_budget\b|\[THINK\]")
"""What templates of models that always reason have: gpt-oss, Seed-OSS, Magistral."""

_OFF = re.compile(
    r"set (?:enable_)?thinking\s*=\s*false|if (?:enable_)?thinking(?: is true)?\s*-?%\}", re.I
)
_ON = re.compile(r"set (?:enable_)?thinking\s*=[^%]{0,200}\btrue\b", re.I)
"""What sets the switch of templates in which it is off, or on, unless a request sets it."""

When = Literal["never", "on_request", "always"]


@cache
def template_reasons(path: str, revision: str | None = None) -> When | None:
    """Return when the model at `path` reasons, or None if its template is not on this machine."""
    for name in _FILES:
        file = _file(path, name, revision)
        if file is not None and (template := _template(file)):
            return reasons(template)
    return None


def reasons(template: str) -> When:
    """Return when a model with this chat template reasons.

    A template that begins the reply with a thought, or could, makes the model reason unless a
    request switches it off; one that has only a switch waits for a request.
    """
    _, _, reply = template.rpartition("add_generation_prompt")
    is_off = _OFF.search(template) and not _ON.search(template)
    if (_OPENING.search(reply) and not is_off) or _ALWAYS.search(template):
        return "always"
    return "on_request" if _SWITCH.search(template) else "never"


def _file(path: str, name: str, revision: str | None) -> Path | None:
    folder = Path(path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, name, revision=revision)
    except (ImportError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def _template(file: Path) -> str:
    if file.suffix == ".jinja":
        return file.read_text(errors="replace")
    template = json.loads(file.read_text(errors="replace")).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else ""
