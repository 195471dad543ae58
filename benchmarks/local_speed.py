"""How much faster the local engine is than the plain way, side by side on this machine.

    python benchmarks/local_speed.py [--dtype float32] [--tokens 128] [--threads 2] [--only CASE]

Each case runs the engine's batch and its baseline one after the other, with transformers' own
`generate` as the baseline, and prints seconds of both and their ratio. Times on a machine that does
other work swing; the ratio swings less, as both sides share the weather.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.decoding.cot_decoding import CotSettings
from optillm_hooks.local_provider.decoding.deepconf import DeepConfSettings
from optillm_hooks.local_provider.generation import Event, Finished, Generation, Job, Law, Piece
from optillm_hooks.local_provider.models import LoadedModel
from optillm_hooks.local_provider.runner import Runner

QUESTION = "Explain how a river shapes the land around it."


class Bench:
    """The engine's batch and transformers' own model, with the same weights."""

    def __init__(self, dtype: str, tokens: int) -> None:
        spec = models.find("smollm2").model_copy(update={"dtype": dtype, "device": "cpu"})
        self.loaded: LoadedModel = models.load(spec)
        self.format = ChatFormat(self.loaded.tokenizer, models.end_ids(self.loaded))
        self.runner = Runner(models.load(spec).model)
        self.tokens = tokens
        # Every reply has its full length, so that both sides write the same number of tokens.
        self.endless = dict.fromkeys(self.format.end_ids, -100.0)

    def batch(self, prefix_bytes: int = 0) -> Batch:
        return Batch(self.runner, self.format, Capacity(prefix_bytes=prefix_bytes))

    def asked(self, text: str, **fields: Any) -> Generation:
        given = {"law": Law(temperature=0), "max_tokens": self.tokens, **fields}
        messages = [{"role": "user", "content": text}]
        return Generation(messages=messages, logit_bias=self.endless, **given)

    def run(self, batch: Batch, *generations: Generation) -> int:
        """Serve all at once; returns the tokens written."""
        events: list[Event] = []
        for generation in generations:
            batch.add(Job(generation, events.append))
        while not batch.idle:
            batch.step()
        return sum(event.completion_tokens for event in events if isinstance(event, Finished))

    def generate(self, text: str, tokens: int | None = None, **sampling: Any) -> int:
        """One request by transformers' own loop; returns the tokens written."""
        ids = torch.tensor([self.format.encode([{"role": "user", "content": text}])])
        count = tokens or self.tokens
        out = self.loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            **({"do_sample": False} | sampling),
        )
        return int(out.shape[1] - ids.shape[1])

    def single(self) -> tuple[float, float]:
        """One request against `generate`."""
        return timed(lambda: self.run(self.batch(), self.asked(QUESTION))), timed(
            lambda: self.generate(QUESTION)
        )

    def crowd(self) -> tuple[float, float]:
        """16 requests at once against one after another."""
        texts = [f"{QUESTION} Say {i} things." for i in range(16)]
        at_once = timed(lambda: self.run(self.batch(), *map(self.asked, texts)))
        return at_once, timed(lambda: sum(map(self.generate, texts[:4]))) * 4

    def cot(self) -> tuple[float, float]:
        """CoT decoding, k=10, against a branch at a time."""
        return self._branches(QUESTION)

    def cot_long(self) -> tuple[float, float]:
        """CoT decoding, k=10, over a prompt of 1,100 tokens, against a branch at a time."""
        return self._branches(QUESTION * 106)

    def deepconf(self) -> tuple[float, float]:
        """DeepConf, 16 traces, against a sample at a time."""
        settings = DeepConfSettings(warmup_samples=16, max_traces=16)
        asked = self.asked(QUESTION, decoding=settings, law=Law(0.7))
        fast = timed(lambda: self.run(self.batch(), asked))
        slow = timed(
            lambda: [self.generate(QUESTION, do_sample=True, temperature=0.7) for _ in range(4)]
        )
        return fast, slow * 4

    def reuse(self) -> tuple[float, float]:
        """First token of a request whose first 280 tokens are known, against one all new."""
        batch = self.batch(prefix_bytes=1 << 28)
        text = QUESTION * 25
        fresh = timed(lambda: self.run(batch, self.asked(text + " Why?", max_tokens=1)))
        return timed(lambda: self.run(batch, self.asked(text + " How?", max_tokens=1))), fresh

    def stall(self) -> tuple[float, float]:
        """Longest step of a stream while a prompt of 2,000 tokens is read, against it whole.

        The step holds at most 256 tokens of the prompt.
        """
        batch, steps = self.batch(), list[float]()
        events: list[Event] = []
        batch.add(Job(self.asked(QUESTION), events.append))
        while not any(isinstance(event, Piece) for event in events):
            batch.step()
        batch.add(Job(self.asked(QUESTION * 195, max_tokens=1), events.append))
        while not any(isinstance(event, Finished) for event in events):
            steps.append(timed(batch.step))
        for_all = timed(lambda: self.generate(QUESTION * 195, 1))
        while not batch.idle:
            batch.step()
        return max(steps), for_all

    def _branches(self, text: str) -> tuple[float, float]:
        asked = self.asked(text, decoding=CotSettings(k=10))
        fast = timed(lambda: self.run(self.batch(), asked))
        return fast, timed(lambda: [self.generate(text) for _ in range(2)]) * 5


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


CASES = ("single", "crowd", "cot", "cot_long", "deepconf", "reuse", "stall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=CASES, action="append")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.dtype, options.tokens)
    bench.run(bench.batch(), bench.asked("Hi", max_tokens=4))
    bench.generate("Hi", 4)
    print(f"{options.dtype}, {options.tokens} tokens, {options.threads} threads")
    for name in options.only or CASES:
        case = getattr(bench, name)
        fast, slow = case()
        print(f"{slow / fast:6.2f} x  {fast:7.2f} s  {slow:7.2f} s  {case.__doc__.splitlines()[0]}")


if __name__ == "__main__":
    main()
