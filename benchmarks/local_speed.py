"""How fast the local engine is: against the plain way, the machine's limits, and llama.cpp.

    python -m benchmarks.local_speed [--tokens 128] [--threads 2] [--only CASE] [--write]
    python -m benchmarks.local_speed --device cuda [--path FOLDER | --shape NAME] [--write]

Each case runs the engine's batch and its baseline one after the other, with transformers' own
`generate` and the same weights as the baseline; the ratio of their seconds is what counts. Times on
a machine that does other work swing; the ratio swings less, as both sides share the weather.

The least a step can take is the larger of two times: to read all weights once at the bandwidth at
which this machine sums a large array, and to multiply them with every token fed at the rate at
which it multiplies two matrices of 1024 x 1024 (of int8 for weights in int8); attention counts for
nothing. A case is held against the sum over the steps that it cannot do without.

The speeds of all types of weights, and of the engines of `benchmarks.other_engines` that are
installed, are measured in turns; each is the best of two.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, Final
from unittest.mock import patch

import torch

from benchmarks import gpu_speed
from benchmarks.other_engines import Speed, other_engines
from benchmarks.report import parser, publish, table
from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import batch as batching
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Finished,
    Piece,
    PromptTooLong,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.gguf_blocks import BlockWeight
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.machine import cpus

QUESTION: Final = "Explain how a river shapes the land around it."
DTYPES: Final = ("float32", "bfloat16")
WEIGHTS: Final[Mapping[str, Mapping[str, str]]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "weights": "int8"},
    "Q4_1 blocks": {"dtype": "auto"},
}
"""The settings of the model, by the type of its weights."""

BUSY: Final = 31
ROWS: Final = (1, 8, 32)
TEXTS: Final = [f"{number}. {QUESTION}" for number in range(max(ROWS))]
MOST_TOKENS: Final = 64
"""Of a sequence in the table of speeds."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds of one case."""

    ours: float
    plain: float
    least: float
    """What the machine needs for it."""

    def __str__(self) -> str:
        share = 100 * self.least / self.ours
        return (
            f"{self.plain / self.ours:.2f} ({self.ours:.2f} s : {self.plain:.2f} s), {share:.0f} %"
        )


class Bench:
    """The engine's batch and transformers' own model, with the same weights."""

    def __init__(self, weights: str, tokens: int) -> None:
        spec = models.find("smollm2").model_copy(update={**WEIGHTS[weights], "device": "cpu"})
        self.loaded: LoadedModel = models.load(spec)
        self.numbers = _numbers(self.loaded.model)
        self._rate_of = torch.int8 if weights == "int8" else self.loaded.model.dtype
        self.format = ChatFormat(self.loaded.tokenizer, models.end_ids(self.loaded))
        self.runner = Runner(models.load(spec).model)
        self.tokens = tokens
        # Every reply has its full length, so that both sides write the same number of tokens.
        self.endless = dict.fromkeys(self.format.end_ids, -100.0)

    def batch(self, prefix_bytes: int = 0) -> Batch:
        return Batch(self.runner, self.format, Capacity(prefix_bytes=prefix_bytes))

    def make_request(self, text: str, **fields: Any) -> EngineRequest:
        given = {"sampling": SamplingParams(temperature=0), "max_tokens": self.tokens, **fields}
        messages = [{"role": "user", "content": text}]
        return EngineRequest(messages=messages, logit_bias=self.endless, **given)

    def encoded(self, text: str) -> list[int]:
        return self.format.encode([{"role": "user", "content": text}])

    def run(self, batch: Batch, *requests: EngineRequest) -> int:
        """Serve all concurrently; return the number of generated tokens."""
        events: list[Event] = []
        for request in requests:
            batch.add(Submission(request, events.append))
        while not batch.idle:
            batch.step()
        return sum(event.completion_tokens for event in events if isinstance(event, Finished))

    def generate(self, text: str, tokens: int | None = None, **sampling: Any) -> int:
        """Serve one request with `generate`; return the number of generated tokens."""
        ids = torch.tensor([self.encoded(text)])
        count = tokens or self.tokens
        out = self.loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            **({"do_sample": False} | sampling),
        )
        return int(out.shape[1] - ids.shape[1])

    def read(self, *texts: str) -> float:
        """Return the minimum seconds in which the machine can prefill these prompts."""
        return self.step(sum(len(self.encoded(text)) for text in texts))

    def write(self, rows: int) -> float:
        """Return the minimum seconds of `rows` concurrent replies, after their first tokens."""
        return (self.tokens - 1) * self.step(rows)

    def step(self, fed: int) -> float:
        """Return the minimum seconds of a step with `fed` tokens."""
        work = 2 * self.numbers * fed
        seconds: float = max(
            self.runner.weight_bytes / bandwidth(), work / matrix_rate(self._rate_of)
        )
        return seconds

    def single(self) -> Timing:
        """One request, compared with `generate`; best of three alternating runs."""
        ours, plain = paired(
            lambda: self.run(self.batch(), self.make_request(QUESTION)),
            lambda: self.generate(QUESTION),
        )
        return Timing(ours, plain, self.read(QUESTION) + self.write(1))

    def crowd(self) -> Timing:
        """16 concurrent requests, compared with sequential ones."""
        texts = [f"{QUESTION} Say {i} things." for i in range(16)]
        ours = timed(lambda: self.run(self.batch(), *map(self.make_request, texts)))
        plain = timed(lambda: sum(map(self.generate, texts[:2]))) * 8
        return Timing(ours, plain, self.read(*texts) + self.write(16))

    def cot(self) -> Timing:
        """CoT decoding, k=10, compared with sequential branches."""
        return self._branches(QUESTION)

    def cot_long(self) -> Timing:
        """CoT decoding, k=10, with a prompt of 1,100 tokens, compared with sequential branches."""
        return self._branches(QUESTION * 106)

    def deepconf(self) -> Timing:
        """DeepConf, 16 traces, compared with sequential samples."""
        settings = DeepConfSettings(warmup_samples=16, max_traces=16)
        request = self.make_request(QUESTION, decoding=settings, sampling=SamplingParams(0.7))
        ours = timed(lambda: self.run(self.batch(), request))
        plain = timed(
            lambda: [self.generate(QUESTION, do_sample=True, temperature=0.7) for _ in range(2)]
        )
        return Timing(ours, plain * 8, self.read(QUESTION) + self.write(16))

    def reuse(self) -> Timing:
        """First token after a cached prefix of 280 tokens, compared with an uncached request.

        Each the best of three.
        """
        seen, new, *others = (
            f"{QUESTION * 25} {word}?" for word in ("Why", "Who", "How", "Where", "When")
        )
        known, first_token = (
            self.batch(prefix_bytes=1 << 28),
            partial(self.make_request, max_tokens=1),
        )
        self.run(known, first_token(seen))
        requests = map(first_token, others)
        ours, plain = paired(
            lambda: self.run(known, next(requests)),
            lambda: self.run(self.batch(), first_token(new)),
        )
        before, ids = self.encoded(seen), self.encoded(new)
        shared = next(i for i, token in enumerate(ids) if token != before[i])
        return Timing(ours, plain, self.step(len(ids) - shared))

    def stall(self) -> Timing:
        """Longest step during another prompt's prefill of 2,000 tokens, compared with all of it.

        The step holds at most 256 tokens of the prompt.
        """
        batch, steps = self.batch(), list[float]()
        events: list[Event] = []
        batch.add(Submission(self.make_request(QUESTION), events.append))
        while not any(isinstance(event, Piece) for event in events):
            batch.step()
        batch.add(Submission(self.make_request(QUESTION * 195, max_tokens=1), events.append))
        while not any(isinstance(event, Finished) for event in events):
            steps.append(timed(batch.step))
        for_all = timed(lambda: self.generate(QUESTION * 195, 1))
        while not batch.idle:
            batch.step()
        return Timing(max(steps), for_all, self.step(256))

    def beside(self) -> Timing:
        """First token of a short request next to 31 rows, compared with three of their steps."""
        batch, events = self.batch(), list[Event]()
        begun: list[list[Event]] = [[] for _ in range(BUSY)]
        for number, seen in enumerate(begun):
            batch.add(Submission(self.make_request(f"{number}. {QUESTION}"), seen.append))
        while not all(begun):
            batch.step()
        step = sorted(timed(batch.step) for _ in range(9))[4]
        batch.add(Submission(self.make_request("Hi", max_tokens=1), events.append))

        def until_answered() -> None:
            while not any(isinstance(event, Finished) for event in events):
                batch.step()

        return Timing(timed(until_answered), 3 * step, self.step(BUSY + len(self.encoded("Hi"))))

    def behind(self) -> Timing:
        """First token of a short prompt behind one of 3,000 tokens, compared with first come."""
        ours = timed(self._answer_behind)
        with patch.object(batching, "chunk_prefills", first_come):
            plain = timed(self._answer_behind)
        return Timing(ours, plain, self.step(256))

    def _answer_behind(self) -> None:
        """Serve a short request until its first token, after one step of a long prompt."""
        batch, events = self.batch(), list[Event]()
        batch.add(Submission(self.make_request(QUESTION * 300, max_tokens=1), lambda _event: None))
        batch.step()
        batch.add(Submission(self.make_request(f"Say: {QUESTION}", max_tokens=1), events.append))
        while not events:
            batch.step()
        batch.fail(ProviderFailed("the measurement has ended"))
        assert isinstance(events[0], Piece)

    def refused(self) -> Timing:
        """Longest gap of a stream beside a refused prompt of 2 MB, compared with tokenizing it."""
        text = "The river shapes the land. " * 75_000
        engine, times, refusals = Engine("speed", self.batch), list[float](), list[str]()

        def ask() -> None:
            try:
                list(engine.stream_sync(self.make_request(text)))
            except PromptTooLong as exc:
                refusals.append(str(exc))

        asking = threading.Thread(target=ask)
        for event in engine.stream_sync(self.make_request(QUESTION)):
            times.append(time.perf_counter())
            if len(times) == 8:
                asking.start()
            assert isinstance(event, Piece | Finished)
        asking.join()
        engine.close()
        assert refusals
        gaps = [after - before for before, after in pairwise(times[7:])]
        return Timing(max(gaps), timed(lambda: self.encoded(text)), self.step(1))

    def _branches(self, text: str) -> Timing:
        request = self.make_request(text, decoding=CotSettings(k=10))
        ours, plain = paired(
            lambda: self.run(self.batch(), request), lambda: self.generate(text), rounds=2
        )
        return Timing(ours, plain * 10, self.read(text) + self.write(10))


def first_come(waiting: Sequence[int], chunk: int) -> list[int]:
    """Return what each row feeds in a step if prompts are read one after the other."""
    sizes = list[int]()
    for count in waiting:
        sizes.append(count if count <= 1 else min(count, chunk))
        chunk -= sizes[-1] if count > 1 else 0
    return sizes


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def paired(
    ours: Callable[[], object], plain: Callable[[], object], rounds: int = 3
) -> tuple[float, float]:
    """Return the least seconds that each took, over rounds in which they take turns."""
    seconds = [(timed(ours), timed(plain)) for _ in range(rounds)]
    return min(ours for ours, _ in seconds), min(plain for _, plain in seconds)


LEAST: Final[Mapping[str, str]] = {
    "single": "1",
    "crowd": "6 / 9",
    "cot": "5 / 8",
    "cot_long": "5.5",
    "deepconf": "7",
    "reuse": "4",
    "stall": "",
    "beside": "1",
    "behind": "3",
    "refused": "2",
}
"""Of each case the ratio below which something is wrong: of both types, or float32 / bfloat16."""


@cache
def bandwidth() -> float:
    """Return the bytes per second at which a large array is read."""
    array = torch.ones(1 << 26)
    return array.numel() * array.element_size() / min(timed(array.sum) for _ in range(5))


@cache
def matrix_rate(dtype: torch.dtype) -> float:
    """Return the operations per second of a large product."""
    a = torch.ones(1024, 1024, dtype=dtype)
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    multiply(a, a)
    return 2 * 1024**3 / min(timed(lambda: multiply(a, a)) for _ in range(5))


def _numbers(model: Any) -> int:
    """Return the number of weights of a model, those in blocks included."""
    blocks = [part.shape.numel() for part in model.modules() if isinstance(part, BlockWeight)]
    plain: list[int] = [weight.numel() for weight in model.parameters()]
    return sum(blocks) + sum(plain)


def speed(bench: Bench, rows: int) -> float:
    """Return the engine's tokens per second with `rows` concurrent requests."""
    few = min(bench.tokens, MOST_TOKENS)
    requests = [bench.make_request(text, max_tokens=few) for text in TEXTS[:rows]]
    return rows * few / timed(lambda: bench.run(bench.batch(), *requests))


def compare(benches: Sequence[Bench], names: Sequence[str]) -> str:
    """Return the table of the cases; per cent are of the machine's limit."""
    lines: list[tuple[str, ...]] = []
    for name in names:
        cells = []
        for bench in benches:
            cells.append(str(getattr(bench, name)()))
            print(f"{name}: {cells[-1]}", file=sys.stderr, flush=True)
        lines.append((str(getattr(Bench, name).__doc__).splitlines()[0], *cells, LEAST[name]))
    return table(("case", *DTYPES, "minimum"), lines)


def speeds(benches: Mapping[str, Bench], threads: int, tokens: int) -> str:
    """Return the table of speeds, ours with the share of the machine's limit."""
    named = {
        f"{name}, {bench.runner.weight_bytes / bench.numbers:.2f}": bench
        for name, bench in benches.items()
    }
    ours: dict[str, Speed] = {name: partial(speed, bench) for name, bench in named.items()}
    tokenizer = next(iter(benches.values())).loaded.tokenizer
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in TEXTS
    ]
    lines = []
    with other_engines(threads, min(tokens, MOST_TOKENS), prompts) as others:
        engines = {**ours, **others}
        for rows in ROWS:
            best = dict.fromkeys(engines, 0.0)
            for _ in range(2):
                for name, measure in engines.items():
                    best[name] = max(best[name], measure(rows))
            cells = [f"{reached:.0f}" for reached in best.values()]
            for i, (name, bench) in enumerate(named.items()):
                limit = rows / bench.step(rows)
                cells[i] += f" ({100 * best[name] / limit:.0f} % of {limit:.0f})"
            print(f"{rows} rows: {', '.join(cells)}", file=sys.stderr, flush=True)
            lines.append((str(rows), *cells))
        return table(("concurrent rows", *engines), lines)


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--threads", type=int, default=cpus())
    options.add_argument("--only", choices=LEAST, action="append")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--path", help="with cuda: the folder of a model")
    options.add_argument("--shape", choices=gpu_speed.SHAPES, default="llama-8b")
    given = options.parse_args()
    if given.device == "cuda":
        gpu_speed.measure(given.path, given.shape, write=given.write)
        return
    torch.set_num_threads(given.threads)
    benches = {weights: Bench(weights, given.tokens) for weights in WEIGHTS}
    for bench in benches.values():
        bench.run(bench.batch(), bench.make_request("Hi", max_tokens=4))
        bench.generate("Hi", 4)
    body = (
        f"SmolLM2-135M, {given.tokens} tokens, {given.threads} threads, torch {torch.__version__}."
        f"\n\nSpeedup over the baseline, and the share of the machine's limit that is reached:"
        f"\n\n"
        f"{compare([benches[dtype] for dtype in DTYPES], given.only or list(LEAST))}\n\n"
        f"Tokens per second, and the share of the machine's limit. Beside each type of weights: "
        f"the bytes of a weight.\n\n"
        f"{speeds(benches, given.threads, given.tokens)}"
    )
    publish("The local engine", "benchmarks.local_speed", body, write=given.write)


if __name__ == "__main__":
    main()
