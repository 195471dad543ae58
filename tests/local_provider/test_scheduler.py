from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.local_provider.scheduler import admit, chunk_prefills, whole_prefills


@dataclass(frozen=True)
class Request:
    rows: int
    wanted: int


def yes(_request: Request) -> bool:
    return True


def test_a_request_for_many_rows_does_not_keep_the_next_one_waiting() -> None:
    many, one = Request(0, 100), Request(0, 1)
    assert admit([many, one], 4, yes) == [many, one, many, many]


def test_rows_go_to_those_with_the_fewest_so_far() -> None:
    old, new = Request(3, 10), Request(0, 10)
    assert admit([old, new], 4, yes) == [new, new, new, old]


def test_a_request_without_memory_is_not_passed_by_smaller_ones() -> None:
    first, second = Request(0, 1), Request(0, 1)
    assert admit([first, second], 4, lambda request: request is second) == []


def test_a_request_that_has_rows_waits_for_more_without_blocking_others() -> None:
    big, small = Request(0, 1), Request(2, 5)
    assert admit([small, big], 4, lambda request: request is big) == [big]


requests = st.lists(st.builds(Request, st.integers(0, 5), st.integers(0, 5)), max_size=6)


@given(requests=requests, free=st.integers(0, 20))
def test_no_free_row_stays_empty_while_somebody_wants_one(
    requests: list[Request], free: int
) -> None:
    granted = admit(requests, free, yes)
    assert len(granted) == min(free, sum(request.wanted for request in requests))


@given(waiting=st.lists(st.integers(0, 1000), max_size=20), chunk=st.integers(1, 300))
def test_running_rows_always_go_on_and_prompts_share_the_chunk(
    waiting: list[int], chunk: int
) -> None:
    fed = chunk_prefills(waiting, chunk)
    assert all(f == w for f, w in zip(fed, waiting, strict=True) if w <= 1)
    long = [f for f, w in zip(fed, waiting, strict=True) if w > 1]
    assert sum(long) == min(chunk, sum(w for w in waiting if w > 1))


@given(waiting=st.lists(st.integers(2, 1000), min_size=1, max_size=9), chunk=st.integers(2, 300))
def test_the_oldest_and_the_shortest_prompt_get_half_of_the_chunk(
    waiting: list[int], chunk: int
) -> None:
    fed = chunk_prefills(waiting, chunk)
    shortest = waiting.index(min(waiting))
    assert fed[0] >= min(waiting[0], chunk // 2)
    assert fed[shortest] >= min(waiting[shortest], chunk // 2)


@given(
    older=st.lists(st.integers(2, 500), max_size=5),
    prompt=st.integers(2, 500),
    younger=st.lists(st.lists(st.integers(2, 20), max_size=8), max_size=60),
    chunk=st.integers(2, 64),
)
def test_no_number_of_short_prompts_starves_a_long_one(
    older: list[int], prompt: int, younger: list[list[int]], chunk: int
) -> None:
    """It is read as soon as half of the chunk, first come first served, would have read it."""
    waiting, steps = [*older, prompt], 0
    work, place = sum(waiting), len(older)
    while waiting[place] > 0:
        waiting += younger[steps] if steps < len(younger) else []
        fed = chunk_prefills(waiting, chunk)
        waiting = [count - size for count, size in zip(waiting, fed, strict=True)]
        steps += 1
    # A remainder of a single token is fed outside of the budget.
    assert steps <= -(-work // (chunk // 2)) + 1


def test_short_prompts_are_read_beside_a_long_one() -> None:
    assert chunk_prefills([1, 3000, 1, 100, 50], 256) == [1, 128, 1, 78, 50]
    assert chunk_prefills([3000, 200], 256) == [128, 128]
    assert chunk_prefills([3000, 60], 256) == [196, 60]
    assert chunk_prefills([100, 3000, 1], 256) == [100, 156, 1]


@given(waiting=st.lists(st.integers(0, 1000), max_size=9))
def test_a_prompt_that_cannot_be_cut_is_read_whole_and_alone(waiting: list[int]) -> None:
    fed = whole_prefills(waiting)
    prompts = [row for row, count in enumerate(waiting) if count > 1]
    assert [row for row, size in enumerate(fed) if size > 1] == prompts[:1]
    assert all(size in (0, count) for size, count in zip(fed, waiting, strict=True))
    assert [size for size, count in zip(fed, waiting, strict=True) if count <= 1] == [
        count for count in waiting if count <= 1
    ]
