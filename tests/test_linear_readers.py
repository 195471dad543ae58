"""Every function that reads a text of a model or a client takes time in proportion to its length.

A reader whose time grew with the square of a text would stop all requests of the process. Each is
given texts of every kind in `TEXTS`. What takes less than `FLOOR_S` passes; what takes longer must
not take much more than four times what a quarter of the text takes. Times are CPU times compared
within one run, and the least of several before a test fails, so that a busy machine changes little.
"""

import asyncio
import gc
import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest

from optillm_hooks import answers
from optillm_hooks.answers.arithmetic import checked_claims
from optillm_hooks.answers.citations import (
    CitationFilter,
    Cited,
    address_key,
    addresses,
    checked,
)
from optillm_hooks.answers.code_blocks import code_blocks, holds_code
from optillm_hooks.answers.dates import dates_in, time_of
from optillm_hooks.answers.deltas import DeltaAccumulator, other_fields
from optillm_hooks.answers.equations import count_solved, read_posed
from optillm_hooks.answers.equivalence import (
    AnswerClasses,
    classes,
    equivalent,
    equivalent_pairs,
    form_of,
)
from optillm_hooks.answers.extraction import (
    AnswerFormat,
    excerpt,
    extract,
    extract_answer,
    extract_answers,
    read_json,
    without_reasoning,
)
from optillm_hooks.answers.formulas.reading import parse, parse_unsolved, plain
from optillm_hooks.answers.json_reply import read_objects, repaired, values_amid_prose
from optillm_hooks.answers.lists import read_items
from optillm_hooks.answers.phrases import has_decimal_comma
from optillm_hooks.answers.quantities import numerals, read_quantity
from optillm_hooks.answers.questions import (
    Asked,
    asked_for,
    asks_for_a_fact,
    options,
    repeats,
    suits,
)
from optillm_hooks.answers.quotes import quoted
from optillm_hooks.answers.section_filter import SectionFilter, overlap
from optillm_hooks.answers.sections import split_by_headings
from optillm_hooks.answers.statements import (
    MAX_LENGTH,
    bare_name,
    choice,
    choice_in,
    concludes,
    conclusion,
    contents,
    counted,
    is_correct,
    name,
    statement,
    verdict,
    yes_or_no,
)
from optillm_hooks.answers.tasks import task_of
from optillm_hooks.answers.units import is_known, unit_of
from optillm_hooks.answers.values import in_decimal_points, part, settled, value_at, values
from optillm_hooks.answers.verdicts import last_part, read_choice, read_rating
from optillm_hooks.answers.voting import (
    elect,
    equal_answers,
    majority,
    majority_call,
    majority_object,
)
from optillm_hooks.answers.words import (
    as_formula,
    is_nonexistent,
    number_in_words,
    ordinal,
    unaccented,
)
from optillm_hooks.answers.words import yes_or_no as yes_or_no_word
from optillm_hooks.approaches import leap, mars, rto, z3
from optillm_hooks.code_execution.public_tests import read_program, read_tests
from optillm_hooks.decoding import autothink
from optillm_hooks.decoding.remote.calls import token_ends
from optillm_hooks.decoding.remote.cot_decoding import first_tokens
from optillm_hooks.decoding.remote.thinking import up_to_thought
from optillm_hooks.errors import ProviderFailed, RequestRejected, UnusableReply
from optillm_hooks.final_answer import without_mark
from optillm_hooks.gateway import failures, refusals
from optillm_hooks.gateway.tags import read_tags
from optillm_hooks.judging.verdicts import says
from optillm_hooks.local_provider.harmony import HarmonyReader
from optillm_hooks.local_provider.reasoning import reasoning_of
from optillm_hooks.local_provider.text import StopFinder, ThinkSplitter
from optillm_hooks.local_provider.tool_calls.base import CallFormat
from optillm_hooks.local_provider.tool_calls.finder import CallFinder
from optillm_hooks.local_provider.tool_calls.harmony_calls import HARMONY_CALLS
from optillm_hooks.local_provider.tool_calls.json_calls import HERMES, LLAMA, MISTRAL
from optillm_hooks.local_provider.tool_calls.named_calls import KIMI
from optillm_hooks.local_provider.tool_calls.python_calls import GEMMA_4, LLAMA_4
from optillm_hooks.local_provider.tool_calls.tagged_calls import GLM, QWEN_CODER
from optillm_hooks.local_provider.tool_calls.tools import Tools
from optillm_hooks.long_context.conversation import take_apart
from optillm_hooks.long_context.question import find_question
from optillm_hooks.long_context.window import window_of
from optillm_hooks.messages import read_chat
from optillm_hooks.pipeline import expression
from optillm_hooks.prompts import enclose
from optillm_hooks.retrieval import bm25, chunks
from optillm_hooks.solver.client import find_formalisation
from optillm_hooks.types import Answer, Delta, Message, Sampling, TokenLogprob
from tests.growth import forget_readings
from tests.long_context.fakes import SmallLLM

FLOOR_S = 0.05
"""CPU time that a reader may take for any of the texts. Quadratic growth shows above it."""

MOST = 7.0
"""Growth at four times the length: linear is 4, quadratic 16. The rest is noise."""

LONG = 8000
"""Length of the texts. Of longer ones, most readers read as much."""

Text = Callable[[int], str]


def repeated(unit: str, before: str = "", after: str = "") -> Text:
    return lambda length: before + (unit * (length // len(unit) + 1))[:length] + after


def nested(opening: str, closing: str, inside: str = "1", before: str = "") -> Text:
    def made(length: int) -> str:
        depth = length // len(opening + closing)
        return before + opening * depth + inside + closing * depth

    return made


def numbered(item: str, between: str, before: str = "", after: str = "") -> Text:
    """Return texts of `item`, in which "#" is its number."""

    def made(length: int) -> str:
        count = length // len(item + between) + 1
        return before + between.join(item.replace("#", str(n)) for n in range(count)) + after

    return made


REPEATED = (
    ". ", ".", "(", "\\[", "\\[ x \\]\n", "$", "$ ", "$$x", "2^", "choice ", "option B ", "best ",
    "*", "** ", "**1** ", "*a ", "_", "\t", " ", "\n", " \n", "x\r\n", "<think>", "</think>",
    "<think", "<think>a</think>b", ">", "<", "</", "<|a", "<|end|>", "```\n", "```json\n{\n",
    "```python\nx\n```\n", "x```y\n", "```json\n[1]\n```\n", "`", "`a", "~~~\n", "1", "1,",
    "1,234,567,", "123 456 ", "1.5.", "\u0661\u0662", "\u202e1\u200f", "a\u0301", "\ufdfa",
    "\uff11\uff1a", "[", '{"a":', '"answer": ', "- a\n", "(a) 1\n", "  - a\n", "x+1", "x = 1 = ",
    "ANSWER: 1\n", "the answer is ", "the answer is 1. ", "#### 1\n", "#", "Result: \n",
    "It is 5. ", "Dr. A. ", "so ", "so **1** ", "not ", "not a, but ", "1 and ", "1 or ", "| a ",
    "| a | 1 |\n", "---\n", "Note: x\n", "Let me know\n", "?", ":", "=", "1/", "-", "- ", '"',
    "\u201c", "a", "A", "word ", "Anna ", "seven ", "twenty-", "km ", "2 h 30 min ", "3/5/2024 ",
    "May 3, ", "<answer>", "<answer>1</answer>", "<answer>\\boxed{", "\\boxed{1} ", "\\boxed{",
    "<output>", "<thinking><output></thinking>", "<optillm_approach>", "RATING: ", "RATING: 5\n",
    "score ", "score is 5 ", "8/10 ", "8/", "5\u5206", "\u2b50", "BEST: ", "best: 1\n",
    "answer 1 ", "answer 1 is best ", "\u7b54\u6848\u662f", "\u7b54\u6848", "\u9009", "\\text{",
    "\\left(", "\\pi ", "5!", "\\", "{}", "{", "|", "&", "%", ">>> f(1)\n1\n", ">>> ",
    "assert f(1) == 1\n", "Input:\n\n1\n\n", "Input:\n1\n\nOutput:\n1\n\n", "<tool_call>",
    '<tool_call>{"a": "</tool_call>', "[TOOL_CALLS]", "sk-", "key=", "VERDICT: ", "NONE",
    "litellm.BadRequestError: ", "\x00", "\U0001f600", "\u00b2", "wait ",
    "The train leaves at 5 pm and arrives 2.5 hours later, so she has 42 apples left. ",
    "**So** the answer is $x^2 = 4$, (B) or 5 km. \\(x\\)\n- a: `1`\n",
)  # fmt: skip

TEXTS: Mapping[str, Text] = {
    **{repr(unit): repeated(unit) for unit in REPEATED},
    "a blank inside": repeated(" ", "a", "b"),
    "lines inside": repeated("\n", "a", "b"),
    "an answer of stops": repeated(". ", "ANSWER: "),
    "an answer of digits": repeated("9", "ANSWER: "),
    "an answer of sums": repeated("1+", "ANSWER: "),
    "an answer of units": repeated("km ", "ANSWER: 5 "),
    "an answer of brackets": repeated("(", "The answer is "),
    "a set": numbered("#", ", ", "ANSWER: {", "}"),
    "a rating and stops": repeated(".", "RATING: 5"),
    "giving": repeated("give ", "I "),
    "fractions in fractions": nested("\\frac{", "}{2}"),
    "fractions in a box": nested("\\frac{", "}{2}", before="\\boxed{"),
    "powers of powers": nested("2^{", "}"),
    "roots of roots": nested("\\sqrt{", "}"),
    "text in text": nested("\\text{", "}"),
    "arrays in arrays": nested("[", "]", before="So "),
    "objects in objects": nested('{"a":', "}", before="So "),
    "arrays of arrays": numbered("[[[#]]]", ",", "[", "]"),
    "an array": numbered("1", ",", "[", "]"),
    "an array of decimals": numbered("1.5", ",", "[", "]"),
    "an array of texts": numbered('"a"', ",", "[", "]"),
    "an object": numbered('"k#":#', ",", "{", "}"),
    "an object of answers": numbered('"answer": 1', ",", "{", "}"),
    "a number in JSON": repeated("9", "[", "]"),
    "JSON in a block": numbered("1", ",", "```json\n[", "]\n```"),
    "a list": numbered("#. item", "\n"),
}


class Reader(NamedTuple):
    read: Callable[[str], object]
    longest: int = LONG
    """Length of the longest text that it is given by its callers."""


def reader(function: Callable[..., object], **given: object) -> Reader:
    return Reader(partial(function, **given))


def inner(function: Callable[..., object], **given: object) -> Reader:
    """Return a reader that other readers give a sentence or a statement at most."""
    return Reader(partial(function, **given), MAX_LENGTH)


QUESTION = "How many apples does Anna have? (A) one (B) 42 (C) 3"


def both(function: Callable[..., object]) -> Callable[[str], object]:
    """Return `function`, called with a sequence of two texts that differ at their ends."""
    return lambda text: function([f"{text}1", f"{text}2"])


SOURCES = {1: Cited("Tides", "https://sea.example/tides")}

READERS: Mapping[str, Reader] = {
    "arithmetic.checked_claims": Reader(checked_claims),
    "citations.address_key": Reader(address_key, 2000),
    "citations.addresses": Reader(addresses),
    "citations.checked": Reader(lambda text: checked(text, SOURCES, "Sources")),
    "code_blocks.code_blocks": Reader(code_blocks),
    "code_blocks.holds_code": Reader(holds_code),
    "dates.dates_in": Reader(dates_in, 500),
    "dates.time_of": Reader(time_of, 500),
    "deltas.other_fields": Reader(lambda text: other_fields({"id": text, "x": text})),
    "equations.count_solved": Reader(lambda text: count_solved(text, ["x"], [{"x": "2"}]), 2000),
    "equations.read_posed": Reader(read_posed),
    "equivalence.classes": Reader(both(classes)),
    "equivalence.equivalent": Reader(lambda text: equivalent(f"{text}1", f"{text}2")),
    "equivalence.equivalent_pairs": Reader(lambda text: equivalent_pairs([text], [f"{text}1"])),
    "equivalence.form_of": Reader(form_of),
    "extraction.without_reasoning": Reader(without_reasoning),
    "json_reply.read_objects": Reader(read_objects),
    "json_reply.repaired": Reader(lambda text: [repaired(f"{{{text}"), repaired(f"[{text}")]),
    "json_reply.values_amid_prose": Reader(lambda text: list(values_amid_prose(text))),
    "extraction.excerpt": Reader(excerpt),
    "extraction.extract_answers": Reader(lambda text: extract_answers([text]), 2000),
    "extraction.extract_answer": reader(extract_answer, question=QUESTION),
    "extraction.extract": Reader(partial(extract, lenient=True), 4000),
    "extraction.read_json": Reader(read_json),
    "formulas.reading.parse": Reader(lambda text: parse(text[:500])),
    "formulas.reading.parse_unsolved": Reader(lambda text: parse_unsolved(text[:500])),
    "formulas.reading.plain": Reader(plain, 500),
    "lists.read_items": Reader(read_items),
    "phrases.has_decimal_comma": Reader(has_decimal_comma),
    "quantities.read_quantity": Reader(read_quantity, 500),
    "quantities.numerals": Reader(numerals, 500),
    "questions.asked_for": Reader(asked_for),
    "questions.options": Reader(options),
    "questions.asks_for_a_fact": Reader(asks_for_a_fact),
    "questions.repeats": inner(repeats, question=QUESTION),
    "questions.suits": inner(suits, asked=Asked.NUMBER, question=QUESTION),
    "quotes.quoted": Reader(lambda text: quoted([text], [(0, text), (0, "a " * 40)])),
    "sections.split_by_headings": Reader(lambda text: split_by_headings(text, ["a", "b"])),
    "section_filter.overlap": Reader(lambda text: overlap(text, text[:1000])),
    "statements.choice": inner(choice),
    "statements.yes_or_no": inner(yes_or_no),
    "statements.contents": inner(contents),
    "statements.statement": inner(statement, open_text=True),
    "statements.conclusion": inner(conclusion, question=QUESTION),
    "statements.name": inner(name, question="Who wrote it?"),
    "statements.bare_name": inner(bare_name, question="Who wrote it?"),
    "statements.concludes": inner(concludes),
    "statements.choice_in": inner(choice_in),
    "statements.is_correct": inner(is_correct),
    "statements.counted": inner(counted, question=QUESTION),
    "statements.verdict": inner(verdict, question="Is it so?"),
    "tasks.task_of": Reader(task_of),
    "units.is_known": Reader(is_known, 100),
    "units.unit_of": Reader(lambda text: unit_of(text.split()[:8]), 100),
    "values.part": Reader(lambda text: part(text, 0, len(text))),
    "values.settled": inner(settled),
    "values.value_at": inner(value_at, at=0),
    "values.values": inner(values.__wrapped__),
    "values.in_decimal_points": inner(in_decimal_points),
    "verdicts.read_rating": Reader(read_rating),
    "verdicts.read_choice": reader(read_choice, count=5),
    "verdicts.last_part": Reader(last_part),
    "voting.majority": Reader(both(majority)),
    "voting.equal_answers": Reader(both(lambda texts: equal_answers(texts, as_json=True))),
    "voting.elect": Reader(lambda text: elect([text], as_json=True)),
    "voting.majority_call": Reader(lambda text: majority_call([[("f", text)]])),
    "voting.majority_object": Reader(both(majority_object)),
    "words.unaccented": Reader(unaccented, 500),
    "words.number_in_words": Reader(number_in_words, 500),
    "words.ordinal": Reader(ordinal, 500),
    "words.yes_or_no": Reader(yes_or_no_word, 500),
    "words.as_formula": Reader(as_formula, 500),
    "words.is_nonexistent": Reader(is_nonexistent, 500),
}
"""The public functions of `answers` that take text, by module and name."""

NOT_READERS = {
    "matching.matches": "runs in a worker only, as the pattern is a stranger's",
    "phrases.words": "takes a function",
    "response_format.is_json_mode": "looks at the type of a field",
    "response_format.fit": "checked in its own tests, as the schema counts too",
    "response_format.fitted": "the same",
    "response_format.fault_in_schema": "the same",
    "response_format.schema_of": "looks at fields",
    "json_reply.strict_loads": "is the standard library's",
    "response_format.answer": "the same, in a worker",
    "worker.answer": "calls the others",
}
"""Other public functions of `answers` with a text in a parameter's type, and why."""


def asked_as(how: AnswerFormat) -> Reader:
    return reader(extract_answer, how=how)


def of_message(text: str) -> object:
    return read_chat([{"role": "user", "content": [{"type": "text", "text": text}]}])


def of_tags(text: str) -> object:
    return read_tags({"messages": [{"role": "user", "content": text}]})


def of_error(text: str) -> object:
    error = ProviderFailed(f"not supported {text}", status=400)
    sampling = Sampling(temperature=1.0, fields={"thinking": {}, "response_format": {}})
    return (
        refusals.refused_fields(error, sampling),
        refusals.refuses_n(error),
        refusals.refuses_whole(error, (Message("user", text),)),
    )


def of_failure(text: str) -> None:
    with pytest.raises(ProviderFailed), failures.as_sample_errors():
        raise ValueError(text)


def of_expression(text: str) -> None:
    with suppress(RequestRejected):
        expression.parse(text[: expression.MAX_LENGTH])


def of_first_token(text: str) -> object:
    return first_tokens(TokenLogprob("a", 0.0, ((text, 0.0), ("a", 0.0))), 5)


def of_formalisation(text: str) -> None:
    z3.read_formalisation(text, may_be_answer=True)
    with suppress(UnusableReply):
        z3.read_formalisation(text)


def of_chunks(text: str) -> object:
    return asyncio.run(chunks.split(text, lambda piece: len(piece.encode()) // 3, 100, 30))


def of_relevance(text: str) -> object:
    return asyncio.run(bm25.scores(text, [text, text[::2]]))


def of_question(text: str) -> object:
    return find_question(text, lambda piece: len(piece) // 3, 100)


def of_long_conversation(text: str) -> object:
    llm = SmallLLM(window=1024)
    said = Message("user", text), Message("assistant", text), Message("user", text)
    return take_apart(said, window_of(llm, None))


OTHERS: Mapping[str, Reader] = {
    "marked": asked_as("marked"),
    "boxed": asked_as("boxed"),
    "the choice": asked_as("choice"),
    "a number": asked_as("number"),
    "json": asked_as("json"),
    "the last line": asked_as("last_line"),
    "the question": Reader(lambda text: extract_answer("So it is 5.", question=text)),
    "tests": Reader(read_tests),
    "a program": Reader(read_program),
    "a formalisation": Reader(find_formalisation),
    "z3's reply": Reader(of_formalisation),
    "leap's examples": Reader(leap.read_examples),
    "leap's question": Reader(lambda text: leap.may_hold_examples((Message("user", text),))),
    "a verdict of mars": Reader(mars.read_verdict),
    "rto's code": Reader(rto.code_of),
    "a word": Reader(lambda text: says("EQUIVALENT", text)),
    "the complexity": Reader(autothink.complexity),
    "thoughts": Reader(lambda text: up_to_thought(text, ("wait", "but", "so"), 10_000)),
    "tokens": Reader(lambda text: token_ends(text, list(text))),
    "first tokens": Reader(of_first_token),
    "a marked answer": Reader(lambda text: without_mark(Answer(f"{text}\nANSWER: 5"))),
    "frames": Reader(lambda text: enclose([text], "answer", "0123")),
    "a conversation": Reader(of_message),
    "tags": Reader(of_tags),
    "an expression": Reader(of_expression),
    "an error's fields": Reader(of_error),
    "a failure": Reader(of_failure),
    "chunks": Reader(of_chunks),
    "relevance": Reader(of_relevance),
    "a question": Reader(of_question),
    "a long conversation": Reader(of_long_conversation),
}  # fmt: skip
"""Readers outside `answers`, and other ways to call those inside."""


def cpu_s(run: Callable[[], object]) -> float:
    forget_readings()
    started = time.process_time()
    run()
    return time.process_time() - started


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def growth(run: Callable[[int], object], longest: int) -> float:
    """Return how many times longer `run(longest)` takes than a quarter; 0 below the floor."""
    most, least = cpu_s(partial(run, longest)), float("inf")
    for _ in range(3):
        if most < FLOOR_S or most / least <= MOST:
            break
        least = min(least, cpu_s(partial(run, longest // 4)))
        most = min(most, cpu_s(partial(run, longest))) if most / least > MOST else most
    return 0.0 if most < FLOOR_S else most / least


def check(read: Callable[[str], object], texts: Mapping[str, Text], longest: int) -> None:
    read("The answer is 42.")  # compiles its patterns
    with no_garbage_collection():
        found = {
            kind: growth(lambda length, made=made: read(made(length)), longest)  # type: ignore[misc]
            for kind, made in texts.items()
        }
    assert not {kind: ratio for kind, ratio in found.items() if ratio > MOST}


@pytest.mark.parametrize("name", [*READERS, *OTHERS])
def test_time_grows_with_the_length_of_a_text(name: str) -> None:
    tested = {**READERS, **OTHERS}[name]
    check(tested.read, TEXTS, tested.longest)


def public_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield the public functions of `answers` by module and name."""
    package = f"{answers.__name__}."
    for found in pkgutil.walk_packages(answers.__path__, package):
        module = import_module(found.name)
        for called, value in vars(module).items():
            is_own = getattr(value, "__module__", "") == found.name and not inspect.isclass(value)
            if callable(value) and is_own and not called.startswith("_"):
                yield f"{found.name.removeprefix(package)}.{called}", value


def mentions_text(hint: object) -> bool:
    return hint is str or any(map(mentions_text, get_args(hint)))


def test_every_public_function_that_takes_text_is_tested() -> None:
    taking = set[str]()
    for called, function in public_functions():
        hints = get_type_hints(function)
        hints.pop("return", None)
        if any(map(mentions_text, hints.values())):
            taking.add(called)
    assert taking == READERS.keys() | NOT_READERS.keys()
    assert not READERS.keys() & NOT_READERS.keys()


def in_pieces(text: str, feed: Callable[[str], object]) -> None:
    for start in range(0, len(text), 3):
        feed(text[start : start + 3])


def filtered(text: str) -> None:
    """Before the section, in it, and in it with stop strings that almost come."""
    for stops in ((), ("END OF IT", "a" * 50)):
        outside = SectionFilter("output", ("thinking", "reflection"), stops)
        in_pieces(text, outside.feed)
        outside.close()
        inside = SectionFilter("output", ("thinking", "reflection"), stops)
        inside.feed("<output>")
        in_pieces(text, inside.feed)
        inside.close()


def cited(text: str) -> None:
    for before in ("", "[x](", "https://sea.example/"):
        shown = CitationFilter(SOURCES, "Sources")
        shown.feed(before)
        in_pieces(text, shown.feed)
        shown.close()


def accumulated(text: str) -> None:
    reply = DeltaAccumulator()

    def add(piece: str) -> None:
        call: dict[str, Any] = {
            "index": 0,
            "id": "1",
            "function": {"name": "f", "arguments": piece},
        }
        fields: dict[str, Any] = {"refusal": piece, "of": {"data": piece}, "parts": [piece]}
        reply.add(Delta(text=piece, reasoning=piece, tool_calls=(call,), fields=fields))

    in_pieces(text, add)
    answer = reply.answer("stop")
    assert answer.text == answer.tool_calls[0].arguments == answer.fields["refusal"] == text


CALL_FORMATS: Mapping[str, CallFormat] = {
    '{"name": "': HERMES,
    '[{"name": "f", "arguments": {': MISTRAL,
    "{": LLAMA,
    "<function=f><parameter=a>": QWEN_CODER,
    "f<arg_key>a</arg_key><arg_value>": GLM,
    "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>": KIMI,
    "[f(a='": LLAMA_4,
    'call:f{a:<|"|>': GEMMA_4,
}
"""Tool-call formats by the beginning of a call."""


def calls_found(text: str) -> None:
    for begun, form in CALL_FORMATS.items():
        opening = form.spans[0].opening
        for before in ("", opening + begun):
            finder = CallFinder(Tools(form, {"f": {}}))
            finder.feed(before)
            in_pieces(text, finder.feed)
            finder.close()


def split(text: str) -> None:
    for opened in (False, True):
        splitter = ThinkSplitter(opened=opened)
        in_pieces(text, splitter.feed)
        splitter.close()
    for before in ("", "<|channel|>", "<|channel|>final<|message|>", HARMONY_CALL):
        harmony = HarmonyReader(tools=Tools(HARMONY_CALLS, {"f": {}}))
        harmony.feed(before)
        in_pieces(text, harmony.feed)
        harmony.close()
    wrapped = reasoning_of("<think></think><response></response>")
    for before in ("", "<think></think>", "<think></think><response>"):
        splitter = ThinkSplitter(reasoning=wrapped)
        splitter.feed(before)
        in_pieces(text, splitter.feed)
        splitter.close()
    finder = StopFinder(("</", "word word", "\n\n\n"))
    in_pieces(text, finder.feed)
    finder.close()


HARMONY_CALL = "<|channel|>commentary to=functions.f<|message|>"

STREAMED = (
    " ", "\n", "a", "word ", "<think>", "</think>", "<", "</", ">", "<output>",
    "<thinking><output></thinking>", '"', "{", '{"a":', "<tool_call>",
    '<tool_call>{"a": "</tool_call>', "[TOOL_CALLS]", "</parameter>", "[f(a='", "'", "<|end|>",
    "<|start|>", "<|channel|>",
)  # fmt: skip
"""Texts of which the parts of a stream look for the beginning or the end."""

STREAMS: Mapping[str, Callable[[str], None]] = {
    "a section": filtered,
    "citations": cited,
    "deltas": accumulated,
    "calls": calls_found,
    "thinking and stops": split,
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_piece_of_a_stream_costs_the_same_however_much_has_come(stream: str) -> None:
    check(STREAMS[stream], {repr(unit): repeated(unit) for unit in STREAMED}, LONG)


def test_a_reply_of_50_megabytes_costs_little() -> None:
    """Against a search for one character in it, as a machine may be slow."""
    text = "Nothing is decided here. " * 2_000_000
    one_search = cpu_s(partial(text.count, "~"))
    for read in (extract_answer, without_reasoning, excerpt, read_rating, read_json):
        assert cpu_s(partial(read, text)) < 20 * one_search + 0.1, read
    assert extract_answer(f"<think>{text}</think>{text}\nANSWER: 42") == "42"
    assert read_rating(f"<think>{text}</think>{text}\nRATING: 4") == 4
    assert read_json(f"[{text}]") is None


def polynomial(number: int) -> str:
    return "+".join(f"{(number * n) % 97 + 2}x^{n}" for n in range(1, 50))


VOTES: Mapping[str, Callable[[int], str]] = {
    "polynomials": polynomial,
    "pairs": lambda number: f"({', '.join(['1.25'] * 60)}, {number})",
    "decimals": lambda number: f"0.{number:0300d}1",
    "texts": lambda number: f"{'word ' * 200}{number}",
    "numbers": str,
    "shares": lambda number: f"{number} %" if number % 2 else f"{number / 100}",
}


@pytest.mark.parametrize("kind", VOTES)
def test_what_many_answers_cost_together_is_bounded(kind: str) -> None:
    """Comparing them in pairs would cost 16 times as much for four times as many."""
    spelled = [VOTES[kind](number) for number in range(512)]

    def vote(count: int) -> None:
        found = AnswerClasses()
        for answer in spelled[:count]:
            found.add(answer)
        found.names()

    with no_garbage_collection():
        vote(8)
        assert growth(vote, 512) <= MOST + 1


def test_many_objects_vote_in_linear_time() -> None:
    texts = [numbered('"k#": #', ", ", "{", f', "n": {n}}}')(50_000) for n in range(16)]
    assert majority_object(texts[:1]).votes
    with no_garbage_collection():
        assert growth(lambda count: majority_object(texts[:count]), 16) <= MOST
