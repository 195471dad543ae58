"""Loads the weights of GGUF files into models of transformers, which they stay in as stored."""

import re
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from accelerate import init_empty_weights
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor
from torch.nn import Embedding, Linear, Parameter
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    MiniMaxM2TensorProcessor,
    Qwen2MoeTensorProcessor,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from optillm_hooks.local_provider.block_parts import Blocks
from optillm_hooks.local_provider.completeness import check_loading_info, check_weights
from optillm_hooks.local_provider.gguf_blocks import (
    BlockEmbedding,
    BlockExperts,
    BlockLinear,
    BlockWeight,
    can_use_kernels,
    unpack,
)
from optillm_hooks.local_provider.gguf_files import Prepared, StoredTensor

_HALF: Final = {"F16": torch.float16, "BF16": torch.bfloat16}
_MERGING: Final = (Qwen2MoeTensorProcessor, MiniMaxM2TensorProcessor)
"""Processors that make one tensor of the experts' gate and up, and nothing else of them."""

_EXPERTS: Final = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.weight")
_FREQUENCIES: Final = "rope_freqs.weight"
"""Divisors of the rotary frequencies, which Llama 3.1 has."""


def load_gguf(prepared: Prepared, dtype: torch.dtype | None, device: str) -> Any:
    """Return the model of a GGUF file: its weights as stored, or in `dtype` if that is given.

    Raises:
        ProviderFailed: a weight is missing, unexpected, or of another shape.
    """
    if not prepared.stays_in_blocks:
        return _load_unpacked(prepared, dtype or torch.float32, device)
    config = AutoConfig.from_pretrained(prepared.folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype or torch.float32, experts_implementation="eager"
        )
    _Loader(model, prepared, dtype, device).load()
    if dtype is None and device == "cpu":
        can_use_kernels()  # compiles them now, not during a request
    return model.to(device)


def _load_unpacked(prepared: Prepared, dtype: torch.dtype, device: str) -> Any:
    """Return the model of an architecture that only transformers' own loader knows."""
    from transformers import GgufConfig

    model, found = AutoModelForCausalLM.from_pretrained(
        prepared.gguf.parent,
        gguf_file=prepared.gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        device_map={"": device},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    check_loading_info(str(prepared.gguf), found)
    return model


def _names(model: Any, processor: Any) -> dict[str, str]:
    """Return the names of a model's weights by their names in GGUF files.

    Transformers looks at each of the model's modules, which takes seconds, but names in files come
    from the whole model, or from the model without its output layer.
    """
    prefix = model.base_model_prefix
    inner = SimpleNamespace(state_dict=getattr(model, prefix).state_dict, named_children=dict)
    whole = SimpleNamespace(
        config=model.config,
        state_dict=model.state_dict,
        named_children=lambda: [(prefix, inner)],
    )
    inner.config = model.config
    found: dict[str, str] = get_gguf_hf_weights_map(whole, processor)
    return found


class _Loader:
    """Puts the tensors of a GGUF file into a model whose weights are on the meta device."""

    def __init__(
        self, model: Any, prepared: Prepared, dtype: torch.dtype | None, device: str
    ) -> None:
        self._model, self._prepared, self._dtype, self._device = model, prepared, dtype, device
        self._file = np.memmap(prepared.gguf, mode="c")
        processor = TENSOR_PROCESSORS.get(prepared.architecture, TensorProcessor)
        self._processor = processor(config=model.config.to_dict())
        self._names = _names(model, self._processor)
        """The weights of the model by their names in the file."""

        self._merged: dict[str, Any] = {"tensors": {}}
        """Weights that the processor makes of several tensors, such as those of experts."""

        self._experts: dict[str, list[BlockWeight]] = {}
        """Weights of experts in their blocks; those of gate and up have one name in the model."""

        self._missing = set(model.state_dict())
        self._unexpected: list[str] = []
        self._reshaped: list[str] = []

    def load(self) -> None:
        """Load all tensors; raise ProviderFailed unless they are the weights of the model."""
        for stored in self._prepared.tensors:
            if stored.name == _FREQUENCIES:
                self._divide_frequencies(torch.from_numpy(self._numbers(stored)))
            elif not self._put_stored(stored) and not self._put_experts(stored):
                self._put_processed(stored)
        for name, numbers in self._merged["tensors"].items():
            self._put(name, numbers)
        self._place_experts()
        self._tie()
        check_weights(
            str(self._prepared.gguf),
            missing=self._missing,
            unexpected=self._unexpected,
            reshaped=self._reshaped,
        )

    def _raw(self, stored: StoredTensor) -> Any:
        """Return the bytes of a tensor as a numpy array [..., bytes of a row]."""
        raw = self._file[stored.start : stored.start + stored.size]
        return raw.reshape(*stored.shape[:-1], -1)

    def _numbers(self, stored: StoredTensor) -> Any:
        """Return the numbers of a tensor as a numpy array in float32."""
        return dequantize(self._raw(stored), GGMLQuantizationType[stored.kind])

    def _put_stored(self, stored: StoredTensor) -> bool:
        """Put a matrix into its layer as it is stored; return False if that is not possible."""
        name = self._names.get(stored.name, "")
        module = name.rpartition(".")[0]
        layer = self._model.get_submodule(module) if name.endswith(".weight") else None
        if type(layer) is not Linear and not isinstance(layer, Embedding):
            return False
        weight = self._weight(stored) if list(layer.weight.shape) == stored.shape else None
        if weight is None:
            return False
        if self._dtype is not None:
            self._put(name, weight.dense(self._dtype))
            return True
        kept = (
            BlockEmbedding(layer, weight)
            if isinstance(layer, Embedding)
            else BlockLinear(weight, layer.bias)
        )
        self._model.set_submodule(module, kept)
        self._missing.discard(name)
        return True

    def _put_experts(self, stored: StoredTensor) -> bool:
        """Keep a layer's experts as they are stored; return False for other tensors."""
        found = _EXPERTS.fullmatch(stored.name)
        name = self._names.get(found[1]) if found else None
        if name is None or self._dtype is not None or not isinstance(self._processor, _MERGING):
            return False
        experts, rows, columns = stored.shape
        shape = experts * rows, columns
        weight = self._as_stored(stored, slice(None), shape)
        if weight is None:
            numbers = torch.from_numpy(np.copy(self._numbers(stored)))
            weight = BlockWeight(shape, numbers.view(shape)).to(self._device)
        self._experts.setdefault(name, []).append(weight)
        return True

    def _place_experts(self) -> None:
        """Put the experts in their blocks into the model: those of gate before those of up."""
        for name, parts in self._experts.items():
            module, _, leaf = name.rpartition(".")
            owner = self._model.get_submodule(module)
            experts, *shape = getattr(owner, leaf).shape
            self._missing.discard(name)
            found = [sum(part.shape[0] for part in parts) // experts, parts[0].shape[1]]
            if found != shape:
                self._reshaped.append(f"an expert of {name} is {found}, not {shape}")
                continue
            delattr(owner, leaf)
            setattr(owner, leaf, BlockExperts(experts, parts))

    def _weight(self, stored: StoredTensor) -> BlockWeight | None:
        """Return a matrix as it is stored, with its rows in the order of the model.

        Returns None if its type is not known, or if it is to be changed in another way.
        """
        order = self._row_order(stored)
        if order is None:
            return None
        return self._as_stored(stored, order, (stored.shape[0], stored.shape[1]))

    def _as_stored(
        self, stored: StoredTensor, order: Tensor | slice, shape: tuple[int, int]
    ) -> BlockWeight | None:
        """Return a matrix of `shape` with its rows in `order`; None if its type is not known."""
        raw = torch.from_numpy(self._raw(stored)).view(shape[0], -1)[order]
        blocks: Blocks | Tensor | None
        if stored.kind in _HALF:
            blocks = raw.view(_HALF[stored.kind]).clone()
        else:
            blocks = unpack(stored.kind, raw)
        return None if blocks is None else BlockWeight(shape, blocks).to(self._device)

    def _row_order(self, stored: StoredTensor) -> Tensor | slice | None:
        """Return in which order the processor puts the rows; None if it does something else."""
        rows = np.arange(stored.shape[0], dtype=np.float32)[:, None]
        found = self._processor.process(weights=rows, name=stored.name)
        if found.name != stored.name or found.weights.shape != rows.shape:
            return None
        if np.array_equal(found.weights, rows):
            return slice(None)
        same_rows = np.array_equal(np.sort(found.weights, axis=0), rows)
        return torch.from_numpy(found.weights[:, 0]).long() if same_rows else None

    def _put_processed(self, stored: StoredTensor) -> None:
        """Put a tensor where it belongs in the model, with what the processor makes of it."""
        found = self._processor.process(
            weights=self._numbers(stored),
            name=stored.name,
            tensor_key_mapping=self._names,
            parsed_parameters=self._merged,
        )
        if found.name in self._names:
            self._put(self._names[found.name], torch.from_numpy(np.copy(found.weights)))
        elif found.name is not None:
            self._unexpected.append(stored.name)

    def _put(self, name: str, numbers: Tensor) -> None:
        """Set a weight or buffer of the model."""
        module, _, leaf = name.rpartition(".")
        owner = self._model.get_submodule(module)
        present = getattr(owner, leaf)
        self._missing.discard(name)
        if present.shape != numbers.shape:
            self._reshaped.append(f"{name} is {list(numbers.shape)}, not {list(present.shape)}")
            return
        placed = numbers.to(self._device, present.dtype)
        is_parameter = isinstance(present, Parameter)
        setattr(owner, leaf, Parameter(placed, requires_grad=False) if is_parameter else placed)

    def _divide_frequencies(self, divisors: Tensor) -> None:
        for module in self._model.modules():
            frequencies = getattr(module, "inv_freq", None)
            if isinstance(frequencies, Tensor) and frequencies.shape == divisors.shape:
                frequencies /= divisors

    def _tie(self) -> None:
        """Share the weight of the embedding with the output layer, if the file has no other."""
        if not self._model.config.get_text_config().tie_word_embeddings:
            return
        embedding = self._model.get_input_embeddings()
        if isinstance(embedding, BlockEmbedding):
            self._model.set_output_embeddings(BlockLinear(embedding.weight))
        else:
            self._model.get_output_embeddings().weight = embedding.weight
        self._missing -= dict(self._model._tied_weights_keys or {}).keys()
