"""Inference-time compute for every model behind a LiteLLM proxy.

These names are what the author of an approach needs; importing them loads neither litellm nor
torch. An installed package registers its approaches by the entry-point group
`optillm_hooks.approaches`.
"""

from optillm_hooks.context import Context
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EmptyCompletion,
    OptiLLMError,
    ProviderFailed,
    RequestRejected,
    SampleError,
    SamplesFailed,
)
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.registry import (
    Cost,
    DraftingParams,
    NoParams,
    Params,
    approach,
    decoder,
    rewriter,
    wrapper,
)
from optillm_hooks.types import Answer, Chat, Completion, Message, Sampling

__all__ = [
    "LLM",
    "Answer",
    "BudgetExceeded",
    "Chat",
    "Completion",
    "Context",
    "Cost",
    "DeadlineExceeded",
    "DraftingParams",
    "EmptyCompletion",
    "FinalCall",
    "Message",
    "NoParams",
    "OptiLLMError",
    "Params",
    "ProviderFailed",
    "RequestRejected",
    "SampleError",
    "SamplesFailed",
    "Sampling",
    "approach",
    "decoder",
    "rewriter",
    "wrapper",
]
