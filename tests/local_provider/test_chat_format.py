import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.engine_request import ScoredToken
from optillm_hooks.local_provider.text import StopFinder, ThinkSplitter
from tests.local_provider import tiny

TEXTS = st.text(alphabet="ab ", max_size=30)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=8))
def test_the_cut_does_not_depend_on_how_the_text_arrives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder = StopFinder(stops)
    borders = [0, *sorted(cuts), len(text)]
    shown = "".join(finder.feed(text[a:b]) for a, b in itertools.pairwise(borders))
    shown += "" if finder.found else finder.close()
    ends = [text.find(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
        assert not finder.found
    else:
        assert finder.found
        assert text.startswith(shown)
        assert any(text.startswith(stop, len(shown)) for stop in stops)


def test_what_may_become_a_stop_string_is_held_back_and_given_out_if_it_does_not() -> None:
    finder = StopFinder(["END"])
    assert finder.feed("the E") == "the "
    assert finder.feed("N") == ""
    assert finder.feed("T") == "ENT"


def test_characters_of_several_tokens_come_out_whole(chat_format: ChatFormat) -> None:
    text = "naïve 😀 日本語 \U0001f9d1\u200d\U0001f680 end"
    detokenizer = chat_format.detokenizer()
    pieces = [detokenizer.feed(token) for token in chat_format.encode_text(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > len(text.split())


@given(
    text=st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc"]), max_size=40)
)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(
    chat_format: ChatFormat, text: str
) -> None:
    spelled = b"".join(map(chat_format.token_bytes, chat_format.encode_text(text)))
    assert spelled == text.encode()


def test_a_stop_string_across_tokens_cuts_text_and_scores_but_not_the_count(
    chat_format: ChatFormat,
) -> None:
    transcript = ChoiceOutput(0, chat_format, ["is Pa"])
    ids = chat_format.encode_text("The capital of France is Paris.")
    pieces = []
    for token in ids:
        piece = transcript.add(token, ScoredToken(token, -1.0), last=False)
        pieces += [piece] if piece else []
        if transcript.finish_reason:
            break
    assert "".join(piece.text for piece in pieces) == "The capital of France "
    scored = b"".join(token.token for piece in pieces for token in piece.tokens)
    assert scored == b"The capital of France is"
    assert transcript.finish_reason == "stop"
    assert len(transcript.ids) == 6


def test_a_token_whose_text_is_held_back_keeps_its_score_for_later(
    chat_format: ChatFormat,
) -> None:
    transcript = ChoiceOutput(0, chat_format, ["Paris!"])
    ids = chat_format.encode_text("is Paris.")
    pieces = [transcript.add(token, ScoredToken(token, -1.0), last=False) for token in ids]
    shown = [(piece.text, [token.token for token in piece.tokens]) for piece in pieces if piece]
    assert shown == [("is", [b"is"]), (" ", [b" Paris"]), ("Paris.", [b"."])]


def test_the_last_token_allowed_ends_with_length(chat_format: ChatFormat) -> None:
    transcript = ChoiceOutput(0, chat_format, [])
    (token, *_) = chat_format.encode_text("word")
    piece = transcript.add(token, None, last=True)
    assert piece is not None
    assert piece.finish_reason == "length"


def test_the_prompt_is_written_by_the_models_own_template(chat_format: ChatFormat) -> None:
    messages: list[dict[str, object]] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "x"}],
        },
        {"role": "assistant", "content": None, "tool_calls": []},
    ]
    expected = chat_format.encode_text(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\nx<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_format.encode(messages) == expected


def test_an_image_is_refused(chat_format: ChatFormat) -> None:
    with pytest.raises(RequestRejected, match="text content only, not image_url"):
        chat_format.encode([{"role": "user", "content": [{"type": "image_url"}]}])


@pytest.mark.parametrize(
    ("reply", "reasoning", "text"),
    [
        ("<think>\nfirst\n</think>\n\nthen", "first\n", "then"),
        (" <think>cut off", "cut off", ""),
        ("no <think> here </think>", "", "no <think> here </think>"),
        ("<thin", "", "<thin"),
        ("<think></think>x", "", "x"),
    ],
    ids=["both", "never closed", "not at the start", "half a marker", "empty"],
)
@pytest.mark.parametrize("size", [1, 3, 100], ids="in pieces of {}".format)
def test_reasoning_is_parted_from_the_text(
    reply: str, reasoning: str, text: str, size: int
) -> None:
    splitter = ThinkSplitter()
    shown = [splitter.feed(reply[i : i + size]) for i in range(0, len(reply), size)]
    shown.append(splitter.close())
    assert "".join(piece.reasoning for piece in shown) == reasoning
    assert "".join(piece.text for piece in shown) == text


def test_a_prompt_that_opens_the_thinking_is_recognised(chat_format: ChatFormat) -> None:
    prompt = chat_format.encode_text("<|im_start|>assistant\n<think>\n")
    assert chat_format.opens_thinking(prompt)
    assert not chat_format.opens_thinking(prompt[:3])
    splitter = ThinkSplitter(opened=True)
    assert splitter.feed("so</think>it is") == ("it is", "so")


def test_the_bytes_of_tokens_of_other_vocabularies() -> None:
    """SentencePiece's write letters as themselves, blanks as a bar, odd bytes in hexadecimal."""
    pieces = ["</s>", "\u2581caf", "\u00e9", "n\u00e9", "<0xC3>", "\u00ae"]
    backend = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.decoder = Sequence([Replace("\u2581", " "), ByteFallback(), Fuse()])
    other = ChatFormat(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), {0})
    spelled = [other.token_bytes(token) for token in range(7)]
    assert spelled == [b"</s>", b" caf", "é".encode(), "né".encode(), b"\xc3", "®".encode(), b""]


def test_the_bytes_of_an_added_token_are_its_letters(chat_format: ChatFormat) -> None:
    tokenizer = tiny.tokenizer(words=("é",))
    token = tokenizer.convert_tokens_to_ids("é")
    assert ChatFormat(tokenizer, {0}).token_bytes(token) == "é".encode()
    assert chat_format.token_bytes(10**6) == b""


def test_a_prompt_has_the_bos_that_its_template_writes_and_no_second_one() -> None:
    """Tokenizers such as Llama's put one before every text by themselves."""
    tokenizer = tiny.tokenizer("{{ bos_token }}" + tiny.CHATML)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    adds_bos = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.backend_tokenizer.post_processor = adds_bos
    assert tokenizer("Hi").input_ids[0] == bos
    other = ChatFormat(tokenizer, {tiny.END})
    prompt = other.encode([{"role": "user", "content": "Hi"}])
    assert prompt[0] == bos
    assert prompt.count(bos) == 1
    assert bos not in other.encode_text("Hi")


def test_the_marker_that_ends_the_thinking_is_counted_with_it(chat_format: ChatFormat) -> None:
    output = ChoiceOutput(0, chat_format, [], thinking=True)
    thought = chat_format.encode_text("six sevens\n</think>")
    for token in [*thought, *chat_format.encode_text("\n42")]:
        output.add(token, None, last=False)
    assert output.reasoning_tokens == len(thought)
