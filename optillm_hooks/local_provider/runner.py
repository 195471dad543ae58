"""The model itself. Only the engine's thread calls what is in here."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class Runner:
    """A causal language model on one device, with the keys and values of the running rows."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device: torch.device = model.device
        self._cache: Any = None

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return int(self._model.config.max_position_embeddings)

    def prefill(self, prompt: Sequence[int], rows: int) -> Tensor:
        """Begin anew with `rows` rows that share one prompt, which is read once.

        Returns float32 logits [rows, V] of the first token.
        """
        self._cache = DynamicCache(config=self._model.config)
        logits = self._forward(torch.tensor([list(prompt)]))
        self._cache.batch_repeat_interleave(rows)
        return logits.expand(rows, -1)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token to each row; returns float32 logits [rows, V] of the next."""
        return self._forward(torch.tensor(tokens)[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the given rows alone, in this order."""
        self._cache.batch_select_indices(torch.tensor(list(rows), device=self._device))

    def clear(self) -> None:
        """Forget all rows."""
        self._cache = None

    @torch.inference_mode()
    def _forward(self, ids: Tensor) -> Tensor:
        output = self._model(
            ids.to(self._device), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits
