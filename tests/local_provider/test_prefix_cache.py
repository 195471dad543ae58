from dataclasses import dataclass

from optillm_hooks.local_provider.prefix_cache import Hit, PrefixCache


@dataclass(frozen=True)
class Known:
    tokens: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return len(self.tokens)


def known(*tokens: int) -> Known:
    return Known(tokens)


def cache(max_bytes: int = 100) -> PrefixCache[Known]:
    return PrefixCache(max_bytes, min_tokens=2)


def test_the_longest_common_prefix_is_found() -> None:
    prefixes = cache()
    prefixes.add(known(1, 2, 3))
    prefixes.add(known(1, 2, 9, 9, 9))
    assert prefixes.find([1, 2, 9, 9, 7, 7]) == Hit(known(1, 2, 9, 9, 9), 4)


def test_the_last_token_of_a_prompt_is_always_left_to_compute() -> None:
    prefixes = cache()
    prefixes.add(known(1, 2, 3))
    assert prefixes.find([1, 2, 3]) == Hit(known(1, 2, 3), 2)


def test_a_prefix_shorter_than_the_minimum_is_no_hit() -> None:
    prefixes = cache()
    prefixes.add(known(1, 2, 3))
    assert prefixes.find([1, 7, 7]) is None


def test_what_another_adapter_computed_is_no_hit() -> None:
    prefixes = cache()
    prefixes.add(known(1, 2, 3), "a")
    assert prefixes.find([1, 2, 3, 4]) is None
    assert prefixes.find([1, 2, 3, 4], "a") is not None


def test_the_least_recently_used_is_evicted() -> None:
    prefixes = cache(max_bytes=7)
    prefixes.add(known(1, 1, 1))
    prefixes.add(known(2, 2, 2))
    assert prefixes.find([1, 1, 1, 5]) is not None
    prefixes.add(known(3, 3, 3))
    assert prefixes.find([2, 2, 2, 5]) is None
    assert prefixes.find([1, 1, 1, 5]) is not None
    assert prefixes.bytes == 6


def test_a_longer_prompt_replaces_its_own_prefix() -> None:
    prefixes = cache()
    prefixes.add(known(1, 2, 3))
    prefixes.add(known(1, 2, 3, 4))
    assert prefixes.bytes == 4


def test_one_that_is_too_large_is_not_kept() -> None:
    prefixes = cache(max_bytes=2)
    prefixes.add(known(1, 2, 3))
    assert prefixes.bytes == 0


def test_a_state_is_reused_only_by_a_prompt_that_goes_on_from_all_of_it() -> None:
    prefixes = PrefixCache[Known](100, min_tokens=2, whole=True)
    prefixes.add(known(1, 2, 3, 4, 5))
    prefixes.add(known(1, 2, 3))
    assert prefixes.find([1, 2, 9]) is None
    assert prefixes.find([1, 2, 3]) is None, "its last token is left to compute"
    assert prefixes.find([1, 2, 3, 4, 7]) == Hit(known(1, 2, 3), 3)
    assert prefixes.find([1, 2, 3, 4, 5, 6]) == Hit(known(1, 2, 3, 4, 5), 5)


def test_a_longer_state_does_not_replace_a_shorter_one() -> None:
    prefixes = PrefixCache[Known](100, min_tokens=2, whole=True)
    for tokens in [(1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4)]:
        prefixes.add(Known(tokens))
    assert prefixes.bytes == 7
