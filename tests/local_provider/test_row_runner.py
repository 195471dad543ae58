"""Models that run row by row, through the engine: they write what `generate` writes, in float32."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import make_steering, models, row_runner
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Finished,
    Piece,
    Submission,
)
from optillm_hooks.local_provider.prefix_cache import common_prefix_length
from optillm_hooks.local_provider.quantized_layers import quantize
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.local_provider.row_runner import RowRunner
from optillm_hooks.local_provider.runners import runner_of
from tests.local_provider import tiny
from tests.local_provider.families import COMMON, MULTIMODAL, ROW_BY_ROW, tiny_model
from tests.local_provider.test_exactness import (
    FORMAT,
    SAMPLING,
    assert_as_generated,
    assert_scored_as_alone,
    choices,
    make_request,
)
from tests.local_provider.test_text_towers import VISION

pytestmark = pytest.mark.filterwarnings("ignore")

READ_WHOLE = {"mamba", "falcon_mamba", "jamba", "recurrent_gemma"}
"""Those that the documentation names."""

LENGTHS = [3, 40, 12, 1, 25, 60, 8]


@pytest.mark.anyio
@pytest.mark.parametrize("family", ROW_BY_ROW)
async def test_a_model_writes_what_generate_writes(family: str) -> None:
    """Eight requests at once, one of them for three choices, then one that was seen before."""
    reference = tiny_model(family)
    runner = runner_of(tiny_model(family))
    assert isinstance(runner, RowRunner)
    assert runner.reads_in_chunks is (family not in READ_WHOLE)
    batch = Batch(runner, FORMAT, Capacity(chunk=16))
    engine = Engine(family, lambda: batch)
    greedy, seeded = SAMPLING["greedy"], SAMPLING["seeded"]
    requests = [make_request(n, greedy, n, max_tokens=6) for n in LENGTHS]
    requests.append(make_request(30, seeded, 77, max_tokens=5, n=3))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(choices(engine, one)) for one in requests]
    again = await choices(engine, requests[1])
    engine.close()
    results = [task.result() for task in tasks]
    assert again[0].text == results[1][0].text
    for one, of_request in zip(requests, results, strict=True):
        for choice in of_request:
            assert_scored_as_alone(reference, one, choice)
    sure = assert_as_generated(reference, requests[5], 0, results[5][0])
    for index in (0, 2):
        sure += assert_as_generated(reference, requests[7], index, results[7][index])
    assert sure > 5


class Asked:
    """A request in a batch that a test steps itself."""

    def __init__(self, batch: Batch, request: EngineRequest) -> None:
        self.events: list[Event] = []
        batch.add(Submission(request, self.events.append))

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def cached_tokens(self) -> int:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last.cached_tokens


def served(batch: Batch, request: EngineRequest) -> Asked:
    asked = Asked(batch, request)
    while not batch.idle:
        batch.step()
    return asked


def conversation(*texts: str) -> EngineRequest:
    roles = itertools.cycle(["user", "assistant"])
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return EngineRequest(messages=messages, sampling=SAMPLING["greedy"], seed=1, max_tokens=4)


@pytest.mark.parametrize(("family", "cut"), [("lfm2", False), ("gptj", True), ("mamba", False)])
def test_a_prompt_is_reused_whole_and_in_part_only_where_the_cache_can_be_cut(
    family: str, cut: bool
) -> None:
    runner = runner_of(tiny_model(family))
    first, other = conversation("a" * 20), conversation("a" * 20 + "d" * 20)
    whole, part = (FORMAT.encode(request.messages) for request in (first, other))
    for following, cached in [
        (first, len(whole) - 1),
        (conversation("a" * 20, "b" * 5, "c" * 30), len(whole) if cut else len(whole) - 1),
        (other, common_prefix_length(whole, part) if cut else 0),
    ]:
        batch = Batch(runner, FORMAT, Capacity(chunk=16))
        served(batch, first)
        found = served(batch, following)
        alone = served(Batch(runner, FORMAT, Capacity(prefix_bytes=0)), following)
        assert found.cached_tokens == cached
        assert found.text == alone.text
        assert not list(runner.kv_cache.rows())
        assert runner.kv_cache.bytes == 0


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(("family", "steps"), [("mamba", 1), ("lfm2", 6)])
def test_a_prompt_that_cannot_be_cut_into_chunks_is_read_in_one_step(
    family: str, steps: int
) -> None:
    batch = Batch(runner_of(tiny_model(family)), tiny.chat_format(PLAIN), Capacity(chunk=16))
    asked = Asked(batch, conversation("a" * 96))
    taken = 0
    while not asked.text:
        batch.step()
        taken += 1
    assert taken == steps


@pytest.mark.parametrize("family", ["gptj", "falcon_h1", "recurrent_gemma", "rwkv", "minimax"])
def test_the_memory_of_states_is_counted(family: str) -> None:
    """That of a row is what was announced, and a copy of it has nothing of its own that grows."""
    runner = runner_of(tiny_model(family))
    assert isinstance(runner, RowRunner)
    tokens = [5 + i % 200 for i in range(100)]
    row = runner.begin(None, 0)
    runner.step([(row, tokens)])
    prefix = runner.snapshot(row, tokens)
    runner.step([(row, [7])])
    announced = runner.kv_cache.bytes_for(1, 101)
    least = 0 if family == "recurrent_gemma" else announced / 1.02  # its attention has a window
    assert least <= runner.kv_cache.bytes <= announced * 1.02
    assert prefix.bytes <= runner.kv_cache.prefix_bytes(101)
    forks = [runner.fork(prefix, shared=False) for _ in range(3)]
    state = runner.kv_cache.prefix_bytes(0)
    assert runner.kv_cache.bytes <= announced + prefix.bytes + 2 * state + 3 * 64
    for left in (row, *forks):
        runner.free(left)
    assert runner.kv_cache.bytes == 0


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[str, list[str]], str]:
    """Makes an adapter of a family's layers, with PEFT."""

    def make(family: str, layers: list[str]) -> str:
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=layers, init_lora_weights=False)
        get_peft_model(tiny_model(family), config).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_rows_use_their_own_adapters(adapter: Callable[[str, list[str]], str]) -> None:
    folder = adapter("lfm2", ["in_proj", "out_proj", "q_proj"])
    runner = RowRunner(tiny_model("lfm2"), {"mine": folder})
    adapted = PeftModel.from_pretrained(tiny_model("lfm2"), folder)
    tokens = [5 + i for i in range(9)]
    rows = [runner.begin(None, 0, name) for name in ("mine", None)]
    found = runner.step([(row, tokens) for row in rows])
    for logits, model in zip(found, (adapted, tiny_model("lfm2")), strict=True):
        with torch.inference_mode():
            assert_close(logits, model(torch.tensor([tokens])).logits[0, -1], atol=1e-3, rtol=0)


def test_an_adapter_of_a_layer_that_the_model_does_not_call_is_refused(
    adapter: Callable[[str, list[str]], str],
) -> None:
    folder = adapter("mamba", ["dt_proj", "in_proj"])
    with pytest.raises(ProviderFailed, match=r"adapters cannot change .*layers\.0\.mixer\.dt_proj"):
        RowRunner(tiny_model("mamba"), {"mine": folder})


def test_a_steering_vector_pushes_the_rows_that_ask_for_it(tmp_path: Path) -> None:
    file = tmp_path / "bold.safetensors"
    direction = torch.ones(64)
    make_steering.write(tiny_model("lfm2"), direction, 0, file)
    runner = RowRunner(tiny_model("lfm2"), steering={"bold": str(file)})
    pushed, other = runner.begin(None, 0), runner.begin(None, 0)
    pushed.steering = {"bold": 0.5}
    tokens = [5 + i for i in range(9)]
    found = runner.step([(pushed, tokens), (other, tokens)])
    reference = tiny_model("lfm2")
    with torch.inference_mode():
        assert_close(found[1], reference(torch.tensor([tokens])).logits[0, -1], atol=1e-3, rtol=0)
        reference.model.layers[0].register_forward_hook(
            lambda _layer, _given, out: out + 0.5 * out.norm(dim=-1, keepdim=True) / 8
        )
        assert_close(found[0], reference(torch.tensor([tokens])).logits[0, -1], atol=1e-3, rtol=0)


def small(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}
    config = CONFIG_MAPPING[kind](**{**sizes, **fields})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("bert", {}, "it keeps no cache"),
        ("openai-gpt", {}, "it keeps no cache"),
    ],
    ids=["both directions", "no cache"],
)
def test_what_cannot_run_row_by_row_is_refused_in_one_sentence(
    kind: str, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ProviderFailed, match=f"{kind} models are not supported: .*{reason}"):
        RowRunner(small(kind, **fields))


@pytest.mark.parametrize("family", MULTIMODAL)
def test_a_multimodal_folder_is_served_as_its_text_model(tmp_path: Path, family: str) -> None:
    text = MULTIMODAL[family]
    fields = {**COMMON, **ROW_BY_ROW[text], "model_type": text}
    config = CONFIG_MAPPING[family](text_config=fields, vision_config=VISION)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    runner = runner_of(models.load(models.find("mine", {"path": str(tmp_path)})).model)
    assert isinstance(runner, RowRunner)
    tokens = [5 + i for i in range(30)]
    (found,) = runner.step([(runner.begin(None, 0), tokens)])
    with torch.inference_mode():
        assert_close(found, whole(input_ids=torch.tensor([tokens])).logits[0, -1])


def test_longrope_runs_row_by_row_up_to_its_original_length() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = small("phi3", pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=64)
    assert RowRunner(model).context == 64
    with pytest.raises(ProviderFailed, match="set `context: 64` or less"):
        RowRunner(model, context=65)


def without_length(family: str) -> Any:
    model = tiny_model(family)
    for name in ("max_position_embeddings", "seq_length"):
        if hasattr(model.config, name):
            setattr(model.config, name, None)
    return model


def test_a_state_that_never_grows_has_no_limit_and_a_cache_that_does_needs_one() -> None:
    assert RowRunner(without_length("mamba")).context == 1 << 20
    assert RowRunner(without_length("mamba"), context=100).context == 100
    assert RowRunner(without_length("bloom"), context=100).context == 100
    with pytest.raises(ProviderFailed, match=r"has no context length; set `context`$"):
        runner_of(without_length("bloom"))


@pytest.mark.parametrize("family", ["mamba", "lfm2", "jamba", "rwkv"])
def test_int8_weights_are_used_where_the_model_reads_them_by_itself(family: str) -> None:
    model = tiny_model(family)
    tokens = [5 + i for i in range(20)]
    with torch.inference_mode():
        exact = model(torch.tensor([tokens])).logits[0, -1]
    quantize(model)
    runner = RowRunner(model)
    (found,) = runner.step([(runner.begin(None, 0), tokens)])
    assert (found - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("family", ["lfm2", "falcon_h1", "rwkv"])
def test_a_model_whose_state_is_not_copied_is_refused(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(row_runner, "_copy", lambda state: state)
    with pytest.raises(ProviderFailed, match="its logits are off by"):
        RowRunner(tiny_model(family))


@pytest.mark.anyio
async def test_a_folder_with_a_hybrid_model_is_served_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model("lfm2").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    spec = models.find("mine", {"path": str(tmp_path), "device": "cpu", "context": 300})
    engine = Engine("mine", lambda: models.start(spec))
    for fields in ({"n": 3}, {"optillm_decoding": {"cot_decoding": {"k": 3}}}):
        request = parse_request([{"role": "user", "content": "Hi"}], {"max_tokens": 5, **fields})
        reply = await choices(engine, request)
        assert all(choice.finish_reason for choice in reply)
    engine.close()
    said = [r.getMessage() for r in caplog.records if r.name.startswith("optillm_hooks")]
    assert said == [
        "lfm2: its sequences run one after another, not in a batch: it has layers of conv"
    ]


def test_a_row_whose_forward_pass_fails_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = runner_of(tiny_model("lfm2"))
    alone = served(Batch(runner, FORMAT, Capacity()), conversation("a" * 20)).text
    forward, bad = RowRunner._forward, FORMAT.encode_text("z")[0]

    def failing(self: RowRunner, row: row_runner.Row, tokens: Sequence[int]) -> torch.Tensor:
        logits = forward(self, row, tokens)
        if bad in tokens:
            raise RuntimeError("no such kernel")
        return logits

    monkeypatch.setattr(RowRunner, "_forward", failing)
    batch = Batch(runner, FORMAT, Capacity())
    good, other = (Asked(batch, conversation(letter * 20)) for letter in "az")
    while not batch.idle:
        batch.step()
    assert good.text == alone
    assert isinstance(other.events[-1], ProviderFailed)
    assert not list(runner.kv_cache.rows())
