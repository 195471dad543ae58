"""How fast the local engine is: against the plain way, the machine's limits, and llama.cpp.

    python -m benchmarks.local_speed [--tokens 128] [--threads 2] [--only CASE] [--write]

Each case runs the engine's batch and its baseline one after the other, with transformers' own
`generate` and the same weights as the baseline; the ratio of their seconds is what counts. Times on
a machine that does other work swing; the ratio swings less, as both sides share the weather.

The least a step can take is the larger of two times: to read all weights once at the bandwidth at
which this machine sums a large array, and to multiply them with every token fed at the rate at
which it multiplies two matrices of 1024 x 1024; attention counts for nothing. A case is held
against the sum over the steps that it cannot do without. llama.cpp is the prebuilt wheel
`xllamacpp`, if installed, with the 4-bit weights of the file; what it saves in bandwidth is not
open to the others.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.report import parser, publish, table
from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.decoding.deepconf import DeepConfSettings
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Finished,
    Piece,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.models import LoadedModel
from optillm_hooks.local_provider.runner import Runner

QUESTION: Final = "Explain how a river shapes the land around it."
DTYPES: Final = ("float32", "bfloat16")
BUSY: Final = 31
ROWS: Final = (1, 8, 32)


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
        weights = list(self.loaded.model.parameters())
        size = sum(p.numel() * p.element_size() for p in weights)
        work = 2 * sum(p.numel() for p in weights) * fed
        seconds: float = max(size / bandwidth(), work / matrix_rate(weights[0].dtype))
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

    def _branches(self, text: str) -> Timing:
        request = self.make_request(text, decoding=CotSettings(k=10))
        ours, plain = paired(
            lambda: self.run(self.batch(), request), lambda: self.generate(text), rounds=2
        )
        return Timing(ours, plain * 10, self.read(text) + self.write(10))


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
}
"""Of each case the ratio below which something is wrong: of both types, or float32 / bfloat16."""


def bandwidth() -> float:
    """Return the bytes per second at which a large array is read."""
    array = torch.ones(1 << 26)
    return array.numel() * array.element_size() / min(timed(array.sum) for _ in range(5))


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large product."""
    a = torch.ones(1024, 1024, dtype=dtype)
    a @ a
    return 2 * 1024**3 / min(timed(lambda: a @ a) for _ in range(5))


def llama_cpp(threads: int, tokens: int) -> dict[int, float]:
    """Return llama.cpp's tokens per second by batch size; empty if it is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return {}
    import xllamacpp

    spec = models.find("smollm2")
    speeds: dict[int, float] = {}
    for rows in ROWS:
        given = xllamacpp.CommonParams()
        given.model.path = str(Path(spec.path) / str(spec.gguf_file))
        given.n_parallel, given.n_ctx, given.verbosity = rows, 512 * rows, -1
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
        server = xllamacpp.Server(given)

        def complete(number: int, of: Any = server) -> None:
            body = {"prompt": f"{number}. {QUESTION}", "n_predict": tokens}
            of.handle_completions({**body, "temperature": 0, "ignore_eos": True})

        complete(0)
        with ThreadPoolExecutor(rows) as threads_of_callers:
            begun = time.perf_counter()
            list(threads_of_callers.map(complete, range(rows)))
            seconds = time.perf_counter() - begun
        speeds[rows] = rows * tokens / seconds
    return speeds


def speed(bench: Bench, rows: int) -> float:
    """Return the engine's tokens per second with `rows` concurrent requests."""
    requests = [bench.make_request(f"{number}. {QUESTION}") for number in range(rows)]
    return rows * bench.tokens / timed(lambda: bench.run(bench.batch(), *requests))


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


def against_limits(benches: Sequence[Bench], threads: int, tokens: int) -> str:
    """Return the table of speeds against the machine's limits and llama.cpp."""
    others = llama_cpp(threads, tokens)
    lines = []
    for rows in ROWS:
        cells = []
        for bench in benches:
            reached, limit = speed(bench, rows), rows / bench.step(rows)
            cells.append(f"{reached:.0f} ({100 * reached / limit:.0f} % of {limit:.0f})")
        lines.append((str(rows), *cells, f"{others[rows]:.0f}" if rows in others else "-"))
    return table(("concurrent rows", *DTYPES, "llama.cpp, Q4_1"), lines)


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--only", choices=LEAST, action="append")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    benches = [Bench(dtype, given.tokens) for dtype in DTYPES]
    for bench in benches:
        bench.run(bench.batch(), bench.make_request("Hi", max_tokens=4))
        bench.generate("Hi", 4)
    body = (
        f"SmolLM2-135M, {given.tokens} tokens, {given.threads} threads, torch {torch.__version__}."
        f"\n\nSpeedup over the baseline, and the share of the machine's limit that is reached:"
        f"\n\n"
        f"{compare(benches, given.only or list(LEAST))}\n\n"
        f"Tokens per second, and the share of the machine's limit:\n\n"
        f"{against_limits(benches, given.threads, given.tokens)}"
    )
    publish("The local engine", "benchmarks.local_speed", body, write=given.write)


if __name__ == "__main__":
    main()
