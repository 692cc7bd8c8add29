"""Merging and exporting against the usual ways: PEFT's merge, llama.cpp's converter and its quantizer; prints ratios.

    python -m benchmarks.export [--llama-cpp FOLDER] [--work FOLDER] [--repeats 3] [--threads N]

Random weights in TinyLlama's 1.1 billion shape with a rank-16 adapter on all linear layers, in float16. Each side is a
process of its own that starts from nothing and ends with `sync`; the sides take turns, and medians are compared. Memory
is the peak of resident pages, mapped files included. Our structural checks are on. FOLDER is what llama.cpp's build
made: FOLDER/bin/llama-quantize beside its source with convert_hf_to_gguf.py in FOLDER/src, which ASSAY_LLAMA_CPP names
otherwise; without it only PEFT's merge is measured. Our peak is measured on 0.3 billion parameters too, and what
starting, reading, hashing and writing take by themselves is printed to hold our times against.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile

from contract.cpu import usable_cores
from contract.memory import rss_bytes

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "1.1 B": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32},
    "0.3 B": {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16},
}
VOCABULARY = 32000
PEFT_MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Model:
    """A base and its adapter."""

    base: Path
    adapter: Path


@dataclass(frozen=True)
class Cost:
    """What one process cost."""

    seconds: float  # until everything is on the disk
    cpu_seconds: float  # user and system, all threads
    peak_bytes: int  # resident pages, mapped ones included


@dataclass(frozen=True)
class Target:
    """One of our commands, the peers' commands it stands for, and the most it may cost of theirs."""

    title: str
    ours: str
    peers: tuple[str, ...]
    time_limit: float
    memory_limit: float | None


TARGETS = (
    Target("adapter -> merged float16", "merge", ("peft",), 0.40, 0.25),
    Target("adapter -> F16 GGUF", "f16", ("peft", "convert"), 0.45, 0.25),
    Target("adapter -> Q4_K_M GGUF", "q4_k_m", ("peft", "convert", "quantize"), 0.65, None),
)


def make_tokenizer(folder: Path) -> None:
    """A SentencePiece BPE with byte fallback, trained on the embedded dialogues and filled up to Llama's size."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from transformers import AutoTokenizer

    sentencepiece.SentencePieceTrainer.train(
        input=str(ROOT / "assets" / "dialogues" / "train.jsonl"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=800,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        split_digits=True,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "tokenizer.vocab").unlink()
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "tokenizer.model").read_bytes())
    for index in range(len(model.pieces), VOCABULARY):
        model.pieces.add(piece=f"▁unused{index}", score=float(-index))
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    words: dict[str, str | bool] = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    words |= {"add_bos_token": True, "add_eos_token": False, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def make_model(model: Model, shape: str) -> None:
    """A random base in float16 and a rank-16 adapter on all its linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model.base.mkdir(parents=True)
    make_tokenizer(model.base)
    config = LlamaConfig(
        **SHAPES[shape],
        num_hidden_layers=22,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        dtype="float16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    network = LlamaForCausalLM(config)
    network.save_pretrained(model.base)
    torch.set_default_dtype(torch.float32)  # what adapters are kept in
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(network, lora).save_pretrained(model.adapter)
    settings = model.adapter / "adapter_config.json"
    named = json.loads(settings.read_text()) | {"base_model_name_or_path": str(model.base)}
    settings.write_text(json.dumps(named, indent=2))


def prepared(work: Path, shape: str) -> Model:
    """The model of that shape below `work`, made there by a process of its own where it is missing."""
    folder = work / shape.replace(" ", "")
    model = Model(folder / "base", folder / "adapter")
    if not model.adapter.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making {shape} of random weights in {folder}", file=sys.stderr)
        maker = multiprocessing.get_context("spawn").Process(target=make_model, args=(model, shape))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(maker.exitcode)
    return model


def command(step: str, model: Model, out: Path, llama_cpp: Path | None, threads: int) -> list[str | Path]:
    """What is run for one step, ours or a peer's; peers read what the peer before them wrote into `out`."""
    assay: list[str | Path] = [sys.executable, ROOT / "assay.py"]
    peft, f16, tools = out / "peft", out / "peft-f16.gguf", llama_cpp or Path()
    match step:
        case "merge":
            return [*assay, "merge", model.adapter, "--out", out / "merged"]
        case "peft":
            return [sys.executable, "-c", PEFT_MERGE, model.base, model.adapter, peft]
        case "convert":
            converter = tools / "src" / "convert_hf_to_gguf.py"
            return [sys.executable, converter, peft, "--outfile", f16, "--outtype", "f16"]
        case "quantize":
            return [tools / "bin" / "llama-quantize", f16, out / "peft-q4_k_m.gguf", "Q4_K_M", str(threads)]
        case _:
            options = ["--quant", step, "--threads", str(threads)]
            return [*assay, "export", "gguf", model.adapter, "--out", out / "gguf", *options]


def measured(words: Sequence[str | Path]) -> Cost:
    """Run a command to its end and to the disk.

    Raises:
        SystemExit: it failed; what it said is printed.
    """
    os.sync()
    with TemporaryFile() as said:
        started = time.perf_counter()
        # no fork of a larger process: a child's peak begins with its parent's
        child = subprocess.Popen([str(word) for word in words], stdout=said, stderr=said, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        os.sync()
        seconds = time.perf_counter() - started
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{words[0]} …: exit {child.returncode}\n{said.read().decode()[-2000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, rss_bytes(usage.ru_maxrss))


def round_of(steps: Sequence[str], model: Model, work: Path, llama_cpp: Path | None, threads: int) -> dict[str, Cost]:
    """Every step once, in turn."""
    with TemporaryDirectory(dir=work, prefix="out-") as out:
        found = {}
        for step in steps:
            found[step] = measured(command(step, model, Path(out), llama_cpp, threads))
            print(f"  {step}: {described(found[step])}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        return found


def described(cost: Cost) -> str:
    """In words."""
    return f"{cost.seconds:.1f} s, CPU {cost.cpu_seconds:.1f} s, peak {cost.peak_bytes / 1e6:.0f} MB"


def median_cost(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(
        median(cost.seconds for cost in costs),
        median(cost.cpu_seconds for cost in costs),
        int(median(cost.peak_bytes for cost in costs)),
    )


def together(rounds: Sequence[dict[str, Cost]], steps: Sequence[str]) -> Cost:
    """One step after the other: times add up, the largest peak counts; then the median of the rounds."""
    return median_cost(
        [
            Cost(
                sum(one[step].seconds for step in steps),
                sum(one[step].cpu_seconds for step in steps),
                max(one[step].peak_bytes for step in steps),
            )
            for one in rounds
        ]
    )


def report(rounds: Sequence[dict[str, Cost]]) -> None:
    """Print each of our commands beside its peers."""
    for target in TARGETS:
        ours = together(rounds, [target.ours])
        print(
            f"{target.title}: {ours.seconds:.1f} s, CPU {ours.cpu_seconds:.1f} s, peak {ours.peak_bytes / 1e6:.0f} MB"
        )
        if not rounds[0].keys() >= set(target.peers):
            print(f"  left out: {' + '.join(target.peers)}, for --llama-cpp was not given")
            continue
        peers = together(rounds, target.peers)
        print(f"  {' + '.join(target.peers)}: {described(peers)}")
        most = "" if target.memory_limit is None else f" (wanted {target.memory_limit})"
        print(
            f"  ratio: time {ours.seconds / peers.seconds:.2f} (wanted {target.time_limit}), "
            f"CPU {ours.cpu_seconds / peers.cpu_seconds:.2f}, memory {ours.peak_bytes / peers.peak_bytes:.2f}{most}"
        )


def limits(model: Model, work: Path) -> None:
    """Print what starting, reading, hashing and writing as many bytes take by themselves."""
    weights = model.base / "model.safetensors"
    size_bytes, block = weights.stat().st_size, bytearray(BLOCK_BYTES)

    def read(handle: Callable[[bytes | bytearray], object]) -> float:
        started = time.perf_counter()
        with weights.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                handle(block if count == len(block) else block[:count])
        return time.perf_counter() - started

    read(lambda _: None)  # from the disk; what follows finds it in memory, as both sides do
    reading = read(lambda _: None)
    hashing = read(hashlib.sha256().update) - reading
    os.sync()
    with TemporaryFile(dir=work) as file:
        started = time.perf_counter()
        for _ in range(0, size_bytes, BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        writing = time.perf_counter() - started
    start = measured([sys.executable, "-c", "import torch, transformers, transformers.models.auto.modeling_auto"])
    print(
        f"{size_bytes / 1e9:.1f} GB by themselves: reading {reading:.1f} s, sha256 {hashing:.1f} s, "
        f"writing to the disk {writing:.1f} s; importing torch and transformers {start.seconds:.1f} s, "
        f"{start.peak_bytes / 1e6:.0f} MB"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = Path(os.environ["ASSAY_LLAMA_CPP"]) if "ASSAY_LLAMA_CPP" in os.environ else None
    parser.add_argument("--llama-cpp", type=Path, default=named, help="llama.cpp's build, with its source in src")
    parser.add_argument("--work", type=Path, help="models are kept there, 2.9 GB; 8 GB more while it runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    ours = [target.ours for target in TARGETS]
    peers = ["peft", *(["convert", "quantize"] if options.llama_cpp else [])]
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(TemporaryDirectory(prefix="assay-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        large, small = (prepared(work.resolve(), shape) for shape in SHAPES)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.repeats} rounds")
        limits(large, work)
        turns = [
            round_of([*ours, *peers], large, work, options.llama_cpp, options.threads) for _ in range(options.repeats)
        ]
        report(turns)
        smaller = round_of(ours, small, work, None, options.threads)
        for step in ours:
            peaks = together(turns, [step]).peak_bytes, smaller[step].peak_bytes
            print(
                f"{step}: peak {peaks[0] / 1e6:.0f} MB at 1.1 B, {peaks[1] / 1e6:.0f} MB at 0.3 B: "
                f"ratio {peaks[0] / peaks[1]:.2f} (wanted 1.3)"
            )


if __name__ == "__main__":
    main()
