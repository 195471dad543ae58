"""Checks that a checkpoint has exactly the weights of its model."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from optillm_hooks.errors import ProviderFailed

if TYPE_CHECKING:
    from torch import Tensor

OTHER_TOWERS: Final = re.compile(
    r"(^|\.)(embed_)?(vision|visual|image|audio|multi_modal|mm_projector)"
)
"""Weights of the parts of a multimodal checkpoint that a text model does not have."""

_NAMED: Final = 3
"""Maximum number of weights that an error names."""


def check_loading_info(where: str, found: Mapping[str, Any]) -> None:
    """Raise ProviderFailed unless the loading info of transformers says that all weights fit.

    It leaves out weights that are tied to others, and those that the model's class ignores.
    """
    check_weights(
        where,
        missing=found["missing_keys"],
        unexpected=[key for key in found["unexpected_keys"] if not OTHER_TOWERS.search(key)],
        reshaped=[
            f"{key} is {list(has)}, not {list(needs)}"
            for key, has, needs in found["mismatched_keys"]
        ],
    )


def check_weights(
    where: str, *, missing: Collection[str], unexpected: Collection[str], reshaped: Collection[str]
) -> None:
    """Raise ProviderFailed if there is any such weight: the model would compute something else."""
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(wrong.values()):
        counts = "; ".join(_count(what, names) for what, names in wrong.items() if names)
        raise ProviderFailed(
            f"the weights of {where} do not fit its configuration: {counts}", status=500
        )


def check_finite(where: str, weights: Iterable[tuple[str, "Tensor"]]) -> None:
    """Raise ProviderFailed if a weight holds NaN or infinity: answers would be noise."""
    wrong = [name for name, weight in weights if not _finite(weight)]
    if wrong:
        raise ProviderFailed(
            f"the weights of {where} are damaged: {_count('with NaN or infinity', wrong)}",
            status=500,
        )


def _finite(weight: "Tensor") -> bool:
    if not weight.is_floating_point() or weight.dtype.itemsize < 2 or not weight.numel():
        return True
    return all(math.isfinite(end) for end in weight.detach().aminmax())


def _count(what: str, names: Collection[str]) -> str:
    """Return the number of weights and the first of their names."""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {what} ({', '.join(sorted(names)[:_NAMED])}{more})"
