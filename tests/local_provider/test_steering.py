"""Steering vectors: made from pairs, tied to their model, felt by the rows that ask for them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import litellm
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider import make_steering, models
from optillm_hooks.local_provider.custom_llm import PROVIDER, LocalProvider
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.steering import fingerprint

PROMPT = [5, 60, 700, 8]
REPLY = [90, 11, 400]
LAYER = 1


def config(tokens: int, **changed: Any) -> LlamaConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(vocab_size=tokens, eos_token_id=2, **{**sizes, **changed})


@pytest.fixture(scope="module")
def tiny(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random model, tied to the real tokenizer."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    LlamaForCausalLM(config(len(loaded.tokenizer))).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny).eval()


def directions(seed: int) -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tiny: Path, reference: Any) -> dict[str, str]:
    """Two vectors for one layer, and one for the next."""
    places = {"careful": (1, LAYER), "brief": (2, LAYER), "late": (3, LAYER + 1)}
    for name, (seed, layer) in places.items():
        make_steering.write(reference, directions(seed), layer, tiny / f"{name}.safetensors")
    return {name: str(tiny / f"{name}.safetensors") for name in places}


@pytest.fixture(scope="module")
def runner(tiny: Path, files: dict[str, str]) -> Runner:
    return Runner(AutoModelForCausalLM.from_pretrained(tiny).eval(), steering=files)


def expected(model: Any, strengths: Mapping[str, float]) -> Tensor:
    """Return the logits of the reply's tokens, worked out layer by layer by transformers alone."""
    seeds = {"careful": (1, LAYER), "brief": (2, LAYER), "late": (3, LAYER + 1)}

    def push(layer: int) -> Any:
        mine = {n: s for n, s in strengths.items() if seeds[n][1] == layer}

        def change(_module: Any, _given: Any, out: Tensor) -> Tensor:
            along = sum(
                s * directions(seeds[n][0]) / directions(seeds[n][0]).norm()
                for n, s in mine.items()
            )
            new = out.clone()
            if mine:
                behind = out[0, len(PROMPT) :]
                new[0, len(PROMPT) :] = behind + behind.norm(dim=-1, keepdim=True) * along
            return new

        return change

    hooks = [layer.register_forward_hook(push(i)) for i, layer in enumerate(model.model.layers)]
    try:
        with torch.inference_mode():
            logits: Tensor = model(torch.tensor([[*PROMPT, *REPLY]])).logits[0, len(PROMPT) :]
    finally:
        for hook in hooks:
            hook.remove()
    return logits


def test_each_row_of_a_mixed_batch_is_pushed_as_it_asks_and_the_others_are_not(
    runner: Runner, reference: Any
) -> None:
    asked: list[dict[str, float]] = [
        {},
        {"careful": 0.5},
        {"careful": -0.5},
        {"careful": 0.3, "brief": -0.7},
        {"late": 0.4, "brief": 0.2},
        {},
    ]
    rows = [runner.begin(None, 0) for _ in asked]
    runner.step([(row, PROMPT) for row in rows])
    for row, strengths in zip(rows, asked, strict=True):
        row.steering = strengths
    steps = [runner.step([(row, [token]) for row in rows]) for token in REPLY]
    for at, strengths in enumerate(asked):
        found = torch.stack([logits[at] for logits in steps])
        assert_close(found, expected(reference, strengths), atol=1e-4, rtol=1e-4)
    for row in rows:
        runner.free(row)
    ordinary, pushed, pulled = (steps[-1][at] for at in range(3))
    assert (pushed - ordinary).abs().max() > 0.01
    assert (pulled - ordinary).abs().max() > 0.01
    assert (pushed - pulled).abs().max() > 0.01


def test_several_tokens_of_a_row_are_all_pushed(runner: Runner, reference: Any) -> None:
    row, other = runner.begin(None, 0), runner.begin(None, 0)
    runner.step([(row, PROMPT), (other, PROMPT)])
    row.steering = {"careful": 0.5}
    together = runner.step([(other, REPLY), (row, REPLY)])
    for found, strengths in zip(together, ({}, row.steering), strict=True):
        assert_close(found, expected(reference, strengths)[-1], atol=1e-4, rtol=1e-4)
    runner.free(row)
    runner.free(other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "made for another model"),
        ({"hidden_size": 64}, "does not fit the model"),
        ({"num_hidden_layers": 1}, "does not fit the model: it is for layer 1 of 1"),
    ],
    ids=["other weights", "other width", "fewer layers"],
)
def test_a_vector_of_another_model_is_an_error_at_load(
    loaded: LoadedModel, files: dict[str, str], changed: dict[str, Any], message: str
) -> None:
    torch.manual_seed(1)
    other = LlamaForCausalLM(config(len(loaded.tokenizer), **changed))
    with pytest.raises(ProviderFailed, match=rf"steering vector 'careful' .*{message}"):
        Runner(other, steering={"careful": files["careful"]})


def test_what_is_no_steering_vector_is_an_error_at_load(
    tiny: Path, reference: Any, tmp_path: Path
) -> None:
    about = {"fingerprint": fingerprint(reference, 0), "layer": "0"}
    save_file({"direction": torch.zeros(32)}, tmp_path / "zero", metadata=about)
    save_file({"direction": torch.ones(32)}, tmp_path / "bare")
    save_file({"other": torch.ones(32)}, tmp_path / "other", metadata=about)
    (tmp_path / "text").write_text("hello")
    for name in ("zero", "bare", "other", "text", "missing"):
        model = AutoModelForCausalLM.from_pretrained(tiny)
        with pytest.raises(ProviderFailed, match="steering vector 'x'"):
            Runner(model, steering={"x": str(tmp_path / name)})


def test_the_type_in_which_a_model_is_loaded_does_not_change_its_fingerprint(
    tiny: Path, reference: Any
) -> None:
    half = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    assert fingerprint(half, LAYER) == fingerprint(reference, LAYER)
    assert fingerprint(reference, 0) != fingerprint(reference, LAYER)


PAIRS = [
    {"prompt": "2 + 2?", "positive": "Let me check. 4", "negative": "5"},
    {"prompt": "Is 9 prime?", "positive": "Let me check: 3 * 3. No.", "negative": "Yes!"},
]


def test_the_tool_writes_the_mean_difference_of_the_layers_output(
    loaded: LoadedModel, tiny: Path, reference: Any, tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "careful.safetensors"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    given = ["--model", str(tiny), "--pairs", str(pairs), "--layer", "1", "--out", str(out)]
    assert make_steering.main(given) == 0

    def state(prompt: str, reply: str) -> Tensor:
        asked = loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        ids = torch.tensor([[*asked, *loaded.tokenizer.encode(reply)]])
        with torch.inference_mode():
            states = reference(ids, output_hidden_states=True).hidden_states
        found: Tensor = states[1 + LAYER][0, len(asked) :].mean(dim=0)
        return found

    differences = [
        state(p["prompt"], p["positive"]) - state(p["prompt"], p["negative"]) for p in PAIRS
    ]
    written = load_file(out)["direction"]
    assert_close(written, torch.stack(differences).mean(dim=0), atol=1e-5, rtol=1e-4)
    assert Runner(
        AutoModelForCausalLM.from_pretrained(tiny), steering={"careful": str(out)}
    ).steering.names == {"careful"}


@pytest.mark.parametrize(
    ("lines", "layer", "message"),
    [
        ('{"prompt": "a", "positive": "b"}', "1", "line 1: negative is missing"),
        ("", "1", "has no pairs"),
        (json.dumps(PAIRS[0]), "3", "layers are 0 to 2, not 3"),
    ],
    ids=["a field missing", "empty", "no such layer"],
)
def test_the_tool_says_what_is_wrong(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lines: str,
    layer: str,
    message: str,
) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out.safetensors"
    pairs.write_text(lines)
    given = ["--model", str(tiny), "--pairs", str(pairs), "--layer", layer, "--out", str(out)]
    assert make_steering.main(given) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.anyio
@pytest.mark.usefixtures("litellm_in_this_loop")
# LiteLLM's own use of pydantic.
@pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")
@pytest.mark.filterwarnings("ignore:Accessing the 'model_.*' attribute on the instance")
async def test_a_request_is_steered_by_the_operators_vectors_alone(
    tiny: Path, files: dict[str, str]
) -> None:
    provider = LocalProvider()
    litellm.custom_provider_map = [{"provider": PROVIDER, "custom_handler": provider}]
    litellm.utils.custom_llm_setup()
    settings = {"path": str(tiny), "steering": files}
    models.find("mine", settings)
    deployment = {
        "model_name": "mine",
        "litellm_params": {"model": f"{PROVIDER}/tiny"},
        "model_info": {"optillm_local": settings},
    }
    router = litellm.Router([deployment], num_retries=0)

    async def ask(**strengths: float) -> Any:
        return await router.acompletion(
            model="mine",
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=24,
            temperature=0,
            optillm_decoding={"autothink": {"pattern_strengths": strengths}},
        )

    plain, pushed, again = await ask(), await ask(careful=0.9), await ask(careful=0.0)
    said = [
        (m.content, getattr(m, "reasoning_content", None))
        for m in (r.choices[0].message for r in (plain, pushed, again))
    ]
    assert said[0] == said[2] != said[1]
    assert pushed.optillm_decoding["steering"] == {"careful": 0.9}
    with pytest.raises(litellm.BadRequestError, match=r"no steering vector 'hasty'; .* brief, car"):
        await ask(hasty=0.1)
    provider.engine("tiny", {"model_info": {"optillm_local": settings}}).close()
