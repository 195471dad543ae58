"""Exactness: the engine writes what `transformers.generate` writes, in float32."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import Choice, EngineRequest, Piece, SamplingParams
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny
from tests.local_provider.distributions import assert_follows, exact

FORMAT = tiny.chat_format()
IDS = {FORMAT.token_bytes(token): token for token in range(len(tiny.tokenizer()))}
CLOSE = 1e-4
"""A choice of the reference that is closer than this may go the other way."""

LENGTHS = [3, 700, 40, 5, 300, 90, 1, 260, 33, 64, 512, 7, 150, 20, 256, 80]


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    return tiny.model(spread=3.0, spare=0)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    runner = Runner(tiny.model(spread=3.0, spare=0))
    engine = Engine("exact", lambda: Batch(runner, FORMAT, Capacity()))
    yield engine
    engine.close()


class Drawn(LogitsProcessor):  # type: ignore[misc]  # not followed
    """Forces the token that transformers' own warpers and one random number per step choose.

    That is the first one, in the order of the vocabulary or, with top_k, top_p or min_p, of falling
    probability, at which the cumulative probability exceeds the number.
    """

    def __init__(self, sampling: SamplingParams, seed: str) -> None:
        cuts = sampling.top_k or sampling.top_p < 1 or sampling.min_p
        self.greedy = sampling.temperature == 0
        self.sorted = bool(cuts)
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self.warpers.append(MinPLogitsWarper(sampling.min_p))
        self.rng = random.Random(seed)
        self.gaps: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        number = self.rng.random()
        if self.greedy:
            best, second = scores[0].topk(2).values.tolist()
            self.gaps.append(best - second)
            return scores
        probabilities = self.warpers(input_ids, scores)[0].double().softmax(-1)
        order = torch.arange(len(probabilities))
        if self.sorted:
            order = probabilities.argsort(descending=True, stable=True)
        borders = probabilities[order].cumsum(0)
        place = int((borders > number).nonzero()[0])
        self.gaps.append(float((borders[probabilities[order] > 0] - number).abs().min()))
        forced = torch.full_like(scores, -torch.inf)
        forced[0, order[place]] = 0.0
        return forced


async def choices(engine: Engine, request: EngineRequest) -> list[Choice]:
    found = [Choice() for _ in range(request.n)]
    async for event in engine.stream(request):
        if isinstance(event, Piece):
            found[event.choice].add(event)
    return found


def assert_as_generated(
    reference: LlamaForCausalLM, request: EngineRequest, index: int, choice: Choice
) -> int:
    """Compare token by token until the reference's own choice is close; return how many."""
    prompt = FORMAT.encode(request.messages)
    drawn = Drawn(request.sampling, f"{request.seed}:{index}")
    whole = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        do_sample=False,
        max_new_tokens=request.max_tokens,
        eos_token_id=tiny.END,
        pad_token_id=tiny.END,
        logits_processor=LogitsProcessorList([drawn]),
    )[0, len(prompt) :].tolist()
    written = [IDS[token.token] for token in choice.tokens]
    written += [tiny.END] if choice.finish_reason == "stop" else []
    sure = next((i for i, gap in enumerate(drawn.gaps) if gap < CLOSE), len(whole))
    assert written[:sure] == whole[:sure]
    return sure


def assert_scored_as_alone(
    reference: LlamaForCausalLM, request: EngineRequest, choice: Choice
) -> None:
    """Compare all log-probabilities with one independent pass over prompt and answer."""
    prompt = FORMAT.encode(request.messages)
    written = [IDS[token.token] for token in choice.tokens]
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 :]
    for row, token, scored in zip(logits.log_softmax(-1), written, choice.tokens, strict=False):
        assert abs(scored.logprob - row[token].item()) < 1e-3
        top = torch.tensor([logprob for _, logprob in scored.top])
        assert (top - row.topk(len(top)).values).abs().max() < 1e-3


SAMPLING = {
    "greedy": SamplingParams(temperature=0),
    "seeded": SamplingParams(temperature=0.9),
    "seeded and cut": SamplingParams(temperature=1.2, top_k=60, top_p=0.9, min_p=0.02),
}


def make_request(letters: int, sampling: SamplingParams, seed: int, **fields: Any) -> EngineRequest:
    text = "".join(random.Random(seed).choices("abcdefgh ", k=letters))
    fields = {"max_tokens": 8, "top_logprobs": 20, **fields}
    return EngineRequest(
        messages=[{"role": "user", "content": text}], sampling=sampling, seed=seed, **fields
    )


@pytest.mark.anyio
@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("concurrent", [1, 16], ids=["alone", "sixteen concurrent"])
async def test_tokens_and_scores_are_those_of_transformers(
    engine: Engine, reference: LlamaForCausalLM, sampling: SamplingParams, concurrent: int
) -> None:
    requests = [make_request(length, sampling, seed) for seed, length in enumerate(LENGTHS)]
    sure = 0
    for start in range(0, 16 if concurrent == 16 else 4, concurrent):
        some = requests[start : start + concurrent]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(choices(engine, one)) for one in some]
        for one, task in zip(some, tasks, strict=True):
            sure += assert_as_generated(reference, one, 0, task.result()[0])
            assert_scored_as_alone(reference, one, task.result()[0])
    assert sure > (80 if concurrent == 16 else 20)


@pytest.mark.anyio
@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("letters", [4, 300], ids=["copied prompt", "shared prompt"])
async def test_choices_of_one_prompt_are_those_of_transformers(
    engine: Engine, reference: LlamaForCausalLM, sampling: SamplingParams, letters: int
) -> None:
    one = make_request(letters, sampling, 77, n=3, max_tokens=12)
    sure = 0
    for index, choice in enumerate(await choices(engine, one)):
        sure += assert_as_generated(reference, one, index, choice)
        assert_scored_as_alone(reference, one, choice)
    assert sure > 20


LETTERS = dict.fromkeys((FORMAT.encode_text(letter)[0] for letter in "xyz"), 90.0)
"""A bias that leaves all other tokens together a probability below 1e-10."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling": SamplingParams(temperature=3)},
        {"sampling": SamplingParams(temperature=1.6, top_k=2)},
        {"sampling": SamplingParams(temperature=3, top_p=0.6)},
        {"sampling": SamplingParams(temperature=3, min_p=0.5)},
        {"presence_penalty": 1.5},
        {"presence_penalty": -1.0, "frequency_penalty": 0.8},
        {"frequency_penalty": 2.0, "sampling": SamplingParams(temperature=3, top_p=0.9)},
        {"repetition_penalty": 1.8},
        {"logit_bias": {**LETTERS, next(iter(LETTERS)): 91.5}},
    ],
    ids=[
        "plain",
        "hot",
        "top_k",
        "top_p",
        "min_p",
        "presence",
        "both",
        "frequency",
        "repetition",
        "bias",
    ],
)
async def test_pairs_of_tokens_follow_the_exact_distribution(
    engine: Engine, reference: LlamaForCausalLM, fields: dict[str, Any]
) -> None:
    """Chi-square of 1,000 pairs of three letters; a bias excludes all other tokens.

    The prompt has some of the letters: of the penalties, only that on repetition counts them.
    """
    settings: dict[str, Any] = {"logit_bias": LETTERS, "max_tokens": 2, "n": 125, **fields}
    settings = {"sampling": SamplingParams(temperature=2), **settings}
    messages = [{"role": "user", "content": "x zz"}]
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(8):
        one = EngineRequest(messages=messages, seed=seed, top_logprobs=0, **settings)
        for choice in await choices(engine, one):
            counts[tuple(IDS[token.token] for token in choice.tokens)] += 1
    expected = pairs(reference, one)
    assert set(counts) <= set(expected)
    assert_follows([counts[pair] for pair in expected], list(expected.values()))


def pairs(reference: LlamaForCausalLM, one: EngineRequest) -> dict[tuple[int, ...], float]:
    """Return the exact probability of each pair of letters as the first two tokens."""

    def following(written: list[int]) -> dict[int, float]:
        with torch.inference_mode():
            tokens = torch.tensor([prompt + written])
            raw = reference(tokens).logits[:, -1]
            logits = RepetitionPenaltyLogitsProcessor(one.repetition_penalty)(tokens, raw)[0]
        shifted = {
            token: logits[token].item()
            + bias
            - one.frequency_penalty * written.count(token)
            - one.presence_penalty * (token in written)
            for token, bias in one.logit_bias.items()
        }
        return exact(shifted, one.sampling)

    prompt = FORMAT.encode(one.messages)
    return {
        (first, second): p * q
        for first, p in following([]).items()
        for second, q in following([first]).items()
    }
