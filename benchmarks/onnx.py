"""Which engine decodes ONNX graphs? Ours, Optimum's `generate` and onnxruntime-genai on the same exported files.

    python -m benchmarks.onnx [--models tiny-llama,tiny-t5] [--precisions fp32,int8] [--genai PYTHON] [--launches 3]
                              [--rounds 7] [--batches 1,8] [--prompt 100] [--tokens 100] [--threads 1]
                              [--work FOLDER]

In float32 Optimum runs its own export of the same weights too ("optimum-own"), as it comes from `optimum-cli`.
Optimum's processes see the packages that trace (export/onnx_tracer), as it needs an older transformers; they read the
same files beside a config.json in its words.
Models: tiny-llama, tiny-t5 and tiny-bart are the embedded bases; llama-0.2b and t5-0.2b have random weights; a folder
holds any other model. An engine is a process of its own that loads the ONNX folder; then all take turns at writing the
same number of tokens greedily behind the same prompts, one alone and eight together. A ratio is the median over the
rounds of what ours and the other needed in the same round, with the middle half of them in brackets: a machine's speed
changes from second to second, and turns as short as these share it. Where a process' memory happens to lie matters too,
so all are launched several times. Over 1 says that ours is faster. "decode" is what comes behind the first token.
PYTHON is that of an environment with onnxruntime-genai, which runs decoder-only models, and of our onnxruntime's
version; without it that row is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from subprocess import PIPE, STDOUT
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from contract.limits import OnnxPrecision

ROOT = Path(__file__).resolve().parent.parent
TINY = {"tiny-llama": "tiny-base", "tiny-t5": "tiny-t5", "tiny-bart": "tiny-bart"}
Write = Callable[[list[list[int]], int], int]  # (prompts, new tokens) -> tokens written


def ours(folder: Path, threads: int, parallel: int) -> Write:
    """Our runtime."""
    from contract.artifact import open_artifact
    from contract.runtime import GenerateParams
    from runtimes import load_runtime

    runtime = load_runtime(open_artifact(folder), threads=threads, parallel=parallel)

    def write(prompts: list[list[int]], tokens: int) -> int:
        return sum(len(made.ids) for made in runtime.generate(prompts, GenerateParams(tokens, ignore_stop=True)))

    return write


def optimum(folder: Path, threads: int, _: int) -> Write:
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


def genai(folder: Path, _: int, __: int) -> Write:
    """onnxruntime-genai; the threads stand in the folder's genai_config.json."""
    import onnxruntime_genai  # type: ignore[import-not-found]  # lies in another environment

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


def work(engine: str, folder: Path, prompts: list[list[int]], tokens: int, threads: int) -> None:
    """In a process of its own: load and warm up; then for every line, which says how many prompts, a measurement."""
    from contract.memory import peak_rss_bytes

    began_s = time.perf_counter()
    write = {"ours": ours, "optimum": optimum, "genai": genai}[engine](folder, threads, len(prompts))
    loaded = {"load_s": time.perf_counter() - began_s}
    write(prompts, 4)
    write(prompts[:1], 4)
    print(json.dumps(loaded), flush=True)
    for line in sys.stdin:
        chosen = prompts[: int(line)]
        began_s = time.perf_counter()
        write(chosen, 1)
        first_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        made = write(chosen, tokens)
        took_s = time.perf_counter() - began_s
        found = {"first_s": first_s, "whole_s": took_s, "made": made, "peak_mib": peak_rss_bytes() / 2**20}
        print(json.dumps(found), flush=True)


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


def exported(name: str, precisions: Sequence[OnnxPrecision], scratch: Path) -> dict[OnnxPrecision, Path]:
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
    from export.onnx_tracer.overlay import overlay_environment

    out = scratch / f"{Path(name).name}-optimum"
    if not out.is_dir():
        older = in_words_of_4(model_folder(name, scratch), scratch / f"{Path(name).name}-older")
        unfinished = out.with_suffix(".unfinished")
        command = [sys.executable, "-P", "-m", "benchmarks.onnx", "--export", str(older), str(unfinished)]
        subprocess.run(command, cwd=ROOT, env=overlay_environment(), check=True)
        unfinished.rename(out)
    return out


def export_by_optimum(model: Path, out: Path) -> None:
    """In a process that sees Optimum: export a folder as `optimum-cli` does."""
    from optimum.exporters.onnx import main_export

    seq2seq = json.loads((model / "config.json").read_text()).get("is_encoder_decoder")
    main_export(
        str(model),
        output=str(out),
        task="text2text-generation-with-past" if seq2seq else "text-generation-with-past",
        dtype="fp32",
        device="cpu",
        do_validation=False,
        no_post_process=True,
        local_files_only=True,
    )


def in_words_of_4(folder: Path, out: Path) -> Path:
    """The same model for Optimum's transformers: its files are linked, and its config.json is rewritten."""
    from contract.model_config import T5_FAMILY, as_written_by_4
    from contract.model_folder import read_json

    if out.is_dir():
        return out
    unfinished = out.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file():
            (unfinished / file.name).symlink_to(file.resolve())
    config = as_written_by_4(read_json(folder / "config.json"))
    (unfinished / "config.json").unlink()
    (unfinished / "config.json").write_text(json.dumps(config))
    weights = unfinished / "model.safetensors"
    if config["model_type"] in T5_FAMILY and not config["tie_word_embeddings"] and weights.is_file():
        from safetensors.numpy import load_file, save_file

        tensors = load_file(weights)
        if "lm_head.weight" not in tensors:  # the embeddings, not scaled, which version 4 cannot say
            weights.unlink()
            save_file({**tensors, "lm_head.weight": tensors["shared.weight"].copy()}, weights, {"format": "pt"})
    return unfinished.rename(out)


def race(folder: Path, own: Path | None, options: argparse.Namespace, scratch: Path) -> dict[str, Engine]:
    """Every engine's measurements; the engines take turns, and who begins changes from round to round."""
    from export.onnx_tracer.overlay import overlay_environment

    config = json.loads((folder / "config.json").read_text())
    random = np.random.default_rng(0)
    prompts = random.integers(10, config["vocab_size"] - 10, (max(options.batches), options.prompt)).tolist()
    fed = [json.dumps(prompts), str(options.tokens)]
    threads = str(options.threads)
    worker = [sys.executable, "-m", "benchmarks.onnx", "--worker"]
    older = in_words_of_4(folder, scratch / "older" / folder.parent.name / folder.name)
    commands = {"ours": [*worker, "ours", str(folder), *fed, threads]}
    commands["optimum"] = [*worker, "optimum", str(older), *fed, threads]
    if own is not None:
        commands["optimum-own"] = [*worker, "optimum", str(own), *fed, threads]
    if options.genai and not config.get("is_encoder_decoder"):
        linked = genai_folder(folder, scratch / "genai" / folder.parent.name / folder.name, options.threads)
        commands["genai"] = [options.genai, __file__, "--worker", "genai", str(linked), *fed, threads]
    environments = {engine: overlay_environment() for engine in commands if engine.startswith("optimum")}
    engines = {engine: Engine(engine, command, environments.get(engine)) for engine, command in commands.items()}
    for _ in range(options.launches):
        with ExitStack() as stack:
            order = list(engines.values())
            for engine in order:
                engine.launch(stack)
            for _ in range(options.rounds):
                for batch in options.batches:
                    for engine in order:
                        engine.turn(batch)
                order = [*order[1:], order[0]]
    return engines


class Engine:
    """A process that writes when it is its turn, and what that took."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str] | None) -> None:
        self._name, self._command, self._environment = name, command, environment
        self.loads_s: list[float] = []
        self.turns: dict[int, list[dict[str, float]]] = {}  # by prompts at a time

    def launch(self, stack: ExitStack) -> None:
        """Start it, and wait until it has loaded."""
        self._process = stack.enter_context(
            subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=PIPE, stdout=PIPE, stderr=STDOUT, text=True
            )
        )
        self.loads_s.append(self._answer()["load_s"])

    def turn(self, batch: int) -> None:
        """Let it write."""
        assert self._process.stdin is not None
        print(batch, file=self._process.stdin, flush=True)
        self.turns.setdefault(batch, []).append(self._answer())

    def _answer(self) -> dict[str, float]:
        """The next line that is an answer; whatever else a library prints is shown if none comes."""
        assert self._process.stdout is not None
        others = []
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
            others.append(line)
        sys.exit(f"{self._name} failed:\n{''.join(others)[-3000:]}")


def decode_s(turn: dict[str, float]) -> float:
    """Seconds behind the first token."""
    return turn["whole_s"] - turn["first_s"]


def show(label: str, engines: dict[str, Engine], tokens: int) -> None:
    """Medians of every engine, and the others' time over ours."""
    for batch in engines["ours"].turns:
        own = engines["ours"].turns[batch]
        for name, engine in engines.items():
            turns = engine.turns[batch]
            rate = median(turn["made"] / turn["whole_s"] for turn in turns)
            step = median(decode_s(turn) for turn in turns) * 1000 / max(tokens - 1, 1)
            first_ms, peak = (median(turn[key] for turn in turns) for key in ("first_s", "peak_mib"))
            whole = spread([turn["whole_s"] / mine["whole_s"] for turn, mine in zip(turns, own, strict=True)])
            decode = spread([decode_s(turn) / decode_s(mine) for turn, mine in zip(turns, own, strict=True)])
            print(
                f"{label:<16} batch {batch}  {name:<11} {rate:7.1f} tokens/s  first token {first_ms * 1000:6.1f} ms  "
                f"step {step:6.3f} ms  load {median(engine.loads_s):5.2f} s  peak {peak:5.0f} MiB  "
                f"it/ours {whole}  decode {decode}",
                flush=True,
            )


def spread(ratios: list[float]) -> str:
    """The median, and between what the middle half lies."""
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:5.2f} [{low:4.2f} {high:4.2f}]"


def main() -> None:
    """The command line."""
    if sys.argv[1:2] == ["--worker"]:
        engine, folder, prompts, tokens, threads = sys.argv[2:]
        work(engine, Path(folder), json.loads(prompts), int(tokens), int(threads))
        return
    if sys.argv[1:2] == ["--export"]:
        export_by_optimum(*map(Path, sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny-llama,tiny-t5")
    parser.add_argument("--precisions", default="fp32,int8")
    parser.add_argument("--genai", help="python of an environment with onnxruntime-genai")
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="per launch")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8])
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="keeps what was exported; default: a temporary folder")
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = options.work or Path(stack.enter_context(TemporaryDirectory()))
        links = Path(stack.enter_context(TemporaryDirectory()))
        for name in options.models.split(","):
            for precision, onnx in exported(name, options.precisions.split(","), scratch).items():
                own = own_export(name, scratch) if precision == "fp32" else None
                show(f"{name} {precision}", race(onnx, own, options, links), options.tokens)


if __name__ == "__main__":
    main()
