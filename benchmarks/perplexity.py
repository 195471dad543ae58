"""What a type of weights loses: perplexity of one small model on Python's own documentation.

    python -m benchmarks.perplexity [--windows 6] [--write]

Perplexity is the exponential of the mean negative log-likelihood of a token after those before it,
here in windows of 512 tokens. Windows are compared in pairs: `change` is the ratio to the
perplexity in float32, with the 95 % interval of the mean over windows.
"""

import math
import pydoc_data.topics
import statistics
import sys
from collections.abc import Sequence
from typing import Final

import torch
from torch.nn.functional import cross_entropy

from benchmarks.local_speed import WEIGHTS
from benchmarks.report import parser, publish, table
from optillm_hooks.local_provider import models

WINDOW: Final = 512


@torch.inference_mode()
def losses(weights: str, windows: int) -> list[float]:
    """Return the mean negative log-likelihood of each window, in nats."""
    loaded = models.load(
        models.find("smollm2").model_copy(update={**WEIGHTS[weights], "device": "cpu"})
    )
    text = "\n\n".join(pydoc_data.topics.topics.values())
    ids = torch.tensor(loaded.tokenizer(text[: 8 * WINDOW * windows])["input_ids"])
    return [
        float(cross_entropy(loaded.model(window[None]).logits[0, :-1].float(), window[1:]))
        for window in ids[: WINDOW * windows].view(windows, WINDOW)
    ]


def change(found: Sequence[float], base: Sequence[float]) -> str:
    """Return the ratio of two perplexities in per cent, with its interval."""
    differences = [one - other for one, other in zip(found, base, strict=True)]
    mean = statistics.mean(differences)
    half = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    low, middle, high = (100 * math.expm1(mean + side) for side in (-half, 0, half))
    return f"{middle:+.2f} % [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--windows", type=int, default=6)
    given = options.parse_args()
    lines: list[tuple[str, ...]] = []
    base: list[float] = []
    for weights in WEIGHTS:
        found = losses(weights, given.windows)
        base = base or found
        perplexity = f"{math.exp(statistics.mean(found)):.3f}"
        lines.append((weights, perplexity, change(found, base) if found is not base else ""))
        print(*lines[-1], file=sys.stderr, flush=True)
    body = f"SmolLM2-135M, {given.windows} windows of {WINDOW} tokens.\n\n" + table(
        ("weights", "perplexity", "change"), lines
    )
    publish("Weights and perplexity", "benchmarks.perplexity", body, write=given.write)


if __name__ == "__main__":
    main()
