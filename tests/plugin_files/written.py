"""Plugin files as OptiLLM's users write them, by file name; `write` puts them into a directory."""

from pathlib import Path
from typing import Final

VOTES: Final = '''\
"""Majority voting with n, and single calls where that fails."""
import logging
import re
from collections import Counter
from typing import Any, Dict, Tuple

logger = logging.getLogger(__name__)

SLUG = "votes"
DEFAULT_K = 4


def last_line(text: str) -> str:
    return re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip().splitlines()[-1]


def run(system_prompt: str, initial_query: str, client, model: str,
        request_config: Dict[str, Any] = None) -> Tuple[str, int]:
    config = request_config or {}
    k = config.get("k", DEFAULT_K)
    messages = [{"role": "system", "content": system_prompt},
                {"role": "user", "content": initial_query}]
    candidates, tokens = [], 0
    try:
        response = client.chat.completions.create(
            model=model, messages=messages, n=k,
            temperature=config.get("temperature", 0.6),
            max_tokens=config.get("max_tokens", 4096))
        candidates = [choice.message.content for choice in response.choices]
        tokens = response.usage.completion_tokens
    except Exception as e:
        logger.warning(f"Parallel generation failed: {e}")
        for i in range(k):
            try:
                response = client.chat.completions.create(model=model, messages=messages)
                candidates.append(response.choices[0].message.content)
                tokens += response.usage.completion_tokens
            except Exception as err:
                logger.error(f"Error generating candidate {i + 1}: {err}")
    if not candidates:
        return "Error: Could not generate any candidates", 0
    best, _ = Counter(map(last_line, candidates)).most_common(1)[0]
    return next(c for c in candidates if last_line(c) == best), tokens
'''

SELECTS: Final = """\
import re
SLUG = "selects"

def run(system_prompt, initial_query, client, model, request_config=None):
    response = client.with_options(timeout=60, max_retries=0).chat.completions.create(
        model=model, messages=[{"role": "user", "content": initial_query}],
        n=max(2, (request_config or {}).get("num_candidates", 2)), temperature=0.7)
    candidates = [c.message.content for c in response.choices]
    shown = "\\n".join(f"=== Candidate {i} ===\\n{c}" for i, c in enumerate(candidates, 1))
    judged = client.chat.completions.create(model=model, temperature=0.3, max_tokens=2048,
        messages=[{"role": "system", "content": "You compare answers."},
                  {"role": "user", "content": f"{shown}\\nBEST CANDIDATE: [number]"}])
    match = re.search(r"BEST CANDIDATE:\\s*(\\d+)", judged.choices[0].message.content)
    chosen = int(match.group(1)) - 1 if match else 0
    return candidates[chosen], response.usage.completion_tokens + judged.usage.completion_tokens
"""

ASYNC: Final = """\
import asyncio
SLUG = "in_its_own_loop"

async def run(system_prompt, initial_query, client, model, request_config=None):
    async def one(request):
        return await asyncio.to_thread(client.chat.completions.create, model=model,
            messages=[{"role": "user", "content": request}])
    replies = await asyncio.gather(one(f"For: {initial_query}"), one(f"Against: {initial_query}"))
    text = " / ".join(r.choices[0].message.content for r in replies)
    return text, sum(r.usage.completion_tokens for r in replies)
"""

LEGACY: Final = """\
SLUG = "legacy"

def run(system_prompt, initial_query, client, model):
    with client.chat.completions.create(model=model, stream=True,
            messages=[{"role": "system", "content": system_prompt},
                      {"role": "user", "content": initial_query}]) as stream:
        parts = [c.choices[0].delta.content or "" for c in stream if c.choices]
    return "".join(parts)
"""

PASSES: Final = """\
from __future__ import annotations
from dataclasses import dataclass

SLUG = "passes"

@dataclass
class Config:
    model: str
    keys: dict

def run(system_prompt, initial_query, client, model, request_config=None, messages=None):
    config = Config(client.models.list().data[0].id, dict(request_config))
    response = client.chat.completions.create(
        **{**config.keys, "model": config.model, "messages": messages})
    return response.model_dump(), 0
"""

LISTS: Final = """\
SLUG = "lists"

def run(system_prompt, initial_query, client, model):
    return ["first", "second", "third"], 12
"""

STUBBORN: Final = """\
import time
SLUG = "stubborn"

def run(system_prompt, initial_query, client, model):
    while True:
        try:
            client.chat.completions.create(model=model,
                messages=[{"role": "user", "content": "again"}])
        except Exception:
            time.sleep(0.001)
"""

GOOD: Final = {
    "votes_plugin.py": VOTES,
    "selects_plugin.py": SELECTS,
    "async_plugin.py": ASYNC,
    "optillm/plugins/legacy.py": LEGACY,
    "passes.py": PASSES,
    "lists.py": LISTS,
    "stubborn.py": STUBBORN,
}

BROKEN: Final = {
    "a_syntax.py": "def run(:\n",
    "b_import.py": "import no_such_package_anywhere\nSLUG = 'b'\n",
    "c_exits.py": "import sys\nsys.exit('no licence')\n",
    "d_no_slug.py": "def run(*args):\n    return ''\n",
    "e_taken.py": "SLUG = 'bon'\ndef run(*args):\n    return ''\n",
    "f_dashes.py": "SLUG = 'my-plugin'\ndef run(*args):\n    return ''\n",
    "g_twice.py": "SLUG = 'lists'\ndef run(*args):\n    return ''\n",
    "h_calls.py": "SLUG = 'h'\nEXPECTED_CALLS = 0\ndef run(*args):\n    return ''\n",
}
"""Each has a fault of another kind."""


def write(directory: Path, files: dict[str, str]) -> Path:
    """Return `directory` with `files` in it."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory
