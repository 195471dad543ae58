import random
import time
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.decoding.confidence import listed_confidence, listed_margin
from optillm_hooks.decoding.deepconf import (
    DeepConfSettings,
    Election,
    Metric,
    SampledTrace,
    Vote,
    adapted_window,
    threshold,
    trace_confidence,
)
from optillm_hooks.local_provider.decoding.base import BranchOutput
from optillm_hooks.local_provider.decoding.deepconf import DeepConf
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty, measure_uncertainty


def test_the_lowest_group_is_worked_out_by_hand() -> None:
    """Windows of 2 over 4, 2, 1, 5: means 3, 1.5, 3."""
    assert trace_confidence([4, 2, 1, 5], 2, "lowest_group") == 1.5
    assert trace_confidence([4, 2], 10, "lowest_group") == 3
    assert trace_confidence([], 10, "lowest_group") == 0


@given(confidences=st.lists(st.floats(0, 20), min_size=1, max_size=30), window=st.integers(1, 40))
def test_the_running_sum_agrees_with_the_definition(confidences: list[float], window: int) -> None:
    width = min(window, len(confidences))
    means = [sum(confidences[i : i + width]) / width for i in range(len(confidences) - width + 1)]
    lowest = trace_confidence(confidences, window, "lowest_group")
    assert lowest == pytest.approx(min(means), abs=1e-9)
    assert trace_confidence(confidences, window, "tail") == pytest.approx(means[-1], abs=1e-9)


def test_the_threshold_is_the_percentile_of_the_share_kept() -> None:
    """Of 1..11 the 90th percentile is 10, the 10th is 2; of 1, 2 the 90th is 1.9."""
    numbers = [float(i) for i in range(1, 12)]
    assert threshold(numbers, 0.1) == pytest.approx(10)
    assert threshold(numbers, 0.9) == pytest.approx(2)
    assert threshold([1.0, 2.0], 0.1) == pytest.approx(1.9)


def test_short_traces_get_a_window_that_they_fill() -> None:
    assert adapted_window([400, 800, 1200], 2048) == 200
    assert adapted_window([10, 12], 2048) == 16
    assert adapted_window([100_000], 2048) == 2048


def test_the_vote_is_a_sum_so_a_majority_beats_one_confident_outlier() -> None:
    vote = Vote([SampledTrace("4", "4", 10.0)] * 9 + [SampledTrace("9", "9", 11.0)])
    assert vote.weights() == {"4": 90.0, "9": 11.0}
    assert vote.winner().text == "4"


def test_equivalent_answers_are_one_and_the_surest_of_their_traces_is_returned_whole() -> None:
    traces = [
        SampledTrace("I say 3/2", "3/2", 9.0),
        SampledTrace("It is 1/2.", "1/2", 4.0),
        SampledTrace("I do not know", None, 99.0),
        SampledTrace("So 0.5, done.", "0.5", 6.0),
    ]
    vote = Vote(traces)
    assert vote.weights() == {"3/2": 9.0, "1/2": 10.0}
    assert vote.winner().text == "So 0.5, done."


def test_a_later_answer_can_part_what_was_one() -> None:
    """A bare number is the only quantity with that number, and none where there are two."""
    vote = Vote([SampledTrace("", "18", 1.0), SampledTrace("", "$18", 2.0)])
    assert vote.weights() == {"18": 3.0}
    vote.add(SampledTrace("", "18 km", 4.0))
    assert vote.weights() == {"18": 1.0, "$18": 2.0, "18 km": 4.0}


def test_a_tie_goes_to_the_first_answer_and_no_answer_at_all_to_the_surest_trace() -> None:
    tied = [SampledTrace("a", "1", 2.0), SampledTrace("b", "2", 2.0)]
    assert Vote(tied).winner() is tied[0]
    mute = [SampledTrace("a", None, 2.0), SampledTrace("b", None, 3.0)]
    assert Vote(mute).winner() is mute[1]
    assert not Vote(mute).has_consensus(0.5)


def test_a_thousand_votes_on_forty_formulas_are_counted_after_each_in_no_time() -> None:
    """Some 20 ms. With answers compared anew for each count it would be many seconds."""
    rng = random.Random(0)
    formulas = [f"\\frac{{{n}x^2+{n + 1}}}{{\\sqrt{{{n + 2}}}}}" for n in range(40)]
    vote = Vote()
    started = time.process_time()
    for _ in range(1024):
        vote.add(SampledTrace("", rng.choice(formulas), 1.0))
        vote.has_consensus(0.95)
    assert time.process_time() - started < 2
    assert len(vote.weights()) == 40


def written(text: str, stopped: bool = False) -> BranchOutput:
    return BranchOutput(text, (), (), "stop", stopped)


def run(method: DeepConf, confidences: list[float], text: str) -> bool:
    """Write one trace; returns whether it was stopped."""
    branch = method.open()
    assert branch is not None
    for confidence in confidences:
        branch.emit(1, Uncertainty(confidence=confidence), end=False)
        if branch.stopped:
            break
    method.close(branch, written(text, branch.stopped))
    return branch.stopped


def test_a_trace_that_falls_below_the_floor_is_stopped_and_does_not_vote() -> None:
    method = DeepConf(
        DeepConfSettings(warmup_samples=3, max_traces=5, variant="high"), SamplingParams()
    )
    assert method.wanted == 3
    run(method, [10.0] * 64, "it is 1")
    run(method, [9.5] * 64, "it is 2")
    run(method, [9.0] * 64, "it is 3: below the floor of 9.1 that the three of them set")
    assert method.wanted == 2
    assert run(method, [12.0] * 10 + [1.0] * 50, "it is 4")
    assert not run(method, [12.0] * 64, "it is 1")
    outcome = method.outcome()
    assert outcome.facts["stopped"] == 1
    assert outcome.facts["votes"] == [22.0, 9.5]
    assert outcome.text == "it is 1"


def test_traces_that_say_one_half_outvote_a_surer_one_that_says_three_halves() -> None:
    settings = DeepConfSettings(
        warmup_samples=4, max_traces=4, variant="high", consensus_threshold=1
    )
    method = DeepConf(settings, SamplingParams())
    run(method, [9.0] * 20, "The answer is 1/2.")
    run(method, [16.0] * 20, "The answer is 3/2.")
    run(method, [9.5] * 20, "so \\boxed{\\frac{1}{2}}")
    run(method, [10.0] * 20, "ANSWER: 0.5")
    outcome = method.outcome()
    assert outcome.text == "ANSWER: 0.5"
    assert outcome.facts["votes"] == [19.5, 16.0]


def test_confidences_that_are_not_numbers_still_give_a_reply() -> None:
    """A provider that lists a log-probability of minus infinity makes them so."""
    method = DeepConf(DeepConfSettings(warmup_samples=2, max_traces=2), SamplingParams())
    run(method, [float("nan")] * 20, "it is 1")
    run(method, [float("nan")] * 20, "it is 2")
    assert method.outcome().text == "it is 1"


def test_consensus_ends_the_sampling_and_stops_what_still_runs() -> None:
    settings = DeepConfSettings(
        warmup_samples=2, max_traces=50, variant="high", consensus_threshold=0.7
    )
    method = DeepConf(settings, SamplingParams())
    run(method, [10.0] * 20, "it is 1")
    run(method, [10.0] * 20, "it is 2")
    ended, running = method.open(), method.open()
    assert ended is not None
    assert running is not None
    ended.emit(1, Uncertainty(confidence=20.0), end=False)
    assert not running.stopped
    method.close(ended, written("it is 1"))
    assert method.wanted == 0
    assert running.stopped


def test_what_a_trace_weighs_is_worked_out_by_hand() -> None:
    """Windows of 2 over 4, 2, 1, 7: means 3, 1.5, 4; of 11 windows the lowest two make a tenth."""
    trace = [4.0, 2.0, 1.0, 7.0]
    assert trace_confidence(trace, 2, "lowest_group") == 1.5
    assert trace_confidence(trace, 2, "average_confidence") == 3.5
    assert trace_confidence(trace, 2, "bottom_10_percent") == 1.5
    assert trace_confidence(trace, 2, "tail") == 4
    assert trace_confidence(trace, 9, "tail") == 3.5
    rising = [float(i) for i in range(12)]
    assert trace_confidence(rising, 2, "bottom_10_percent") == (0.5 + 1.5) / 2
    assert {trace_confidence([], 2, metric) for metric in get_args(Metric)} == {0.0}


@pytest.mark.parametrize(
    ("metric", "most", "answer", "vote"),
    [
        ("lowest_group", 2, "2", 5),
        ("average_confidence", 2, "1", 6),
        ("tail", 2, "1", 10),
        ("tail", 3, "2", 5),
    ],
)
def test_offline_the_metric_says_who_votes_and_online_the_lowest_group(
    metric: Metric, most: int, answer: str, vote: float
) -> None:
    """Groups of 16: the first trace has 2 and then 10 (mean 6, tail 10), the second 5 throughout.

    Low lets only the better of two pass. A third trace makes it the online form.
    """
    settings = DeepConfSettings(
        warmup_samples=2, max_traces=most, confidence_metric=metric, consensus_threshold=1
    )
    method = DeepConf(settings, SamplingParams())
    run(method, [2.0] * 16 + [10.0] * 16, "it is 1")
    run(method, [5.0] * 32, "it is 2")
    outcome = method.outcome()
    assert (outcome.text, outcome.facts["votes"]) == (f"it is {answer}", [vote])


@given(order=st.permutations(range(5)))
def test_the_vote_does_not_depend_on_the_order_in_which_traces_end(order: list[int]) -> None:
    """After two warm-up traces five run at once; the third of them makes the consensus."""
    settings = DeepConfSettings(
        warmup_samples=2, max_traces=7, variant="high", consensus_threshold=0.6
    )
    election = Election(settings)
    for answer in ("1", "2"):
        number, monitor = election.open()
        monitor.add(10.0)
        election.close(number, monitor, answer, answer, "stop", stopped=False)
    while election.count():
        pass
    running = [election.open() for _ in range(5)]
    answers = ("3", "1", "1", "2", "2")
    for at in order:
        number, monitor = running[at]
        monitor.add(20.0)
        election.close(number, monitor, answers[at], answers[at], "stop", stopped=False)
    outcome = election.outcome()
    assert outcome.text == "1"
    assert outcome.facts == {"traces": 5, "stopped": 0, "votes": [50.0, 20.0, 10.0]}


def test_a_list_of_alternatives_measures_as_the_whole_distribution_does() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * 4
    for row, seen in zip(
        logits.log_softmax(-1), measure_uncertainty(logits, {"margin", "confidence"}), strict=True
    ):
        listed = row.topk(20).values.flip(0).tolist()
        assert listed_margin(listed) == pytest.approx(seen.margin, abs=1e-6)
        assert listed_confidence(listed) == pytest.approx(seen.confidence, abs=1e-5)
    assert listed_margin([]) == listed_confidence([]) == 0
    assert listed_margin([0.0]) == 1
