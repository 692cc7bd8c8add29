"""The model that is trained: the base, in 4-bit NF4 or plain, with LoRA layers on it; or all of the base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.cpu import multiplies_bfloat16
from contract.errors import AssayError, listed
from contract.loaded_model import settle_head
from contract.model_folder import is_encoder_decoder, read_json

if TYPE_CHECKING:
    from peft import PeftModel

    from contract.recipe import Recipe, TrainPart

# model types whose activations overflow it
NO_FLOAT16 = ("t5", "mt5", "umt5", "longt5", "switch_transformers")


def choose_device(wanted: str, train: TrainPart, folder: Path) -> str:
    """ "cuda" or "cpu", for the base in `folder`.

    Raises:
        AssayError: CUDA was asked for and there is none, or the recipe's dtype cannot be trained in there or with this
            base.
    """
    import torch

    kind = read_json(folder / "config.json").get("model_type")
    if train.nf4.compute_dtype == "float16" and kind in NO_FLOAT16:
        raise AssayError(
            "T5 is not trained in float16: its feed-forward layers give values beyond what float16 holds",
            where="train.nf4.compute_dtype",
            got=f"float16 for a base of type {kind}",
            hint="set it to bfloat16, or to float32",
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise AssayError(
            "there is no CUDA device",
            where="--device cuda",
            got=f"torch {torch.__version__}",
            hint="use --device cpu, or install a CUDA build of torch",
        )
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if device == "cpu" and train.nf4.compute_dtype == "float16":
        raise AssayError(
            "training on a CPU in float16 is not supported", where="train.nf4.compute_dtype", hint="set it to float32"
        )
    if device == "cpu" and train.nf4.compute_dtype == "bfloat16" and not multiplies_bfloat16():
        print(
            "note: this processor has no instructions for bfloat16, so training takes many times as long as with "
            "train.nf4.compute_dtype: float32",
            file=sys.stderr,
        )
    return device


def load_base(folder: Path, recipe: Recipe, device: str) -> Any:
    """The base; all parameters frozen unless the method is full.

    qlora: every linear layer but lm_head (and what transformers keeps in float32, T5's wo) is quantized to NF4 from the
    stored weights cast to float32, so that dequantizing gives what `bitsandbytes.functional.dequantize_4bit` gives
    anyone else; the rest is float32.
    lora: the weights in train.nf4.compute_dtype, which is float32 unless the recipe says otherwise.
    full: the weights in float32.

    Raises:
        AssayError: the folder does not hold a causal language model or an encoder-decoder in safetensors.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

    from trainer import attention

    train = recipe.train
    compute = getattr(torch, train.nf4.compute_dtype)
    quantization = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=train.nf4.double_quant,
            bnb_4bit_compute_dtype=compute,
        )
        if train.method == "qlora"
        else None
    )
    pairs = is_encoder_decoder(folder)
    try:
        model, found = (AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM).from_pretrained(
            folder,
            output_loading_info=True,
            dtype=compute if train.method == "lora" else torch.float32,
            quantization_config=quantization,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise AssayError(
            "the base cannot be loaded",
            where=str(folder),
            got=str(error).splitlines()[0],
            expected=f"{'an encoder-decoder' if pairs else 'a causal language model'} in safetensors",
        ) from None
    wrong = [f"{name}: missing" for name in sorted(found["missing_keys"])]
    wrong += [f"{name}: not expected" for name in sorted(found["unexpected_keys"])]
    if wrong:
        raise AssayError("the base's tensors are not those of its architecture", where=str(folder), got=listed(wrong))
    settle_head(model, folder)
    if quantization:
        _keep_full_precision_kernels(model)
    model.requires_grad_(train.method == "full")
    model.config.use_cache = False
    if not pairs and attention.is_for(model.config, device, compute, train.max_length):
        model.set_attn_implementation(attention.ATTENTION)
    return model


def _keep_full_precision_kernels(model: Any) -> None:
    """Stop bitsandbytes from repacking weights for its bfloat16 inference kernel when a CPU model is evaluated.

    The repacked layer computes in bfloat16 and, once training goes on, passes no gradient through itself.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def add_lora(model: Any, recipe: Recipe) -> PeftModel:
    """LoRA layers in float32, seeded, on the modules the recipe names.

    Raises:
        AssayError: the model has no such module, or lm_head is among them.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    lora = recipe.train.lora
    if "lm_head" in lora.target_modules:
        raise AssayError(
            "lm_head cannot carry an adapter",
            where="train.lora.target_modules",
            hint='remove it, or use "all-linear", which leaves it out',
        )
    set_seed(recipe.train.seed)
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                use_rslora=lora.use_rslora,
            ),
        )
    except ValueError as error:
        raise AssayError(
            "the model has no module to put an adapter on",
            where="train.lora.target_modules",
            got=str(error).splitlines()[0],
        ) from None


def trainable(model: Any, recipe: Recipe) -> Any:
    """What is trained on the loaded base: LoRA layers, or the base itself, in a seeded training.

    Raises:
        AssayError: as `add_lora`.
    """
    if recipe.train.method != "full":
        return add_lora(model, recipe)
    from transformers import GenerationConfig, set_seed

    set_seed(recipe.train.seed)
    model.generation_config = GenerationConfig()  # checkpoints are saved with it, and the base's may not be valid
    return model


def count_parameters(model: Any) -> tuple[int, int]:
    """How many are trained, and how many there are, 4-bit ones unpacked."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trained, total = model.get_nb_trainable_parameters()
        return trained, total
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, total


def trained_on(model: Any, recipe: Recipe) -> dict[str, Any]:
    """What the adapter saw as its base, which PEFT's own config does not record; read off the loaded layers."""
    compute = recipe.train.nf4.compute_dtype
    if recipe.train.method != "qlora":
        return {"quant": "w16", "compute_dtype": compute}
    from bitsandbytes.nn import Linear4bit

    state = next(module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit))
    return {
        "quant": state.quant_type,
        "block_size": state.blocksize,
        "double_quant": bool(state.nested),
        "compute_dtype": compute,
    }


def adapted_modules(model: PeftModel) -> list[str]:
    """The last parts of the names of all layers that carry an adapter, sorted."""
    from peft.tuners.lora import LoraLayer

    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LoraLayer)})
