"""The runner against transformers' own forward pass, in float32."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import attention
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.fast_layers import use_fast_layers
from optillm_hooks.local_provider.kv_cache import Row
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.torch_ops import attention_with_lse, plain_attention_with_lse
from tests.local_provider import tiny


@pytest.fixture(autouse=True)
def _no_rows_left(runner: Runner) -> Iterator[None]:
    yield
    for row in list(runner.kv_cache.rows()):
        runner.free(row)
    assert runner.kv_cache.bytes == 0


@pytest.fixture
def prompts(chat_format: ChatFormat) -> list[list[int]]:
    questions = ["Hi", "What is the capital of France?", "Tell me about a river. " * 22]
    return [chat_format.encode([{"role": "user", "content": q}]) for q in questions]


def expected(loaded: LoadedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = loaded.model(torch.tensor([tokens]), logits_to_keep=1).logits[0, -1]
    return logits


def assert_close(logits: Tensor, reference: Tensor) -> None:
    assert (logits - reference).abs().max() < 1e-3


def read(runner: Runner, prompt: list[int]) -> Row:
    row = runner.begin(None, 0)
    runner.step([(row, prompt)])
    return row


def test_prompts_of_all_lengths_in_one_step_give_the_models_logits(
    runner: Runner, loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    rows = [runner.begin(None, 0) for _ in prompts]
    logits = runner.step(list(zip(rows, prompts, strict=True)))
    for row_logits, prompt in zip(logits, prompts, strict=True):
        assert_close(row_logits, expected(loaded, prompt))


def test_a_prefill_chunk_shares_a_step_with_running_sequences(
    runner: Runner, loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    short, middle, long = prompts
    writing = [read(runner, short), read(runner, middle)]
    reading = runner.begin(None, 0)
    runner.step([(writing[0], [10]), (reading, long[:80]), (writing[1], [20, 21])])
    logits = runner.step([(reading, long[80:]), (writing[1], [22]), (writing[0], [11])])
    wanted = [long, [*middle, 20, 21, 22], [*short, 10, 11]]
    for row_logits, tokens in zip(logits, wanted, strict=True):
        assert_close(row_logits, expected(loaded, tokens))


@pytest.mark.parametrize("shared", [True, False], ids=["by reference", "copied"])
def test_rows_that_fork_from_one_prompt_go_their_own_ways(
    runner: Runner, loaded: LoadedModel, prompts: list[list[int]], shared: bool
) -> None:
    prompt = prompts[2]
    row = read(runner, prompt)
    prefix = runner.snapshot(row, prompt)
    runner.free(row)
    other = read(runner, prompts[0])
    forks = [runner.fork(prefix, shared=shared) for _ in range(3)]
    runner.step([*((fork, [100 + i]) for i, fork in enumerate(forks)), (other, [7])])
    logits = runner.step([(forks[0], [5]), (forks[2], [6]), (other, [8]), (forks[1], [7, 8, 9])])
    wanted = [
        [*prompt, 100, 5],
        [*prompt, 102, 6],
        [*prompts[0], 7, 8],
        [*prompt, 101, 7, 8, 9],
    ]
    for row_logits, tokens in zip(logits, wanted, strict=True):
        assert_close(row_logits, expected(loaded, tokens))


def test_a_shared_prefix_is_stored_once(runner: Runner, prompts: list[list[int]]) -> None:
    row = read(runner, prompts[2])
    prefix = runner.snapshot(row, prompts[2])
    runner.free(row)
    forks = [runner.fork(prefix, shared=True) for _ in range(4)]
    assert all(fork.length == 0 for fork in forks)
    assert runner.kv_cache.bytes == sum(
        map(runner.kv_cache.bytes_for, (4, 1), (1, len(prompts[2])))
    )


def test_several_shared_prefixes_are_each_read_by_their_own_rows() -> None:
    """Prefixes of two slot lengths for 3, 1 and 1 rows, and a row without one; some wait."""
    runner, model = tiny.runner(), tiny.model()
    texts = [[5 + i % 200 for i in range(length)] for length in (150, 30, 350, 20)]
    prefixes = []
    for text in texts:
        row = read(runner, text)
        prefixes.append(runner.snapshot(row, text))
        runner.free(row)
    rows = [runner.fork(prefixes[i], shared=True) for i in (0, 1, 0, 2, 0)]
    held = [list(texts[i]) for i in (0, 1, 3, 0, 2, 0)]
    rows.insert(2, read(runner, texts[3]))

    def assert_as_the_model(logits: Tensor, fed: Sequence[int]) -> None:
        for row_logits, i in zip(logits, fed, strict=True):
            with torch.inference_mode():
                reference: Tensor = model(torch.tensor([held[i]])).logits[0, -1]
            assert (row_logits - reference).abs().max() < 1e-3

    for step, fed in enumerate([range(6), (5, 2, 0, 4), (4, 1, 3, 5), range(6)]):
        for i in fed:
            held[i].append(10 * step + i + 5)
        assert_as_the_model(runner.step([(rows[i], held[i][-1:]) for i in fed]), fed)
    for i in (5, 3, 0):  # those of the first prompt: another's slot takes its place
        runner.free(rows.pop(i))
        held.pop(i)
    for tokens in held:
        tokens.append(9)
    assert_as_the_model(runner.step([(row, [9]) for row in rows]), range(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [1, 9, 700])
@pytest.mark.parametrize("strided", [False, True])
def test_flash_and_plain_attention_agree_on_output_and_logsumexp(
    dtype: torch.dtype, keys: int, strided: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, 2, 20, tokens, generator=draw).to(dtype).transpose(2, 3)
        for tokens in (6, keys, keys)
    )
    if not strided:
        query = query.contiguous()
    key, value = key.contiguous(), value.contiguous()
    mask = torch.zeros(3, 1, 1, keys, dtype=dtype)
    mask[0, ..., 4:] = mask[2, ..., 1:] = -torch.inf
    found = attention_with_lse(query, key, value, mask, 0.25)
    wanted = plain_attention_with_lse(query, key, value, mask, 0.25)
    for one, other in zip(found, wanted, strict=True):
        near = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(one, other, atol=near, rtol=near, check_dtype=False)


def test_scores_that_float16_cannot_hold_before_they_are_scaled_do_not_overflow() -> None:
    query = key = torch.full((1, 1, 2, 128), 30.0, dtype=torch.float16)
    value, mask = torch.ones_like(key), torch.zeros(1, 1, 1, 2, dtype=torch.float16)
    found, lse = plain_attention_with_lse(query, key, value, mask, 128**-0.5)
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(lse, torch.full((1, 1, 2), 10182.3 + 0.7), atol=10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("broken", ["product", "attention_with_lse"])
def test_a_model_for_which_a_step_goes_wrong_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, broken: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such product")

    layer = nn.Linear(8, 8, dtype=dtype)
    use_fast_layers(layer)
    where = {"product": (type(layer), "forward"), "attention_with_lse": (attention, broken)}
    monkeypatch.setattr(*where[broken], fail)
    with pytest.raises(ProviderFailed, match="no such product"):
        Runner(tiny.model().to(dtype))


def test_rows_that_outgrow_their_slot_or_lose_a_neighbour_keep_their_content(
    runner: Runner, loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    first, second, third = (read(runner, prompts[1]) for _ in range(3))
    runner.free(first)
    more = [30 + i % 50 for i in range(256)]
    runner.step([(second, more)])
    logits = runner.step([(third, [9]), (second, [9])])
    assert second.pool.length > third.pool.length
    assert_close(logits[0], expected(loaded, [*prompts[1], 9]))
    assert_close(logits[1], expected(loaded, [*prompts[1], *more, 9]))


def test_a_cached_prefix_is_copied_and_the_rest_computed(
    runner: Runner, loaded: LoadedModel, prompts: list[list[int]]
) -> None:
    row = read(runner, prompts[2])
    prefix = runner.snapshot(row, prompts[2])
    begun = runner.begin(prefix, 50)
    rest = prompts[1][:9]
    (logits,) = runner.step([(begun, rest)])
    assert_close(logits, expected(loaded, prompts[2][:50] + rest))


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 300,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.0, 1.0, 1.0],
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "original_max_position_embeddings": 64,
}


def made(kind: str, fields: dict[str, object], context: int | None = None) -> Runner:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SMALL, **fields})
    return Runner(AutoModelForCausalLM.from_config(config).eval(), context=context)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {"sliding_window": 300}),
        ("mistral", {"sliding_window": None}),
        ("gemma3_text", {"sliding_window": 300}),
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3", {}),
        ("llama", DYNAMIC),
    ],
    ids=["window as long as the context", "no window", "gemma", "experts", "qwen", "dynamic"],
)
def test_models_of_many_kinds_say_what_they_say_alone(kind: str, fields: dict[str, object]) -> None:
    runner = made(kind, fields)
    tokens = [3 + i * 7 % 60 for i in range(290)]
    row = runner.begin(None, 0)
    runner.step([(row, tokens[:280])])
    (logits,) = runner.step([(row, tokens[280:])])
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SMALL, **fields})
    reference = AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        assert_close(logits, reference(torch.tensor([tokens])).logits[0, -1])


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("qwen3_next", {}, "layers of linear_attention"),
        ("mamba", {}, "layers of linear_attention"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "attention cannot be replaced"),
    ],
    ids=[
        "hybrid",
        "no attention",
        "alibi",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_whose_attention_is_another_is_refused_when_it_is_loaded(
    kind: str, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(ProviderFailed, match=f"{kind} models are not supported: .*{reason}"):
        made(kind, fields)


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_a_model_with_longrope_is_served_up_to_its_original_length(kind: str) -> None:
    assert made(kind, LONGROPE).context == 64
    with pytest.raises(ProviderFailed, match=r"beyond 64 tokens .* of 300; set `context: 64`"):
        made(kind, LONGROPE, context=300)


@pytest.mark.parametrize(
    ("kind", "fields", "context"),
    [("llama", DYNAMIC, 300), ("llama", LONGROPE, 64), ("phi3", LONGROPE, 64)],
    ids=["dynamic", "longrope", "longrope of phi"],
)
def test_a_row_beside_one_as_long_as_the_context_says_what_it_says_alone(
    kind: str, fields: dict[str, object], context: int
) -> None:
    runner = made(kind, fields, context)
    tokens = [3 + i * 7 % 60 for i in range(context)]
    alone, row, long = (runner.begin(None, 0) for _ in range(3))
    runner.step([(alone, tokens[:9])])
    runner.step([(row, tokens[:9]), (long, tokens[:-1])])
    wanted = runner.step([(alone, [5])])
    found = runner.step([(row, [5]), (long, tokens[-1:])])
    assert_close(found[0], wanted[0])
    config = CONFIG_MAPPING[kind](**{**SMALL, **fields})
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        assert_close(found[1], reference(torch.tensor([tokens])).logits[0, -1])


def test_a_model_that_does_not_say_the_same_in_rows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optillm_hooks.local_provider.attention._bias", lambda _visible, shape: (
        torch.zeros(_visible.shape, dtype=shape.dtype)
    ))  # fmt: skip
    with pytest.raises(ProviderFailed, match="its logits are off by"):
        made("qwen3", {})
