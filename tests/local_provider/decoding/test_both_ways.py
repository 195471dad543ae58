"""The same model, decoded by the engine and by calls: both ways give the same reply."""

from collections.abc import Mapping, Sequence
from typing import Any

import litellm
import pytest
import torch

from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.pipeline.events import Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.testing import chat
from optillm_hooks.types import Sampling, TokenLogprob
from tests.vllm import PrefixLLM

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("litellm_in_this_loop"),
    # LiteLLM's own use of pydantic.
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance"),
]
QUESTION = "I have 3 apples and get 2 more. How many apples do I have?"
TOKENS = 10


class Served:
    """What a server that only has the model and its chat template writes, greedily."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model, self._tokenizer = loaded.model, loaded.tokenizer

    def __call__(self, _prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        continues = body["messages"][-1]["role"] == "assistant"
        ids = self._tokenizer.apply_chat_template(
            body["messages"],
            add_generation_prompt=not continues,
            continue_final_message=continues,
            return_dict=False,
        )
        most = body["max_tokens"]
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            out = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=most,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        written = []
        for token, scores in zip(out.sequences[0, len(ids) :].tolist(), out.scores, strict=True):
            top = scores[0].log_softmax(-1).topk(20)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ranked = tuple((self._tokenizer.decode([i]), value) for i, value in pairs)
            written.append(TokenLogprob(self._tokenizer.decode([token]), ranked[0][1], ranked))
        return written


async def test_cot_decoding_gives_the_same_reply_and_confidence(
    served: dict[str, Any], loaded: LoadedModel
) -> None:
    served["messages"] = [{"role": "user", "content": QUESTION}]
    fields = {"optillm_decoding": {"cot_decoding": {"k": 3}}}
    local = await litellm.acompletion(**{**served, **fields, "max_tokens": TOKENS})
    request = Request(
        plan=resolve(parse("cot_decoding(k=3)")),
        base="base",
        chat=chat(QUESTION),
        client=Sampling(max_tokens=TOKENS),
    )
    remote = await run(request, {"base": PrefixLLM(Served(loaded))}.__getitem__)
    assert remote.answers[0].text == local.choices[0].message.content
    [(_, facts)] = remote.report.notes
    assert facts["agreeing"] == local.optillm_decoding["agreeing"]
    assert facts["confidence"] == pytest.approx(local.optillm_decoding["confidence"], abs=1e-3)
