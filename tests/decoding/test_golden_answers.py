"""The decoding methods that compare answers read and compare them as all other approaches do.

Each golden table goes through the doors of the methods: the engine's branches, and the calls to a
model elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.local_provider.decoding.base import BranchOutput, Decoding
from optillm_hooks.local_provider.decoding.cot_decoding import CotDecoding
from optillm_hooks.local_provider.decoding.deepconf import DeepConf
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty
from optillm_hooks.pipeline.events import Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.testing import chat
from optillm_hooks.types import Fields, Sampling, TokenLogprob
from tests.vllm import PrefixLLM, peaked, sure, token

pytestmark = pytest.mark.anyio
TABLES = Path(__file__).parent.parent / "golden"
TEXTS: list[dict[str, Any]] = [
    case
    for case in json.loads((TABLES / "extraction.json").read_text(encoding="utf-8"))
    if case.get("how", "auto") == "auto" and case["expected"] is not None
]
PAIRS: list[dict[str, Any]] = [
    case
    for case in json.loads((TABLES / "equivalence.json").read_text(encoding="utf-8"))
    if case["a"].strip() and case["b"].strip()
]
"""A reply cannot state a blank answer."""


def stating(answer: str) -> str:
    """Return a reply whose answer is exactly `answer`."""
    return json.dumps({"answer": answer})


def decoded(method: Decoding, texts: Sequence[str]) -> Fields:
    """Return the facts of a method in the engine whose branches write `texts`, one token each."""
    method.begin([(at, 0.1) for at in range(len(texts))])
    for text in texts:
        branch = method.open()
        assert branch is not None
        branch.emit(1, Uncertainty(margin=0.5, confidence=10.0), end=False)
        method.close(branch, BranchOutput(text, (1,), (len(text),), "stop"))
    return dict(method.outcome().facts)


async def called(approach: str, llm: PrefixLLM) -> Fields:
    """Return the facts of a method over a model elsewhere."""
    request = Request(plan=resolve(parse(approach)), base="base", chat=chat("?"), client=Sampling())
    [(_, facts)] = (await run(request, {"base": llm}.__getitem__)).report.notes
    return facts  # type: ignore[return-value]


def branches(texts: Sequence[str]) -> PrefixLLM:
    """Return a model that begins its reply in as many ways, and ends each with one of `texts`."""
    starts = [f"{at}) " for at in range(len(texts))]

    def writes(prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        if not prefix:
            return [token(starts[0], 0.5, *((start, 0.1) for start in starts[1:]))]
        return sure(f"\n```json\n{texts[starts.index(prefix)]}\n```")

    return PrefixLLM(writes)


def traces(texts: Sequence[str]) -> PrefixLLM:
    """Return a model whose samples write `texts`."""

    def writes(_prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        return [peaked(texts[body["sample"]], 10.0)]

    return PrefixLLM(writes, fields=("logprobs", "top_logprobs"))


def cot() -> CotDecoding:
    return CotDecoding(CotSettings(), SamplingParams())


def deepconf() -> DeepConf:
    return DeepConf(DeepConfSettings(warmup_samples=2, max_traces=2), SamplingParams())


@pytest.mark.parametrize("case", TEXTS, ids=[case["id"] for case in TEXTS])
def test_a_reply_votes_for_the_answer_that_is_read_out_of_it(case: dict[str, Any]) -> None:
    texts = [case["text"], stating(case["expected"])]
    assert decoded(cot(), texts)["agreeing"] == 2
    assert decoded(deepconf(), texts)["votes"] == [20.0]


@pytest.mark.parametrize("case", PAIRS, ids=[case["id"] for case in PAIRS])
async def test_two_answers_are_one_exactly_if_they_are_equivalent(case: dict[str, Any]) -> None:
    texts = [stating(case["a"]), stating(case["b"])]
    agreeing, votes = (2, [20.0]) if case["same"] else (1, [10.0, 10.0])
    assert decoded(cot(), texts)["agreeing"] == agreeing
    assert decoded(deepconf(), texts)["votes"] == votes
    assert (await called("cot_decoding(k=2)", branches(texts)))["agreeing"] == agreeing
    by_calls = await called("deepconf(warmup_samples=2;max_traces=2)", traces(texts))
    assert by_calls["votes"] == pytest.approx(votes)


HALVES = ["The answer is 1/2.", "So \\boxed{\\frac{1}{2}}", "ANSWER: 0.5", "The answer is 3/2."]


async def test_one_half_outvotes_a_surer_three_halves() -> None:
    """Three traces of confidence 10 against one of 12: the halves are one answer."""

    def writes(_prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        at = body["sample"]
        return [peaked(HALVES[at], 12.0 if at == 3 else 10.0)]

    llm = PrefixLLM(writes, fields=("logprobs", "top_logprobs"))
    facts = await called("deepconf(warmup_samples=4;max_traces=4;variant=high)", llm)
    assert facts["votes"] == pytest.approx([30.0, 12.0])
