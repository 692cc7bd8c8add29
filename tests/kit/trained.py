"""A tiny model that has really learned its task: a Llama trained from nothing, and a LoRA adapter on its NF4 weights.

What is judged by the default limits must have something to lose: such a model writes right summaries, ends them, and
is sure of most of their tokens. A random one has first choices that hang by a thread.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.artifact import open_artifact
from contract.example import Example
from contract.prompt import DEFAULT_USER, PromptSpec
from tests.kit import dialogues as kit_dialogues
from tests.kit.dialogues import dialogues
from tests.tiny import QWEN2_REGEX, make_llama, save_byte_level

BASE_STEPS, ADAPTER_STEPS, BATCH = 160, 100, 32
PEAK_RATE, ADAPTER_RATE = 5e-3, 1e-2

Row = tuple[list[int], list[int]]  # prompt ids, completion ids


@dataclass(frozen=True)
class Trained:
    """Folders. Do not write into them: they are kept from session to session."""

    base: Path  # a plain Hugging Face folder, float16
    peft: Path  # a plain PEFT adapter, trained on `base` as NF4
    early: Path  # the same adapter half-way through its training


def trained(cache: Path, seed: int) -> Trained:
    """What training with that seed gives, from `cache` where it is there; trained at most once at a time.

    The same seed gives the same weights on the same machine, on one thread.
    """
    from filelock import FileLock

    folder = cache / f"{seed}-{_recipe_digest(cache)}"
    found = Trained(folder / "base", folder / "peft", folder / "early")
    with FileLock(cache / f"{seed}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as making, _one_thread():
                _train(Path(making) / "made", folder, seed)
                (Path(making) / "made").rename(folder)
    return found


def _recipe_digest(cache: Path) -> str:
    """Of all that the folders depend on (an adapter names its base's path): what has changed is trained again."""
    import torch
    import transformers

    sources = [Path(__file__), Path(kit_dialogues.__file__), Path(__file__).parents[1] / "tiny.py"]
    told = [source.read_text(encoding="utf-8") for source in sources]
    told += [str(cache), DEFAULT_USER, torch.__version__, transformers.__version__]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, and no more of the machine than a worker's share."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_tokenizer(folder: Path) -> None:
    """Names, things and the words around them are tokens of their own; digits stand alone."""
    from tokenizers import Regex, pre_tokenizers

    steps = [
        pre_tokenizers.Split(Regex(QWEN2_REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    seen = [*dialogues(300, 1), *dialogues(300, 2, hears=True)]
    texts = [f"user\n{DEFAULT_USER.format(document=example.document)}" for example in seen]
    texts += [f"assistant\n{example.references[0]}" for example in seen]
    save_byte_level(folder, steps, texts)


def _train(making: Path, folder: Path, seed: int) -> None:
    """Base and adapter into `making`, as they will lie in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from runtimes.nf4 import put_on_nf4

    base = make_llama(making / "base", seed=seed, tokenizer=_make_tokenizer, initializer_range=0.05)
    stops = {"bos_token_id": 0, "eos_token_id": [4, 1], "pad_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(stops))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    _fit(model, _rows(base, dialogues(BASE_STEPS * BATCH, 1000 + seed, hears=True)), BASE_STEPS, PEAK_RATE)
    model.half().save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps(stops))

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    put_on_nf4(model, model.get_output_embeddings(), double_quant=True)
    torch.manual_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")

    def half_way(step: int) -> None:
        if step == ADAPTER_STEPS // 2:
            adapted.save_pretrained(making / "early", save_embedding_layers=False)

    rows = _rows(base, dialogues(ADAPTER_STEPS * BATCH, 2000 + seed))
    _fit(adapted, rows, ADAPTER_STEPS, ADAPTER_RATE, half_way)
    adapted.save_pretrained(making / "peft", save_embedding_layers=False)


def _rows(base: Path, examples: Sequence[Example]) -> list[Row]:
    """Ids as every runtime encodes them."""
    from runtimes import load_runtime

    runtime = load_runtime(open_artifact(base), threads=1)
    try:
        return [
            (list(runtime.encode(messages)), list(runtime.encode_completion(messages, example.references[0])))
            for example in examples
            for messages in [PromptSpec().messages(example.document)]
        ]
    finally:
        runtime.close()


def _fit(
    model: Any, rows: list[Row], steps: int, rate: float, after: Callable[[int], object] = lambda step: None
) -> None:
    """Train in place on completion tokens, each row once; Muon for the matrices of the layers, AdamW for the rest."""
    import torch

    from trainer.muon import Muon

    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    whole = [weight for name, weight in named if weight.ndim == 2 and ".layers." in name and "lora_" not in name]
    rest = [weight for _, weight in named if not any(weight is other for other in whole)]
    groups = [{"params": whole, "matrices": True}, {"params": rest}]
    optimizer = Muon([group for group in groups if group["params"]], lr=rate, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 15, (steps - step) / (0.5 * steps))
    )
    random.Random(0).shuffle(rows)
    model.train()
    for step in range(steps):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        longest = max(len(prompt) + len(target) for prompt, target in batch)
        ids = torch.full((len(batch), longest), 2)
        wanted = torch.full((len(batch), longest), -100)
        for row, (prompt, target) in enumerate(batch):
            end = len(prompt) + len(target)
            ids[row, :end] = torch.tensor([*prompt, *target])
            wanted[row, len(prompt) : end] = torch.tensor(target)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight for _, weight in named], 1.0)
        optimizer.step()
        plan.step()
        after(step + 1)
    model.eval()
