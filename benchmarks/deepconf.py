"""What DeepConf's choice of traces is worth, on traces of a known law, against a plain vote.

    python -m benchmarks.deepconf [--problems 2000] [--write]

Problems are of mixed difficulty: a trace is right with a probability drawn from
Beta(2p, 2(1 - p)), independently of the others; of the wrong answers one has a share of 0.6. A
trace has 48 tokens. Their confidence is normal (standard deviation 0.7) around the trace's own
level, which is normal (standard deviation 1). Where confidence tells something, right traces have a
level that is higher by 1: a right trace is then surer than a wrong one in 76 % of pairs. The vote
is that of all traces that were begun, stopped or not. `tokens` is in whole traces.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any, Final

from benchmarks.report import parser, publish, table
from optillm_hooks.decoding.deepconf import DeepConfSettings, Election

TOKENS: Final = 48
RIGHT: Final = "42"
VARIANTS: Final[Mapping[str, dict[str, Any]]] = {
    "defaults": {},
    "low, 16 traces": {"variant": "low", "warmup_samples": 16, "max_traces": 16},
    "low, 16 to 128 traces": {"variant": "low", "warmup_samples": 16, "max_traces": 128},
    "high, 16 to 128 traces": {"variant": "high", "warmup_samples": 16, "max_traces": 128},
}


def trace(rng: random.Random, p: float, shift: float) -> tuple[str, list[float]]:
    """Return the answer and the tokens' confidences of a trace that is right with probability p."""
    answer = RIGHT if rng.random() < p else rng.choices(["41", "43", "40"], [0.6, 0.3, 0.1])[0]
    level = rng.gauss(10 + shift * (answer == RIGHT), 1)
    return answer, [rng.gauss(level, 0.7) for _ in range(TOKENS)]


def solve(
    rng: random.Random, p: float, shift: float, settings: DeepConfSettings
) -> tuple[str, list[str], int]:
    """Return the answer to one problem, the answers of all traces begun, and their tokens."""
    election, begun, tokens = Election(settings), list[str](), 0
    while election.wanted > 0:
        together = 1 if begun else election.wanted
        for number, monitor in [election.open() for _ in range(together)]:
            answer, confidences = trace(rng, p, shift)
            stopped = any(monitor.add(confidence) for confidence in confidences)
            tokens += len(monitor.confidences)
            begun.append(answer)
            told = None if stopped else answer
            election.close(number, monitor, answer, told, "stop", stopped=stopped)
        while election.count():
            pass
    return election.outcome().text, begun, tokens


def measure(p: float, shift: float, given: Mapping[str, Any], problems: int) -> tuple[str, ...]:
    """Return a row of the table: accuracies, their difference, traces and tokens."""
    rng, settings = random.Random(2026), DeepConfSettings(**given)  # noqa: S311 (no secret)
    right, voted = list[bool](), list[bool]()
    traces, tokens = list[int](), list[int]()
    for _ in range(problems):
        answer, begun, spent = solve(rng, rng.betavariate(2 * p, 2 * (1 - p)), shift, settings)
        right.append(answer == RIGHT)
        voted.append(Counter(begun).most_common(1)[0][0] == RIGHT)
        traces.append(len(begun))
        tokens.append(spent)
    gains = [100 * (one - other) for one, other in zip(right, voted, strict=True)]
    gain = fmean(gains)
    error = math.sqrt(fmean((each - gain) ** 2 for each in gains) / problems)
    return (
        "76 %" if shift else "nothing",
        f"{p:g}",
        f"{100 * fmean(right):.1f}",
        f"{100 * fmean(voted):.1f}",
        f"{gain:+.1f} ± {error:.1f}",
        f"{fmean(traces):.1f}",
        f"{fmean(tokens) / TOKENS:.1f}",
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=int, default=2000)
    given = options.parse_args()
    head = ("settings", "confidence tells", "p", "right, %", "vote, %", "gain", "traces", "tokens")
    rows = [
        (name, *measure(p, shift, variant, given.problems))
        for name, variant in VARIANTS.items()
        for shift in (0.0, 1.0)
        for p in (0.5, 0.7)
    ]
    body = f"{given.problems} problems in each row; ± is one standard error.\n\n{table(head, rows)}"
    publish("DeepConf and a plain vote", "benchmarks.deepconf", body, write=given.write)


if __name__ == "__main__":
    main()
