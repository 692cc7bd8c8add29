"""Which engine decodes ONNX graphs? Ours, Optimum's `generate` and onnxruntime-genai on the same exported files.

    python -m benchmarks.onnx [--models tiny-llama,tiny-t5] [--precisions fp32,int8] [--genai PYTHON] [--rounds 3]
                              [--prompt 100] [--tokens 100] [--threads 1] [--work FOLDER]

In float32 Optimum runs its own export of the same weights too ("optimum-own"), as it comes from `optimum-cli`.
Models: tiny-llama, tiny-t5 and tiny-bart are the embedded bases; llama-0.2b and t5-0.2b have random weights; a folder
holds any other model. An engine is a process of its own that loads the ONNX folder, then writes the same number of
tokens greedily behind the same prompts, one alone and eight together; the engines take turns and medians are compared.
CPU time is what a busy machine disturbs least. PYTHON is that of an environment with onnxruntime-genai, which
runs decoder-only models; without it that row is left out. A ratio over 1 says that ours is faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 8)
TINY = {"tiny-llama": "tiny-base", "tiny-t5": "tiny-t5", "tiny-bart": "tiny-bart"}
Write = Callable[[list[list[int]], int], int]  # (prompts, new tokens) -> tokens written


def ours(folder: Path, threads: int) -> Write:
    """Our runtime."""
    from contract.artifact import open_artifact
    from contract.runtime import GenerateParams
    from runtimes import load_runtime

    runtime = load_runtime(open_artifact(folder), threads=threads, parallel=max(BATCHES))

    def write(prompts: list[list[int]], tokens: int) -> int:
        return sum(len(made.ids) for made in runtime.generate(prompts, GenerateParams(tokens, ignore_stop=True)))

    return write


def optimum(folder: Path, threads: int) -> Write:
    """Optimum's model classes with transformers' generate."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

    from contract.model_folder import is_encoder_decoder

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = (
        ORTModelForSeq2SeqLM.from_pretrained(folder, session_options=options, use_merged=False)
        if is_encoder_decoder(folder)
        else ORTModelForCausalLM.from_pretrained(folder, session_options=options)
    )

    def write(prompts: list[list[int]], tokens: int) -> int:
        ids = torch.tensor(prompts)
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
        )
        return int(made.shape[0]) * tokens

    return write


def genai(folder: Path, threads: int) -> Write:
    """onnxruntime-genai; the threads stand in the folder's genai_config.json."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))

    def write(prompts: list[list[int]], tokens: int) -> int:
        length = len(prompts[0]) + tokens
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=length, min_length=length, batch_size=len(prompts), do_sample=False)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        made = 0
        while made < tokens and not generator.is_done():
            generator.generate_next_token()
            made += 1
        return made * len(prompts)

    return write


def measure(engine: str, folder: Path, prompts: list[list[int]], tokens: int, threads: int) -> dict[str, Any]:
    """In a process of its own: load, warm up, measure."""
    began_s = time.perf_counter()
    write = {"ours": ours, "optimum": optimum, "genai": genai}[engine](folder, threads)
    found: dict[str, Any] = {"load_s": time.perf_counter() - began_s}
    for batch in BATCHES:
        chosen = prompts[:batch]
        write(chosen, 2)
        began_s = time.perf_counter()
        write(chosen, 1)
        first_s = time.perf_counter() - began_s
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        made = write(chosen, tokens)
        took_s, used_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        found[str(batch)] = {"first_ms": first_s * 1000, "per_s": made / took_s, "cpu_ms": used_s / made * 1000}
    status = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in status if line.startswith("VmHWM")]  # ru_maxrss remembers the parent's
    found["peak_mib"] = int(peak) / 1024
    return found


def genai_folder(folder: Path, out: Path, threads: int) -> Path:
    """The same graph with the configuration that onnxruntime-genai reads; files are linked, not copied."""
    config = json.loads((folder / "config.json").read_text())
    out.mkdir(parents=True)
    for file in folder.iterdir():
        (out / file.name).symlink_to(file.resolve())
    heads = config["num_attention_heads"]
    decoder = {
        "session_options": {"log_id": "genai", "provider_options": [], "intra_op_num_threads": threads},
        "filename": "model.onnx",
        "head_size": config.get("head_dim") or config["hidden_size"] // heads,
        "hidden_size": config["hidden_size"],
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": heads,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_key_value_heads": config.get("num_key_value_heads", heads),
    }
    model = {
        "bos_token_id": 0,
        "context_length": config["max_position_embeddings"],
        "decoder": decoder,
        "eos_token_id": config["vocab_size"] - 1,
        "pad_token_id": 0,
        "type": "llama",
        "vocab_size": config["vocab_size"],
    }
    search = {"max_length": config["max_position_embeddings"], "past_present_share_buffer": False}
    (out / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))
    return out


def model_folder(name: str, scratch: Path) -> Path:
    """An embedded base, a folder, or random weights of a common shape; about 0.2 billion of them."""
    if name in TINY:
        return ROOT / "assets" / TINY[name]
    if Path(name).is_dir():
        return Path(name)
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    if name == "llama-0.2b":
        shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16}
        config = LlamaConfig(**shape, num_key_value_heads=4, vocab_size=16000, max_position_embeddings=2048)
        model: Any = LlamaForCausalLM(config)
    else:  # FLAN-T5-base's shape
        shape = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "d_kv": 64}
        config = T5Config(**shape, vocab_size=16000, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        config.decoder_start_token_id = 0
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(scratch / name)
    AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny-base").save_pretrained(scratch / name)
    return scratch / name


def exported(name: str, precisions: Sequence[str], scratch: Path) -> dict[str, Path]:
    """The ONNX folders of a model; those that are there already are taken."""
    from contract.artifact import open_artifact
    from export.to_onnx import export_onnx

    out = scratch / f"{Path(name).name}-onnx"
    missing = [precision for precision in precisions if not (out / precision).is_dir()]
    if missing:
        export_onnx(open_artifact(model_folder(name, scratch)), out, precisions=missing, check="structure")
    return {precision: out / precision for precision in precisions}


def own_export(name: str, scratch: Path) -> Path:
    """A model as Optimum alone exports it; taken if it is there already."""
    from optimum.exporters.onnx import main_export

    model, out = model_folder(name, scratch), scratch / f"{Path(name).name}-optimum"
    if not out.is_dir():
        seq2seq = json.loads((model / "config.json").read_text()).get("is_encoder_decoder")
        task = "text2text-generation-with-past" if seq2seq else "text-generation-with-past"
        main_export(
            str(model),
            output=str(out),
            task=task,
            dtype="fp32",
            device="cpu",
            do_validation=False,
            no_post_process=True,
            local_files_only=True,
        )
    return out


def race(folder: Path, own: Path | None, options: argparse.Namespace, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """Every engine's measurements, one per round; the engines take turns."""
    config = json.loads((folder / "config.json").read_text())
    random = np.random.default_rng(0)
    prompts = random.integers(10, config["vocab_size"] - 10, (max(BATCHES), options.prompt)).tolist()
    fed = [json.dumps(prompts), str(options.tokens)]
    threads = str(options.threads)
    worker = [sys.executable, "-m", "benchmarks.onnx", "--worker"]
    commands = {engine: [*worker, engine, str(folder), *fed, threads] for engine in ("ours", "optimum")}
    if own is not None:
        commands["optimum-own"] = [*worker, "optimum", str(own), *fed, threads]
    if options.genai and not config.get("is_encoder_decoder"):
        linked = genai_folder(folder, scratch / "genai" / folder.parent.name / folder.name, options.threads)
        commands["genai"] = [options.genai, __file__, "--worker", "genai", str(linked), *fed, threads]
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in commands}
    for _ in range(options.rounds):
        for engine, command in commands.items():
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{engine} failed:\n{done.stderr[-3000:]}")
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def show(label: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians of every engine, and ours over each of the others."""

    def of(engine: str, batch: str, key: str) -> float:
        return median(one[batch][key] for one in found[engine])

    for batch in map(str, BATCHES):
        for engine, rounds in found.items():
            load, peak = (median(one[key] for one in rounds) for key in ("load_s", "peak_mib"))
            ratio = f"{of('ours', batch, 'per_s') / of(engine, batch, 'per_s'):5.2f}"
            cpu = f"{of(engine, batch, 'cpu_ms') / of('ours', batch, 'cpu_ms'):5.2f}"
            print(
                f"{label:<18} batch {batch}  {engine:<11} {of(engine, batch, 'per_s'):8.1f} tokens/s  first token "
                f"{of(engine, batch, 'first_ms'):8.1f} ms  CPU {of(engine, batch, 'cpu_ms'):8.3f} ms/token  load "
                f"{load:5.2f} s  peak {peak:6.0f} MiB  ours/it {ratio} (by CPU time {cpu})",
                flush=True,
            )


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--worker"]:
        engine, folder, prompts, tokens, threads = sys.argv[2:]
        print(json.dumps(measure(engine, Path(folder), json.loads(prompts), int(tokens), int(threads))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-llama,tiny-t5")
    parser.add_argument("--precisions", default="fp32,int8")
    parser.add_argument("--genai", help="python of an environment with onnxruntime-genai")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keeps what was exported; default: a temporary folder")
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = options.work or Path(stack.enter_context(TemporaryDirectory()))
        links = Path(stack.enter_context(TemporaryDirectory()))
        for name in options.models.split(","):
            for precision, folder in exported(name, options.precisions.split(","), scratch).items():
                own = own_export(name, scratch) if precision == "fp32" else None
                show(f"{name} {precision}", race(folder, own, options, links))


if __name__ == "__main__":
    main()
