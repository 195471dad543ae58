"""Brown-out: fewer samples while a worker is busy, in steps that do not flutter."""

import pytest

from optillm_hooks.gateway.brownout import Brownout
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.registry import all_approaches
from optillm_hooks.settings import BrownoutSettings

SETTINGS = BrownoutSettings(calls=10, hold_s=5)


class World:
    def __init__(self, settings: BrownoutSettings = SETTINGS) -> None:
        self.now = 0.0
        self.settings = settings
        self.brownout = Brownout(lambda: self.now)
        self.brownout.width(settings)

    def width(self, *, load: int | None = None, after: float = 0.0) -> int | None:
        self.now += after
        if load is not None:
            self.brownout.changed(running=load, waiting=0)
        return self.brownout.width(self.settings)


def test_steps_begin_at_once() -> None:
    world = World()
    assert [world.width(load=load) for load in (0, 9, 10, 19, 20, 200)] == [None, None, 3, 3, 1, 1]


def test_waiting_calls_count() -> None:
    world = World()
    world.brownout.changed(running=4, waiting=6)
    assert world.width() == 3


def test_a_step_ends_after_its_time_of_calm_one_by_one() -> None:
    world = World()
    assert world.width(load=20) == 1
    assert world.width(load=3) == 1
    assert world.width(after=4.9) == 1
    assert world.width(after=0.1) == 3
    assert world.width(after=4.9) == 3
    assert world.width(after=0.1) is None
    assert world.width(after=100) is None


def test_the_second_step_ends_in_the_first_where_the_load_is_still_high() -> None:
    world = World()
    world.width(load=20)
    assert world.width(load=12) == 1
    assert world.width(after=50) == 3  # 12 is below 70 % of 20, and not of 10


def test_a_load_around_the_limit_does_not_switch_it_on_and_off() -> None:
    world = World()
    assert world.width(load=10) == 3
    for _ in range(20):
        assert world.width(load=8, after=3) == 3
        assert world.width(load=10, after=3) == 3
    for _ in range(20):
        assert world.width(load=6, after=3) == 3
        assert world.width(load=7, after=3) == 3  # not calm any more: it starts over


def test_calm_before_a_new_peak_counts() -> None:
    """No event comes while the worker is idle: the first one after it finds the step ended."""
    world = World()
    world.width(load=10)
    world.width(load=0)
    assert world.width(load=1, after=60) is None


@pytest.mark.parametrize("load", [0, 10_000])
def test_it_is_off_by_default(load: int) -> None:
    assert World(BrownoutSettings()).width(load=load) is None


@pytest.mark.parametrize(
    ("expression", "at_three", "at_one"),
    [
        ("self_consistency(n=8)", 3, 1),
        ("self_consistency(n=8,first_m=5)", 3, 1),
        ("majority_voting", 3, 1),
        ("fusion(models=[a;b;c;d])", None, None),
        ("genselect(n=8)", None, None),
        ("re2&bon(n=6)", 6, 1),
        ("mcts(first_m=3)", 12, 4),
        ("rstar", 12, 4),
        ("abmcts", 3, 1),
        ("plansearch(leaves=9)", 10, 3),
        ("mars", 22, 4),
        ("mars(lightweight=true)", 3, 2),
        ("router(approaches=[self_consistency])", 5, 3),
        ("self_consistency(n=2)", 2, 1),
    ],
)
def test_a_plans_own_width_is_lowered(
    expression: str, at_three: int | None, at_one: int | None
) -> None:
    plan = resolve(parse(expression))
    three, one = plan.narrowed(3), plan.narrowed(1)
    assert one.expected_calls <= three.expected_calls <= plan.expected_calls
    assert plan.narrowed(64) == plan
    if at_three is not None:
        assert (three.expected_calls, one.expected_calls) == (at_three, at_one)
    else:
        assert three.expected_calls < plan.expected_calls


def test_every_approach_can_be_narrowed_to_valid_parameters() -> None:
    narrower = set()
    for approach in all_approaches():
        params = approach.params()
        narrowed = params.narrowed(1)
        assert type(params).model_validate(narrowed.model_dump(exclude_unset=False)) == narrowed
        if approach.cost(narrowed).calls < approach.cost(params).calls:
            narrower.add(approach.name)
    assert narrower >= {
        *("abmcts", "bon", "cepo", "deepthink", "fusion", "mars", "mcts", "moa", "plansearch"),
        *("pvg", "router", "rsa", "rstar", "verified"),
    }


@pytest.mark.parametrize(
    ("expression", "at_three", "at_one"),
    [("cot_decoding", 4, 2), ("deepconf", 3, 1), ("autothink", 2, 2)],
)
def test_a_decoder_tries_fewer_branches(expression: str, at_three: int, at_one: int) -> None:
    plan = resolve(parse(expression))
    made = [plan.narrowed(width).calls(decoded_remotely=True) for width in (3, 1)]
    assert made == [at_three, at_one]
