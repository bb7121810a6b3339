"""The frozen causal LM: where its files come from, how it is loaded, and that nothing changes it."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer

from ptlit.bundled_lm import smollm2_folder
from ptlit.compiled import CompiledLayers
from ptlit.hub import hub_is_reachable
from ptlit.mistake import UserMistake
from ptlit.packing import attention_is_replaceable, can_narrow, can_pack
from ptlit.products import faster_here, quicken
from ptlit.quantization import Quantization, keep_gradients, quantization_config
from ptlit.spreads import embedding_scale, key_value_scales

BUNDLED = {"bundled/SmolLM2-135M-Instruct": smollm2_folder}


@dataclass(frozen=True)
class LMShape:
    """All that a soft prompt has to know of its LM.

    `num_kv_heads` and `head_dim` are None where the layers do not all keep keys and values of one shape.
    """

    hidden_size: int
    num_layers: int
    num_kv_heads: int | None
    head_dim: int | None
    max_positions: int | None
    all_layers_attend: bool = True  # False: some layers (Mamba, linear attention) keep another kind of state
    embedding_scale: float = 1.0  # how widely its embeddings spread
    key_scales: tuple[float, ...] = ()  # and the keys of each layer
    value_scales: tuple[float, ...] = ()


class FrozenLM(nn.Module):
    """A causal LM in eval mode for good: no gradients, not in checkpoints, not copied, not sent between
    ranks. Of a LoRA on it, where `trains_lora`, nothing of this holds.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,  # of transformers; needed only by those who start from a text
        name: str = "in-memory",
        revision: str | None = None,
        gradient_checkpointing: bool = False,
        base: "FrozenLM | None" = None,  # the same LM without LoRA, sharing all other weights
        trains_lora: bool = False,
    ):
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.gradient_checkpointing = gradient_checkpointing
        self.compiled: CompiledLayers | None = None
        self.loaded_dtype = model.dtype
        for parameter in model.parameters():
            if parameter.is_floating_point():  # packed integer weights of quantised LMs cannot take the call
                parameter.requires_grad_(False)
        if faster_here():
            quicken(model)
        keep_gradients(model)
        self._base = (base,)  # in a tuple it is no part of this module
        self.trained = {name: p for name, p in model.named_parameters() if trains_lora and "lora_" in name}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        self.shape = measure_shape(model)
        self.may_pack = self.shape.all_layers_attend and can_pack(model)
        self.may_narrow = self.may_pack and can_narrow(model)
        self._register_state_dict_hook(_drop_keys)
        self._register_load_state_dict_pre_hook(_remember_place, with_module=True)
        self.register_load_state_dict_post_hook(_do_not_miss_keys)

    place_in_checkpoint: str

    def train(self, mode: bool = True) -> "FrozenLM":
        if self.trained:
            for name, module in self.model.named_modules():
                if ".lora_dropout." in name:
                    module.train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenLM":
        """Weight averaging deep-copies its module; what never changes can be shared."""
        return self.changed(self.copied_model(), trains_lora=True) if self.trained else self

    def copied_model(self) -> PreTrainedModel:
        """A model to be changed, which shares the memory of all that is frozen."""
        held = [*self.model.parameters(), *self.model.buffers()]
        trained = {id(each) for each in self.trained.values()}
        return copy.deepcopy(self.model, {id(each): each for each in held if id(each) not in trained})

    def changed(self, model: PreTrainedModel, trains_lora: bool) -> "FrozenLM":
        """This LM with a LoRA in it."""
        lm = FrozenLM(
            model,
            self.tokenizer,
            self.name,
            self.revision,
            self.gradient_checkpointing,
            base=self.base,
            trains_lora=trains_lora,
        )
        lm.compile_layers(self.compiled is not None)
        return lm

    def compile_layers(self, wanted: bool) -> None:
        """For training steps from now on, or no more."""
        if wanted and self.gradient_checkpointing:
            raise UserMistake(
                "model.compile=true keeps what model.gradient_checkpointing=true computes again: choose one."
            )
        if wanted and not self.packs:
            raise UserMistake(
                "model.compile=true is for LMs whose rows can be packed, and those of this one cannot: give "
                "model.compile=false."
            )
        self.compiled = (self.compiled or CompiledLayers(self.model)) if wanted else None

    @property
    def base(self) -> "FrozenLM":
        """Without LoRA."""
        return self._base[0] or self

    @property
    def has_lora(self) -> bool:
        return self._base[0] is not None

    @property
    def untrained(self) -> "FrozenLM":
        """As it was before any training: what a trained prompt is compared with."""
        return self.base if self.trained else self

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenLM":
        super()._apply(fn, recurse)
        if self.has_lora:  # weights are shared and have followed, buffers have not
            self.base._apply(fn, recurse)
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def packs(self) -> bool:
        """Whether rows are read without padding; the attention may have been changed since loading."""
        return self.may_pack and attention_is_replaceable(self.model)

    def embed(self, ids: Tensor) -> Tensor:
        """The embeddings of `ids` as the LM's own first step makes them."""
        return self.model.get_input_embeddings()(ids)


# Strict loading stays on: the LM's keys, those of what is trained apart, are dropped on saving and not missed
# on loading.


def _drop_keys(lm: FrozenLM, state: dict[str, Tensor], place: str, metadata: object) -> None:
    for key in [key for key in state if key.startswith(place)]:
        if key.removeprefix(f"{place}model.") not in lm.trained:
            del state[key]


def _remember_place(lm: FrozenLM, state: object, place: str, *rest: object) -> None:
    lm.place_in_checkpoint = place


def _do_not_miss_keys(lm: FrozenLM, keys: Any) -> None:
    place = lm.place_in_checkpoint
    needed = {f"{place}model.{name}" for name in lm.trained}
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(place) or key in needed]


def measure_shape(model: PreTrainedModel) -> LMShape:
    """Run one token and look: configs are wrong about keys and values for several families."""
    config = model.config.get_text_config()
    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        cache = model(input_ids=token, use_cache=True).get("past_key_values")
    layers = cache.layers if isinstance(cache, Cache) else []
    attending: list[Any] = [layer for layer in layers if isinstance(layer, DynamicLayer)]
    sizes = {tensor.shape for layer in attending for tensor in (layer.keys, layer.values)}
    all_attend = 0 < len(attending) == len(layers)
    alike = all_attend and len(sizes) == 1
    (_, heads, _, dim) = sizes.pop() if alike else (1, None, 1, None)
    has_numbers = model.device.type != "meta"
    key_scales, value_scales = key_value_scales(model) if has_numbers and alike else ((), ())
    return LMShape(
        hidden_size=cast(nn.Embedding, model.get_input_embeddings()).embedding_dim,
        num_layers=config.num_hidden_layers,
        num_kv_heads=heads,
        head_dim=dim,
        max_positions=getattr(config, "max_position_embeddings", None),
        all_layers_attend=all_attend,
        embedding_scale=embedding_scale(model) if has_numbers else 1.0,
        key_scales=key_scales,
        value_scales=value_scales,
    )


def load_lm(
    name_or_path: str,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    quantization: Quantization | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> FrozenLM:
    """A causal LM by hub name, local folder or bundled name; loaded once per process, then shared."""
    asked = (
        name_or_path,
        dtype,
        attn_implementation,
        revision,
        trust_remote_code,
        gguf_file,
        quantization,
    )
    lm = _load_once(*asked)
    if lm.dtype != lm.loaded_dtype:  # a run in true half precision has changed it for good
        _load_once.cache_clear()
        lm = _load_once(*asked)
    lm.gradient_checkpointing = gradient_checkpointing
    lm.compile_layers(compile)
    return lm


@functools.lru_cache(maxsize=1)
def _load_once(
    name_or_path: str,
    dtype: str,
    attn_implementation: str | None,
    revision: str | None,
    trust_remote_code: bool,
    gguf_file: str | None,
    quantization: str | None,
) -> FrozenLM:
    how: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization is not None:
        how["quantization_config"] = quantization_config(quantization)
    with said_of(name_or_path):
        source, where = files_of(name_or_path, revision), place(revision, trust_remote_code, gguf_file)
        print(f"Loading {name_or_path} ...", flush=True)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **how, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    name = (
        str(Path(source).resolve())
        if name_or_path in BUNDLED or Path(name_or_path).is_dir()
        else name_or_path
    )
    return FrozenLM(model, tokenizer, name, revision)


def load_tokenizer(
    name_or_path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> Any:
    """What an LM reads texts with, without the LM."""
    with said_of(name_or_path):
        source = files_of(name_or_path, revision)
        return AutoTokenizer.from_pretrained(source, **place(revision, trust_remote_code, gguf_file))


def place(revision: str | None, trust_remote_code: bool, gguf_file: str | None) -> dict[str, Any]:
    """In the words of transformers, which takes None for something said."""
    asked = {"revision": revision, "trust_remote_code": trust_remote_code, "gguf_file": gguf_file}
    return {key: value for key, value in asked.items() if value}


@contextmanager
def said_of(name_or_path: str) -> Iterator[None]:
    """Whatever transformers objects to, in one sentence."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserMistake(
            f"model.name_or_path={name_or_path} could not be loaded as a causal LM: {reason} "
            f"Give the name of a model on the hub, a local folder, or {', '.join(BUNDLED)}."
        ) from error


def files_of(name_or_path: str, revision: str | None) -> str:
    """What transformers is given: a folder, or the name itself while the hub can be asked."""
    if name_or_path in BUNDLED:
        return str(BUNDLED[name_or_path]())
    if Path(name_or_path).is_dir() or hub_is_reachable():
        return name_or_path
    try:
        return snapshot_download(name_or_path, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise OSError("the Hugging Face hub cannot be reached and its cache does not hold it.") from error
