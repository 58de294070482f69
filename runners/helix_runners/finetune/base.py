"""The base model in memory, as it is or in four bits, with at most one adapter in it, which leaves without a trace."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helix_es.cache import cache_dir
from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError
from helix_es.core.params import TrainParams
from helix_runners.engine.prompt import ChatPrompt
from helix_runners.engine.weights import load_weights
from helix_runners.faults import collect
from helix_runners.finetune.failures import TrainingFailed

DEFAULT = "default"  # what peft calls an adapter without a name


class Base:
    """One model at a time. Only for the thread that computes."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._place = ""
        self._source = Model(name="", source="")
        self._dtype = torch.float32
        self._model: Any = None  # transformers and peft are untyped
        self._adapted: Any = None
        self._four_bit = False
        self.tokenizer: Any = None
        self.context_tokens = 0

    @property
    def name(self) -> str:
        """The model's full name."""
        return self._source.name

    def load(self, model: Model) -> None:
        """Load `model` in place of what there was. Raises EngineError or Misconfigured if that cannot be."""
        self.free()
        self._source = model
        self._open()

    def _open(self) -> None:
        loaded = load_weights(
            self._source.source, device=self.device, dtype=self._source.dtype, cache_dir=cache_dir()
        )
        ChatPrompt(loaded.tokenizer)  # refuses a model that was not made for conversations
        self.tokenizer = loaded.tokenizer
        self.context_tokens = min(loaded.context_tokens, self._source.context_tokens)
        self._model = loaded.model
        self._place, self._dtype = self._model.name_or_path, self._model.dtype

    def adapt(self, params: TrainParams) -> Any:
        """Return the model with a new adapter of which alone the parameters are learnt.

        Raises TrainingFailed("invalid_params") if `target_modules` names what the model has not.
        """
        if params.load_in_4bit:
            self._open_in_4bit()
        elif self._model is None:
            self._open()
        alpha: Any = params.lora_alpha or 2 * params.lora_rank  # peft says int and takes any number
        config = LoraConfig(
            r=params.lora_rank,
            lora_alpha=alpha,
            lora_dropout=params.lora_dropout,
            target_modules=_targets(self._model, params.target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        )
        model, self._model = self._model, None  # what fails half-way must not be used again
        self._adapted = get_peft_model(model, config)
        self._adapted.peft_config[DEFAULT].base_model_name_or_path = self.name
        return self._adapted

    def _open_in_4bit(self) -> None:
        self.free()  # one model at a time
        quantised = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self._dtype,
        )
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self._place,
                dtype=self._dtype,
                quantization_config=quantised,
                use_safetensors=True,
                local_files_only=True,  # it was loaded before
                device_map={"": torch.device(self.device)},
            )
        except (OSError, ValueError, ImportError) as error:
            raise EngineError(f"cannot load {self._source.source} in 4 bits: {error}") from error
        self._four_bit = True
        prepare: Any = prepare_model_for_kbit_training  # untyped
        self._model = prepare(model, use_gradient_checkpointing=False)

    def release(self) -> None:
        """Take the adapter out; what was quantised for it goes too."""
        adapted, self._adapted = self._adapted, None
        if self._four_bit:
            self._model, self._four_bit = None, False
        elif adapted is not None:
            self._model = adapted.unload()
        del adapted
        collect()

    def free(self) -> None:
        """Free the memory; the next adapter loads the model again."""
        if self._model is None and self._adapted is None:
            return
        self._model = self._adapted = None
        self._four_bit = False
        collect()


def _targets(model: Any, wanted: list[str] | None) -> list[str]:
    """Return the names of the linear layers to adapt: those wanted, or all but the one that makes the logits."""
    head = model.get_output_embeddings()
    there = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    unknown = sorted(set(wanted or ()) - there)
    if unknown:
        raise TrainingFailed(
            "invalid_params",
            f"params.target_modules: the model has no linear layer {', '.join(unknown)}; "
            f"there are: {', '.join(sorted(there))}",
        )
    return sorted(set(wanted or there))
