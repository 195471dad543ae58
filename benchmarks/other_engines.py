"""Other engines on the same model and CPU, if their wheels are installed: llama.cpp and OpenVINO.

    pip install xllamacpp openvino-genai

Both read GGUF files: SmolLM2's own, in Q4_1, and one made from it in Q8_0, which has about as many
bytes for each weight as our int8.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

from optillm_hooks.local_provider import models

Speed = Callable[[int], float]
"""Tokens per second with a number of concurrent sequences."""

_Q8_0: Final = GGMLQuantizationType.Q8_0


@contextmanager
def other_engines(
    threads: int, tokens: int, prompts: Sequence[str]
) -> Iterator[Mapping[str, Speed]]:
    """Yield the engines that are installed, by name and bytes per weight.

    `prompts`: one for each sequence, with the chat template applied; `tokens`: of each reply.
    """
    spec = models.find("smollm2")
    small = Path(spec.path) / str(spec.gguf_file)
    engines: dict[str, Speed] = {}
    with tempfile.TemporaryDirectory() as folder:
        same = Path(folder) / "smollm2-q8_0.gguf"
        if importlib.util.find_spec("xllamacpp"):
            _write_q8_0(small, same)
            engines["llama.cpp Q4_1, 0.63"] = llama_cpp(small, threads, tokens, prompts)
            engines["llama.cpp Q8_0, 1.06"] = llama_cpp(same, threads, tokens, prompts)
        if importlib.util.find_spec("openvino_genai"):
            _write_q8_0(small, same)
            engines["OpenVINO Q8_0, 1.06"] = openvino(same, threads, tokens, prompts)
        yield engines


def llama_cpp(gguf: Path, threads: int, tokens: int, prompts: Sequence[str]) -> Speed:
    """Return the speed of llama.cpp's server, called in this process."""
    import xllamacpp

    def speed(rows: int) -> float:
        given = xllamacpp.CommonParams()
        given.model.path = str(gguf)
        given.n_parallel, given.n_ctx, given.verbosity = rows, 512 * rows, -1
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
        server = xllamacpp.Server(given)

        def complete(prompt: str) -> None:
            body = {"prompt": prompt, "n_predict": tokens, "temperature": 0}
            server.handle_completions({**body, "ignore_eos": True, "cache_prompt": False})

        complete(prompts[-1])
        with ThreadPoolExecutor(rows) as callers:
            begun = time.perf_counter()
            list(callers.map(complete, prompts[:rows]))
            return rows * tokens / (time.perf_counter() - begun)

    return speed


def openvino(gguf: Path, threads: int, tokens: int, prompts: Sequence[str]) -> Speed:
    """Return the speed of OpenVINO GenAI with continuous batching."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1  # GiB
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens, settings.ignore_eos, settings.do_sample = tokens, True, False
    settings.apply_chat_template = False
    pipeline: Any = openvino_genai.LLMPipeline(
        str(gguf), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
    )

    def speed(rows: int) -> float:
        pipeline.generate(prompts[-1:], settings)
        begun = time.perf_counter()
        pipeline.generate(list(prompts[:rows]), settings)
        return rows * tokens / (time.perf_counter() - begun)

    return speed


def _write_q8_0(source: Path, target: Path) -> None:
    """Write a GGUF file anew, with its matrices in Q8_0, unless that is done."""
    if target.exists():
        return
    reader = GGUFReader(source)
    architecture = "general.architecture"
    writer = GGUFWriter(target, reader.get_field(architecture).contents())
    for field in reader.fields.values():
        kind, *more = field.types
        if field.name != architecture and not field.name.startswith("GGUF."):
            of_items = more[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, of_items)
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) > 1:
            writer.add_tensor(tensor.name, quantize(numbers, _Q8_0), raw_dtype=_Q8_0)
        else:
            writer.add_tensor(tensor.name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
