"""The cache of what approaches learn for a caller."""

from optillm_hooks.caller_cache import CallerCache


def test_an_entry_that_is_stored_again_counts_as_used() -> None:
    cache = CallerCache(max_entries=2)
    for key in ("a", "b", "a", "c"):
        cache.put(key, (key,))
    assert [cache.get(key) for key in ("a", "b", "c")] == [("a",), None, ("c",)]
