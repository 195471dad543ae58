"""The tool-call format of a model, as its chat template shows."""

import re

from optillm_hooks.local_provider.tool_calls.base import CallFormat
from optillm_hooks.local_provider.tool_calls.harmony_calls import HARMONY_CALLS
from optillm_hooks.local_provider.tool_calls.json_calls import (
    APERTUS,
    COMMAND,
    FUNCTOOLS,
    GIGACHAT,
    GRANITE,
    GRANITE_CODE,
    HERMES,
    HUNYUAN,
    INTERNLM,
    LLAMA,
    MISTRAL,
    NEMOTRON,
    PHI,
    XLAM,
)
from optillm_hooks.local_provider.tool_calls.named_calls import (
    DEEPSEEK,
    DEEPSEEK_FENCED,
    FUNCTIONARY,
    KIMI,
    MISTRAL_NAMED,
    MISTRAL_WITH_IDS,
)
from optillm_hooks.local_provider.tool_calls.python_calls import (
    FUNCTION_GEMMA,
    GEMMA_4,
    LFM,
    LLAMA_4,
    OLMO,
    PYTHON,
    TOOL_CODE,
)
from optillm_hooks.local_provider.tool_calls.tagged_calls import (
    DEEPSEEK_TAGS,
    DEEPSEEK_TOOL_TAGS,
    GLM,
    GLM_FLAT,
    MINIMAX,
    QWEN_CODER,
    SEED,
)

_DSML = "\uff5cDSML\uff5c"
_SIGNS: tuple[tuple[tuple[str, ...], CallFormat], ...] = (
    (("<|channel|>", "<|message|>", "<|start|>"), HARMONY_CALLS),
    (("<|tool_calls_section_begin|>",), KIMI),
    ((DEEPSEEK.opening, "```json"), DEEPSEEK_FENCED),
    ((DEEPSEEK.opening,), DEEPSEEK),
    ((_DSML, "function_calls>"), DEEPSEEK_TAGS),
    ((_DSML,), DEEPSEEK_TOOL_TAGS),
    ((MINIMAX.opening,), MINIMAX),
    ((SEED.opening,), SEED),
    (("[TOOL_CALLS]", "[CALL_ID]"), MISTRAL_WITH_IDS),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<tool_calls>[",), HUNYUAN),
    (("<tool_call>", "<function="), QWEN_CODER),
    (("<tool_call>", "</arg_key><arg_value>"), GLM_FLAT),
    (("<tool_call>", "<arg_key>"), GLM),
    (("<tool_call>", "arguments"), HERMES),
    (("<|tool_call>call:",), GEMMA_4),
    ((FUNCTION_GEMMA.opening,), FUNCTION_GEMMA),
    ((NEMOTRON.opening,), NEMOTRON),
    ((HUNYUAN.opening,), HUNYUAN),
    (("<function_calls>",), OLMO),
    ((COMMAND.opening,), COMMAND),
    ((APERTUS.opening,), APERTUS),
    ((INTERNLM.opening,), INTERNLM),
    (("<|tool_call_start|>",), LFM),
    (("<|tool_list_start|>",), LFM),
    (("<|im_start|>", '"List of tools: ["'), LFM),
    (("<|/tool_call|>",), PHI),
    (("<|/tool|>",), PHI),
    (("<|tool_call|>",), GRANITE),
    (("functools[",), FUNCTOOLS),
    (("<function_call> {",), GRANITE_CODE),
    ((GIGACHAT.opening,), GIGACHAT),
    (("```tool_code",), TOOL_CODE),
    (("<|header_start|>", "<|python_start|>"), LLAMA_4),
    (("<function=", "</function>"), FUNCTIONARY),
    (("ipython", '"parameters"'), LLAMA),
)
"""Texts that all occur in the templates of a format; the first format that fits is taken."""

_PYTHON = re.compile(r"\[\s{0,9}func\w{0,40}\([^)]{0,200}=|\btool_call\.name \+ '\('")
_XLAM = re.compile(r'\[\s*\{\s*\\?"name\\?": \\?"\w+\\?", \\?"arguments\\?"')


def form_of(template: str) -> CallFormat | None:
    """Return the tool-call format of a model with this chat template, or None if unknown."""
    for signs, form in _SIGNS:
        if all(sign in template for sign in signs):
            return form
    if _PYTHON.search(template):
        return LLAMA_4 if "<|header_start|>" in template else PYTHON
    return XLAM if _XLAM.search(template) else None
