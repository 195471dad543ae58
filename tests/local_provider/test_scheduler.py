from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.local_provider.scheduler import admit, chunk_prefills


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


def test_prompts_are_prefilled_in_order_of_arrival() -> None:
    assert chunk_prefills([1, 300, 1, 100, 50], 256) == [1, 256, 1, 0, 0]
    assert chunk_prefills([100, 300, 1], 256) == [100, 156, 1]
