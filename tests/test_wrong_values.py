"""Errors of values, in words that say what to write instead."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from optillm_hooks.wrong_values import wrong_value


class Inner(BaseModel):
    deep: int


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    whole: int = Field(default=1, ge=1)
    number: float = 0.5
    switch: bool = False
    text: str = Field(default="", max_length=3)
    words: list[str] = Field(default_factory=list[str], max_length=1)
    pair: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None

    @field_validator("text")
    @classmethod
    def _is_not_no(cls, text: str) -> str:
        if text == "no":
            raise ValueError("must not be 'no'")
        return text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"whole": "many"}, "must be a whole number"),
        ({"whole": 1.5}, "must be a whole number"),
        ({"whole": None}, "must be a whole number"),
        ({"whole": 0}, "must be greater than or equal to 1"),
        ({"number": "soon"}, "must be a number"),
        ({"number": []}, "must be a number"),
        ({"number": float("nan")}, "must be a finite number"),
        ({"switch": "perhaps"}, "must be true or false"),
        ({"switch": []}, "must be true or false"),
        ({"text": 3}, "must be a text"),
        ({"text": "long"}, "must have at most 3 characters"),
        ({"text": "no"}, "must not be 'no'"),
        ({"words": "a"}, "must be a list, such as [a, b]"),
        ({"words": ["a", "b"]}, "must have at most 1 item, not 2"),
        ({"pair": "a"}, "must be a list, such as [a, b]"),
        ({"kind": "c"}, "must be 'a' or 'b'"),
        ({"inner": 3}, "must be an object with keys"),
        ({"inner": {}}, "is missing"),
        ({"other": 3}, "is unknown"),
    ],
)
def test_it_says_what_to_write(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Form.model_validate(given)
    assert [wrong_value(error) for error in caught.value.errors()] == [said]


def test_text_that_is_no_json() -> None:
    with pytest.raises(ValidationError) as caught:
        Form.model_validate_json("{")
    assert [wrong_value(error) for error in caught.value.errors()] == ["is not valid JSON"]
