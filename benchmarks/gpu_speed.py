"""How fast the local engine is on a GPU: against transformers' `generate`, and without its graphs.

Run by `python -m benchmarks.local_speed --device cuda [--path FOLDER | --shape NAME]`. A shape is a
model of the real dimensions with random weights, made on the GPU: speed does not depend on what the
weights are. Speeds are of decode, after all prompts are read.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from unittest.mock import patch

import torch

from benchmarks.report import publish, table
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider import runner as runner_module
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.cuda_graphs import DecodeGraphs
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.runner import Runner

SHAPES: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "llama-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": False,
        },
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3-1b": (
        "gemma3_text",
        {
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "max_position_embeddings": 32768,
        },
    ),
    "gpt-oss-12": (
        "gpt_oss",
        {
            "vocab_size": 201088,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_hidden_layers": 12,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "sliding_window": 128,
        },
    ),
}
"""Kinds of models and their dimensions: those of Llama 3.1 8B, Qwen3 0.6B, Gemma 3 1B, and half
the layers of GPT-OSS 20B."""

CELLS: Final = ((1, 1000), (8, 1000), (64, 1000), (1, 32000), (8, 32000))
"""Numbers of concurrent rows, and of tokens in each one's prompt."""

MOST_TOKENS: Final = 64000
"""Maximum number of prompt tokens, of all rows, for the slower ways."""

STEPS: Final = 64
AGREEMENT: Final = ("qwen3-0.6b", "gemma3-1b")
TEMPLATE: Final = "{% for m in messages %}{{ m.content }}{% endfor %}"


def random_model(shape: str, dtype: torch.dtype, spread: float = 0.02) -> Any:
    """Return a model of a shape with random weights, made on the GPU. `spread`: of its weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, fields = SHAPES[shape]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        **fields, initializer_range=spread, eos_token_id=0, pad_token_id=0
    )
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def letters(vocabulary: int) -> Any:
    """Return a tokenizer that reads bytes; each other token is a word of its own."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    pieces = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"Ġword{i}" for i in range(vocabulary - len(pieces))]
    backend = Tokenizer(kinds.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=pieces[0], chat_template=TEMPLATE
    )


def load(path: str | None, shape: str) -> tuple[LoadedModel, ChatFormat]:
    if path is not None:
        loaded = models.load(models.ModelSpec(path=path, device="cuda"))
        return loaded, ChatFormat(loaded.tokenizer, models.end_ids(loaded))
    model = random_model(shape, torch.bfloat16)
    tokenizer = letters(model.config.vocab_size)
    return LoadedModel(model, tokenizer), ChatFormat(tokenizer, {0})


def make_runner(model: Any, context: int) -> Runner:
    """Return a runner of a model that may have had one before."""
    use_own_attention(model)
    return Runner(model, context=context)


def use_own_attention(model: Any) -> None:
    """Make a model that may have a runner compute attention as transformers does."""
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


@dataclass(frozen=True, slots=True)
class Speed:
    """What a batch of equal requests did."""

    read: float
    """Prompt tokens per second."""

    written: float
    """Generated tokens per second, after the prompts."""

    busy: float
    """Share of that time in which the GPU worked; the rest is the host's."""


def text_of(number: int, tokens: int) -> str:
    """Return a text of so many letters, which differs from that of other numbers."""
    return (f"{number:03d}" + "abcdefgh " * (tokens // 9 + 1))[:tokens]


def serve(runner: Runner, form: ChatFormat, rows: int, context: int, profiled: int = 8) -> Speed:
    """Return the speed of `rows` concurrent greedy requests with prompts of `context` tokens."""
    capacity = Capacity(rows=rows, chunk=2048, kv_bytes=1 << 40, prefix_bytes=0)
    batch = Batch(runner, form, capacity)
    events: list[list[Event]] = [[] for _ in range(rows)]
    for number, seen in enumerate(events):
        request = EngineRequest(
            messages=[{"role": "user", "content": text_of(number, context)}],
            sampling=SamplingParams(temperature=0),
            max_tokens=STEPS + 4 * profiled + 16,
            logit_bias=dict.fromkeys(form.end_ids, -100.0),
        )
        batch.add(Submission(request, seen.append))
    reading = timed(lambda: run_until(batch, lambda: all(events)))
    steps(batch, 8)  # graphs are captured
    seconds = timed(lambda: steps(batch, STEPS))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        steps(batch, profiled)
        torch.cuda.synchronize()
    worked = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    for seen in events:
        failures = [event for event in seen if isinstance(event, Exception)]
        if failures:
            raise failures[0]
    run_until(batch, lambda: batch.idle)
    return Speed(
        rows * context / reading, rows * STEPS / seconds, worked / profiled / (seconds / STEPS)
    )


def steps(batch: Batch, count: int) -> None:
    for _ in range(count):
        batch.step()


def run_until(batch: Batch, done: Callable[[], bool]) -> None:
    while not done():
        batch.step()


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def generate(model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Return what transformers' `generate` writes to prompts of one length, all at once."""
    ids = torch.tensor(prompts, device="cuda")
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
    )
    return [row[ids.shape[1] :] for row in out.tolist()]


def generate_speed(loaded: LoadedModel, form: ChatFormat, rows: int, context: int) -> float:
    """Return the tokens per second of `generate`, after the prompts."""
    prompts = [
        form.encode([{"role": "user", "content": text_of(number, context)}])
        for number in range(rows)
    ]
    use_own_attention(loaded.model)
    generate(loaded.model, prompts, 2)
    first = timed(lambda: generate(loaded.model, prompts, 1))
    both = timed(lambda: generate(loaded.model, prompts, 1 + STEPS // 2))
    return rows * (STEPS // 2) / (both - first)


def without_graphs() -> AbstractContextManager[object]:
    return patch.object(DecodeGraphs, "step", lambda _self, _feeds: None)


def without_kernels() -> AbstractContextManager[object]:
    return patch.object(runner_module, "kernels_for", lambda _device, _dtype: None)


def attempt(work: Callable[[], str]) -> str:
    """Return a cell of the table; a failure is shown, not raised."""
    try:
        return work()
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        return type(exc).__name__
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def speeds(loaded: LoadedModel, form: ChatFormat, cells: Sequence[tuple[int, int]] = CELLS) -> str:
    """Return the table of speeds: the engine, without graphs, without kernels, `generate`."""
    longest = max(context for _, context in cells) + 1024
    lines = []
    plain = {cell: attempt(partial(show_generate, loaded, form, *cell)) for cell in cells}
    served: dict[str, dict[tuple[int, int], str]] = {}
    engine = nullcontext()
    for name, given in (
        ("engine", engine),
        ("without graphs", without_graphs()),
        ("without kernels", without_kernels()),
    ):
        with given:
            runner = make_runner(loaded.model, longest)
            served[name] = {}
            for cell in cells:
                if given is not engine and cell[0] * cell[1] > MOST_TOKENS:
                    served[name][cell] = "-"
                    continue
                served[name][cell] = attempt(partial(show, runner, form, *cell))
                print(f"{name} {cell}: {served[name][cell]}", file=sys.stderr, flush=True)
            del runner
    for cell in cells:
        lines.append(
            (f"{cell[0]}", f"{cell[1]}", *(of[cell] for of in served.values()), plain[cell])
        )
    return table(("rows", "prompt", *served, "`generate`"), lines)


def show_generate(loaded: LoadedModel, form: ChatFormat, rows: int, context: int) -> str:
    """Return the cell of `generate`."""
    if rows * context > MOST_TOKENS:
        return "-"
    return f"{generate_speed(loaded, form, rows, context):.0f}"


def show(runner: Runner, form: ChatFormat, rows: int, context: int) -> str:
    found = serve(runner, form, rows, context)
    return f"{found.written:.0f} ({found.busy:.0%}; {found.read:.0f})"


def growth(loaded: LoadedModel, rows: int = 48) -> str:
    """Return the table of memory held and at the peak, while rows come one by one."""
    lines = []
    for name, given in (("engine", nullcontext()), ("without kernels", without_kernels())):
        with given:
            lines.append((name, *grown(make_runner(loaded.model, 8192), rows)))
    return table((f"{rows} rows of 1,024 tokens", "GiB held", "GiB at the peak", "ms"), lines)


@torch.inference_mode()
def grown(runner: Runner, rows: int) -> tuple[str, str, str]:
    """Return the GiB that rows hold, the GiB at the peak, and the milliseconds it took."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: [runner.kv_cache.new(tokens=1024) for _ in range(rows)])
    held, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    for row in list(runner.kv_cache.rows()):
        runner.free(row)
    return (
        f"{(held - before) / 2**30:.1f}",
        f"{(peak - before) / 2**30:.1f}",
        f"{1000 * seconds:.0f}",
    )


def texts(runner: Runner, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Return the greedy tokens of prompts that are served together, joining one per step."""
    rows: list[Any] = []
    written: list[list[int]] = []
    while not written or min(map(len, written)) < tokens:
        feeds = [(row, of_row[-1:]) for row, of_row in zip(rows, written, strict=True)]
        if len(rows) < len(prompts):
            rows.append(runner.begin(None, 0))
            feeds.append((rows[-1], list(prompts[len(rows) - 1])))
            written.append([])
        for of_row, token in zip(written, runner.step(feeds).argmax(-1).tolist(), strict=True):
            of_row.append(token)
    for row in rows:
        runner.free(row)
    return [of_row[:tokens] for of_row in written]


def agreement(shape: str, dtype: torch.dtype, tokens: int = 24) -> tuple[str, ...]:
    """Return how many greedy tokens agree with `generate`, one prompt at a time.

    A sequence counts up to its first difference.
    """
    model = random_model(shape, dtype, spread=0.05)
    lengths = (700, 3, 40, 300, 1, 1500, 90, 260)
    prompts = [[1 + (7 * i + n) % 250 for i in range(n)] for n in lengths]
    wanted = [generate(model, [prompt], tokens)[0] for prompt in prompts]
    cells = []
    for given in (nullcontext(), without_graphs(), without_kernels()):
        with given:
            found = texts(make_runner(model, 4096), prompts, tokens)
        same = [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), tokens)
            for x, y in zip(found, wanted, strict=True)
        ]
        cells.append(f"{sum(same)} of {tokens * len(prompts)}")
    return (shape, str(dtype).removeprefix("torch."), *cells)


def agreements() -> str:
    lines = [agreement(kind, torch.float32) for kind in AGREEMENT]
    return table(("model", "type", "engine", "without graphs", "without kernels"), lines)


def loading(loaded: LoadedModel) -> str:
    """Return the times to load a checkpoint to the GPU, and what memory is left after unloading."""
    with tempfile.TemporaryDirectory() as folder:
        use_own_attention(loaded.model)
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        spec = models.ModelSpec(path=folder, device="cuda", dtype="bfloat16")
        lines = []
        for round_ in ("first", "again"):
            gc.collect()
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
            batches: list[Batch] = []
            seconds = timed(lambda: batches.append(models.start(spec)))  # noqa: B023
            weights = batches[0].weight_bytes
            held = free - torch.cuda.mem_get_info()[0]
            batches.clear()
            gc.collect()
            torch.cuda.empty_cache()
            left = free - torch.cuda.mem_get_info()[0]
            lines.append(
                (
                    round_,
                    *(f"{size / 2**30:.2f}" for size in (weights, held, left)),
                    f"{seconds:.1f}",
                )
            )
    return table(("load", "GiB of weights", "GiB held", "GiB left after", "seconds"), lines)


def measure(path: str | None, shape: str, *, write: bool) -> None:
    """Run all parts on one model, and publish the result."""
    loaded, form = load(path, shape)
    parts = {
        "Tokens per second of decode; in brackets the share of that time in which the GPU worked, "
        "and the prompt tokens per second. Without kernels the engine works as on a CPU:": (
            lambda: speeds(loaded, form)
        ),
        "Memory of the KV cache while rows come:": lambda: growth(loaded),
        "Greedy tokens that agree with `generate`, up to the first difference of each sequence:": (
            agreements
        ),
        "Loading and unloading:": lambda: loading(loaded),
    }
    model = path or f"{shape} with random weights"
    body = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {model}, bfloat16."
    for caption, run in parts.items():
        found = attempt(run)
        print(f"{caption}\n\n{found}\n", file=sys.stderr, flush=True)
        body += f"\n\n{caption}\n\n{found}"
    title = f"The local engine on a GPU: {path or shape}"
    what = f"--path {path}" if path else f"--shape {shape}"
    publish(title, f"benchmarks.local_speed --device cuda {what}", body, write=write)
