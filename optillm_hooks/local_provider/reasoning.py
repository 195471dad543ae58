"""How a model marks its reasoning in a reply, as its chat template shows."""

from dataclasses import dataclass, replace

from optillm_hooks.decoding.markers import MARKERS, Markers

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
"""Markers of Harmony."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The markers around the reasoning at the beginning of a reply, and around the answer."""

    opening: str
    closing: str
    lead: str = "\n"
    """What follows the opening marker where a decoding method inserts it."""

    gap: str = "\n\n"
    """What follows the closing marker where a decoding method inserts it."""

    wrappers: tuple[Markers, ...] = ()
    """Markers around the answer, which are not part of it."""

    always_wrapped: bool = False
    """Whether an answer without reasoning has these markers too."""

    next: str = ""
    """What stands between the reasoning and anything else."""

    answer: str = ""
    """What stands before the answer."""

    @property
    def markers(self) -> Markers:
        return self.opening, self.closing

    def marked(self, markers: Markers | None) -> "ReasoningFormat":
        """Return the format with other markers around the reasoning; None: with its own."""
        if markers is None or markers == self.markers:
            return self
        return ReasoningFormat(*markers)


THINK = ReasoningFormat(*MARKERS)
HARMONY = ReasoningFormat(
    f"{CHANNEL}analysis{MESSAGE}",
    END,
    lead="",
    gap=f"{START}assistant",
    next=f"{START}assistant",
    answer=f"{CHANNEL}final{MESSAGE}",
)
_COMMAND = ReasoningFormat(
    "<|START_THINKING|>",
    "<|END_THINKING|>",
    wrappers=(
        ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ("<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    always_wrapped=True,
)
_FORMATS = {
    f"{CHANNEL}analysis{MESSAGE}": HARMONY,
    "[THINK]": ReasoningFormat("[THINK]", "[/THINK]"),
    "<seed:think>": ReasoningFormat("<seed:think>", "</seed:think>"),
    "<|START_THINKING|>": _COMMAND,
    "<|inner_prefix|>": ReasoningFormat("<|inner_prefix|>", "<|inner_suffix|>"),
    "<|channel>thought": ReasoningFormat("<|channel>thought", "<channel|>"),
}
"""Formats by a text that occurs in the templates of their models only."""

_WRAPPERS = {
    "<response></response>": ("<response>", "</response>"),
    "<answer>": ("<answer>", "</answer>"),
}
"""Markers around the answers of Granite 3 and Hunyuan, by a text that occurs in their templates."""


def reasoning_of(template: str) -> ReasoningFormat:
    """Return the reasoning format of a model with this chat template."""
    for sign, found in _FORMATS.items():
        if sign in template:
            return found
    wrappers = tuple(pair for sign, pair in _WRAPPERS.items() if sign in template)
    return replace(THINK, wrappers=wrappers)
