"""`assay run`: data, base, adapter, merged, GGUF, ONNX, evaluation; what is there and valid is not done again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from contract.artifact import ONNX_LABEL, Artifact, open_artifact, sha256_of
from contract.cpu import this_cpu
from contract.errors import AssayError
from contract.model_folder import is_encoder_decoder, resolve_model
from contract.sample_size import recipe_sample
from flow.gguf_base import gguf_base, import_base, on_folder
from flow.ledger import Ledger, key_of, locked
from flow.preflight import is_worth_it, say_preflight

if TYPE_CHECKING:
    from contract.recipe import Recipe
    from contract.verdict import Verdict
    from trainer.data import Splits

Stage = Literal["adapter", "merged", "gguf", "onnx", "eval"]


@dataclass
class RunResult:
    """What a run has: artifacts by label, the verdicts once evaluated, and which stages were done now."""

    run: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    verdicts: list[Verdict] | None = None
    required: tuple[str, ...] = ()
    against: list[str] = field(default_factory=list)  # what earlier evaluations say against what passes now
    counted: bool = False  # do the required ones pass, with all earlier evaluations?
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Did everything the recipe requires pass? True where the run ended before the evaluation."""
        return self.verdicts is None or self.counted

    def as_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {
            "run": str(self.run),
            "done": self.done,
            "skipped": self.skipped,
            "proven": self.proven,
            "artifacts": {
                label: {"path": str(artifact.path), "digest": artifact.digest}
                for label, artifact in self.artifacts.items()
            },
            "verdicts": None if self.verdicts is None else {v.label: v.outcome for v in self.verdicts},
        }

    def as_text(self) -> str:
        """The comparison table and the verdicts, or where the artifacts are."""
        if self.verdicts is None:
            return "\n".join(f"{label:<10}{artifact.path}" for label, artifact in self.artifacts.items())
        from evalsuite.report.terminal import text_table, verdict_lines
        from evalsuite.results import read_results

        folder = self.run / "eval"
        return "\n".join(
            [
                text_table(read_results(folder)),
                "",
                *verdict_lines(self.verdicts, self.required, against=self.against, is_proven=self.counted),
                "",
                f"report: {folder / 'report.html'}",
            ]
        )


def run_recipe(
    recipe: Recipe, out: Path, *, data: str | None = None, device: str = "auto", threads: int = 2, until: Stage = "eval"
) -> RunResult:
    """Take a recipe all the way, or as far as `until`.

    Args:
        recipe: the recipe, its base already replaced if the command line asked for another.
        out: the run folder; made by an earlier run of any recipe, or new.
        data: a file or folder that replaces the recipe's data.
        device: "auto", "cpu" or "cuda", for training.
        threads: CPU threads.
        until: the last stage to do.

    Raises:
        AssayError: the input is at fault, or another run works in `out`.
    """
    with locked(out):
        return _Run(recipe, out, data, device, threads).all(until)


def refuse_until(recipe: Recipe, until: Stage) -> None:
    """Raise where the last stage asked for makes nothing by this recipe.

    Raises:
        AssayError: the recipe has no such export.
    """
    parts = {"gguf": (recipe.export.gguf, "quants: [q8_0]"), "onnx": (recipe.export.onnx, "precisions: [fp32, int8]")}
    part, example = parts.get(until, (recipe, ""))
    if part is None:
        raise AssayError(
            f"the recipe exports no {until.upper()}",
            where=f"export.{until}",
            got="null",
            hint=f'write "{until}: {{{example}}}" under export, or stop elsewhere with --until',
        )


def _refuse_beams(recipe: Recipe, base: Artifact) -> None:
    """Raise where the recipe asks for beams that an engine of its artifacts does not have, before anything is done."""
    if recipe.generate.num_beams > 1 and (recipe.export.gguf or not is_encoder_decoder(base.folder)):
        raise AssayError(
            "only encoder-decoder models in torch and onnxruntime write with beams",
            where="generate.num_beams",
            got=str(recipe.generate.num_beams),
            hint="set it to 1, or (for T5 and BART) set export.gguf to null and export ONNX",
        )


def _with_generate(model: Artifact, recipe: Recipe) -> Artifact:
    """The same model, saying of itself that it writes as the recipe says now: what exports record."""
    return model.retold(generate=recipe.generate.recorded())


class _Run:
    def __init__(self, recipe: Recipe, out: Path, data: str | None, device: str, threads: int) -> None:
        self.recipe, self.out, self.data, self.device, self.threads = recipe, out, data, device, threads
        self.ledger = Ledger(out)
        self.result = RunResult(out, required=tuple(recipe.gate.require))
        self.counted: list[Verdict] = []

    def all(self, until: Stage) -> RunResult:
        from trainer.data import load_splits

        part = self.recipe.model_dump(mode="json")
        splits = load_splits(self.recipe, self.data)
        self._import_base()
        recipe = self.recipe
        sample = recipe_sample(recipe, len(splits.test))
        if sample.unshown:
            _say(sample.as_text())
        base = open_artifact(resolve_model(recipe.model.base, recipe.model.revision))
        self.result.artifacts["base"] = base
        _refuse_beams(recipe, base)

        full = recipe.train.method == "full"  # every weight is trained, so there is nothing to merge
        from_key = key_of(
            base=base.digest,
            data=[splits.sha256["train"], splits.sha256["valid"]],
            prompt=part["prompt"],
            train=part["train"],
            **({"dtype": recipe.merge.dtype} if full else {}),
        )
        stage = "merged" if full else "adapter"
        if self.ledger.valid(stage, from_key) is None and is_worth_it(base.folder):
            say_preflight(recipe, splits, device=self.device, threads=self.threads)
        trained = self._stage(stage, from_key, lambda path: self._train(splits, from_key, path))
        if until == "adapter":
            return self.result
        merged = trained
        if not full:
            from_key = key_of(
                adapter=trained.digest, made_from=from_key, merge=part["merge"], generate=part["generate"]
            )
            merged = self._stage("merged", from_key, lambda path: self._merge(trained, splits, path))
        if until == "merged":
            return self.result
        from_key = key_of(merged=merged.digest, made_from=from_key, **({"generate": part["generate"]} if full else {}))
        if full:  # recorded when it was trained; the recipe may have changed since
            merged = _with_generate(merged, recipe)
        self._gguf(merged, from_key, splits)
        if until == "gguf":
            return self.result
        self._onnx(merged, from_key)
        if until == "onnx":
            return self.result
        self._eval(splits)
        self._card()
        return self.result

    def _import_base(self) -> None:
        """Of a base that is a GGUF make a model folder in the run, and go on with that."""
        gguf = gguf_base(self.recipe)
        if gguf is None:
            return
        made, is_new = import_base(gguf, self.ledger, threads=self.threads, command="run")
        (self.result.done if is_new else self.result.skipped).append("base")
        self.recipe = on_folder(self.recipe, made.path)

    def _stage(self, stage: str, key: str, make: Callable[[Path], Artifact]) -> Artifact:
        artifact = self.ledger.valid(stage, key)
        if artifact is not None:
            self._skip(stage)
        else:
            started = self._start(stage)
            artifact = make(self.out / stage)
            self.ledger.note(stage, key, artifact.digest)
            self._finish(stage, started)
        self.result.artifacts[stage] = artifact
        return artifact

    def _train(self, splits: Splits, key: str, path: Path) -> Artifact:
        from trainer.checkpoint import work_folder
        from trainer.train import train_adapter

        unfinished = work_folder(path).name
        if not self.ledger.noted(unfinished, key, ""):  # what a killed training of another recipe left
            self.ledger.set_aside(unfinished)
        self.ledger.note(unfinished, key, "")
        return train_adapter(self.recipe, splits, path, resume=True, device=self.device, threads=self.threads)

    def _merge(self, adapter: Artifact, splits: Splits, path: Path) -> Artifact:
        from export.merge import merge_adapter
        from flow.choose_base import choose_base
        from flow.half_precision import check_float16

        merge = self.recipe.merge
        base_weights: Literal["w16", "nf4"] = "nf4" if merge.base == "NF4" else "w16"
        choice = None
        if merge.base == "auto":
            choice = choose_base(adapter, splits.valid, dtype=merge.dtype, threads=self.threads)
            base_weights = choice.base
            _say(choice.as_text())
        return merge_adapter(
            adapter,
            path,
            dtype=merge.dtype,
            base_weights=base_weights,
            name=self.recipe.name,
            generate=self.recipe.generate.recorded(),
            base_choice=choice.as_details() if choice else None,
            activations=(
                check_float16(adapter, splits.train, base_weights=base_weights, threads=self.threads)
                if merge.dtype == "float16"
                else None
            ),
        )

    def _gguf(self, merged: Artifact, merged_key: str, splits: Splits) -> None:
        from export.imatrix import Calibration
        from export.quantize import uses_matrix
        from export.to_gguf import export_gguf

        gguf = self.recipe.export.gguf
        if gguf is None:
            return
        weighed = [quant for quant in gguf.quants if gguf.imatrix and uses_matrix(quant)]
        keys: dict[str, str] = {
            quant: key_of(
                merged=merged_key,
                quant=quant,
                check=gguf.check,
                strict=gguf.strict,
                **({"imatrix": splits.sha256["train"]} if quant in weighed else {}),
            )
            for quant in gguf.quants
        }

        def make(missing: list[str]) -> list[Artifact]:
            return export_gguf(
                merged,
                self.out / "gguf",
                quants=missing,
                check=gguf.check,
                strict=gguf.strict,
                threads=self.threads,
                name=self.recipe.name,
                imatrix=Calibration(splits.train) if set(missing) & set(weighed) else None,
            )

        self._exports("gguf", keys, make)

    def _onnx(self, merged: Artifact, merged_key: str) -> None:
        from export.onnx_int8 import int8_range
        from export.to_onnx import Precision, export_onnx

        onnx = self.recipe.export.onnx
        if onnx is None:
            return
        keys: dict[str, str] = {
            precision: key_of(
                merged=merged_key,
                precision=precision,
                check=onnx.check,
                strict=onnx.strict,
                **({"range": int8_range(this_cpu())} if precision == "int8" else {}),
            )
            for precision in onnx.precisions
        }

        def make(missing: list[str]) -> list[Artifact]:
            return export_onnx(
                merged,
                self.out / "onnx",
                precisions=cast(list[Precision], missing),
                check=onnx.check,
                strict=onnx.strict,
                threads=self.threads,
                name=self.recipe.name,
            )

        self._exports("onnx", keys, make, ONNX_LABEL)

    def _exports(
        self, folder: str, keys: Mapping[str, str], make: Callable[[list[str]], list[Artifact]], label: str = ""
    ) -> None:
        """Make together what is not there or not valid; `keys` by name, which is the artifact's folder too."""
        there = {name: self.ledger.valid(f"{folder}/{name}", key) for name, key in keys.items()}
        for name, artifact in there.items():
            if artifact is not None:
                self._skip(f"{folder}/{name}")
        missing = [name for name, artifact in there.items() if artifact is None]
        made: dict[str, Artifact] = {}
        if missing:
            stages = [f"{folder}/{name}" for name in missing]
            started = self._start(*stages)
            made = dict(zip(missing, make(missing), strict=True))
            for name, artifact in made.items():
                self.ledger.note(f"{folder}/{name}", keys[name], artifact.digest)
            self._finish(", ".join(stages), started)
        for name, known in there.items():
            self.result.artifacts[label + name] = known or made[name]

    def _eval(self, splits: Splits) -> None:
        from contract.verdict import VERDICT_FILE
        from evalsuite.evaluate import evaluate
        from evalsuite.kept import Kept
        from evalsuite.rejudge import rejudge
        from evalsuite.results import METRICS_FILE, PREDICTIONS_FOLDER, REPORT_FILE, read_results

        part = self.recipe.model_dump(mode="json")
        artifacts = self.result.artifacts
        scores_key = key_of(
            digests={label: artifact.digest for label, artifact in artifacts.items()},
            test=splits.sha256["test"],
            prompt=part["prompt"],
            generate=part["generate"],
        )
        gate_key = key_of(scores=scores_key, gate=part["gate"])
        folder = self.out / "eval"
        predictions = [folder / PREDICTIONS_FOLDER / f"{label}.jsonl" for label in artifacts]
        files = {
            "eval": [folder / METRICS_FILE, *predictions],
            "eval/gate": [folder / VERDICT_FILE, folder / REPORT_FILE],
        }

        def digest(stage: str) -> str:
            return key_of(files=[sha256_of(path) for path in files[stage] if path.is_file()])

        def done(stage: str, key: str) -> bool:
            return all(path.is_file() for path in files[stage]) and self.ledger.noted(stage, key, digest(stage))

        scored = done("eval", scores_key)
        if scored and done("eval/gate", gate_key):
            self._skip("eval")
            Kept.of(folder, read_results(folder), artifacts.values()).restore()  # one made again lost its own
            self._count(folder)
            return
        started = self._start("eval")
        if scored:
            rejudge(folder, self.recipe.gate)
        else:
            rest = [artifact for label, artifact in artifacts.items() if label != "base"]
            evaluate(rest, splits.test, folder, base=artifacts["base"], recipe=self.recipe, threads=self.threads)
        self._count(folder)
        self.ledger.note("eval", scores_key, digest("eval"))
        self.ledger.note("eval/gate", gate_key, digest("eval/gate"))
        self._finish("eval", started)

    def _count(self, folder: Path) -> None:
        """What this evaluation says, and what it comes to with all earlier ones."""
        from contract.history import last_evaluation
        from evalsuite.kept import Kept, counted, is_proven, standing_lines
        from evalsuite.results import read_results

        evaluation = last_evaluation(folder)
        kept = Kept.of(folder, read_results(folder), self.result.artifacts.values())  # the run may have been moved
        standings = kept.standings(evaluation)
        self.result.verdicts = list(evaluation.verdicts)
        self.counted = counted(evaluation, standings)
        self.result.against = standing_lines(evaluation, standings)
        self.result.counted = is_proven(evaluation, standings, self.result.required)

    def _card(self) -> None:
        from evalsuite.results import read_results
        from flow.model_card import write_card

        results = read_results(self.out / "eval")
        write_card(self.out, self.recipe.name, self.result.artifacts, results, self.counted)

    def _skip(self, stage: str) -> None:
        self.result.skipped.append(stage)
        _say(f"{stage}: there and valid")

    def _start(self, *stages: str) -> float:
        for stage in stages:
            aside = self.ledger.set_aside(stage) if stage != "eval" else None  # evaluating replaces its own
            if aside:
                _say(f"{stage}: no longer valid; the old one was moved to {aside}")
        _say(f"{', '.join(stages)}: working …")
        return time.monotonic()

    def _finish(self, stage: str, started: float) -> None:
        self.result.done.append(stage)
        _say(f"{stage}: done in {time.monotonic() - started:.1f} s")


def _say(text: str) -> None:
    print(f"assay run · {text}", file=sys.stderr, flush=True)
