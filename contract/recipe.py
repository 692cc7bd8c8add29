"""The recipe: everything that changes the model, as YAML, validated. Where and how it runs is the command line's."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from contract.artifact import ONNX_LABEL
from contract.errors import AssayError, did_you_mean
from contract.example import Columns
from contract.limits import GatePart, OnnxPrecision, Part, Quant
from contract.package_file import PackagePart, package_folder
from contract.pinned_date import DEFAULT_DATE, is_iso_date
from contract.prompt import DEFAULT_USER, PromptSpec
from contract.runtime import GenerateParams

# llama.cpp does not make these without an importance matrix
NEED_IMATRIX: tuple[Quant, ...] = ("iq3_xxs", "iq2_m", "q2_k_s", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")


class ModelPart(Part):
    """The model that is fine-tuned."""

    base: str = Field(
        description="A model folder or a .gguf (relative to the recipe), a hub id, or a file in `package`."
    )
    revision: str | None = Field(None, description="The hub revision; null takes the newest.")
    package: PackagePart | None = Field(
        None, description="The package that the base is a file of; `make` targets download it."
    )


class ColumnsPart(Part):
    """Which column holds what; null tries the usual names."""

    id: str | None = Field(
        None, description="Column of the example's id; null tries id, fname …, else numbers the rows."
    )
    document: str | None = Field(None, description="Column of the document; null tries document, dialogue, article …")
    references: str | list[str] | None = Field(
        None,
        description="Column or columns of the summaries; null tries references, summary, highlights …, then summary1, "
        "summary2 …",
    )

    def columns(self) -> Columns:
        """As `read_examples` takes them."""
        names = [self.references] if isinstance(self.references, str) else self.references
        return Columns(self.id, self.document, tuple(names) if names else None)


class SplitPart(Part):
    """How one file is divided, in the order of its rows; rows of one document count once."""

    train: int = Field(gt=0, description="Documents for training.")
    valid: int = Field(gt=0, description="Documents for validation.")
    test: int = Field(gt=0, description="Documents for the test.")


class AtMostPart(Part):
    """How much of the recipe's own three files is used; what `--data` gives is used whole."""

    train: int | None = Field(None, gt=0, description="Documents for training; null takes all.")
    valid: int | None = Field(None, gt=0, description="Documents for validation; null takes all.")
    test: int | None = Field(None, gt=0, description="Documents for the test; null takes all.")


class DataPart(Part):
    """The examples: three files, or one that is split. `--data` replaces the paths."""

    train: str | None = Field(
        None, description="Training examples: a file (relative to the recipe) or hf:OWNER/NAME@SPLIT."
    )
    valid: str | None = Field(None, description="Validation examples.")
    test: str | None = Field(None, description="Test examples: never trained on, never tuned on.")
    source: str | None = Field(None, description="One file that holds everything, divided by split.")
    split: SplitPart | None = Field(
        None, description="Documents of one file, counted: the first train, the next valid, the next test."
    )
    at_most: AtMostPart = Field(AtMostPart(), description="Of three files, the first so many documents of each.")
    columns: ColumnsPart = Field(ColumnsPart(), description="Which column holds what.")


class PromptPart(Part):
    """The words around the document."""

    user: str = Field(DEFAULT_USER, description="The user's turn; {document} is replaced, {language} may be used.")
    system: str | None = Field(None, description="The system's turn; null leaves it out.")
    language: str = Field("English", description="Goes where {language} stands.")
    template: str | None = Field(
        None,
        description="A chat template that replaces the model's: Jinja text, a .jinja file, "
        'or "plain". Null keeps the model\'s own.',
    )
    date: str = Field(
        DEFAULT_DATE,
        description="The day a chat template is told where it asks for today's: always this one (docs/templates.md).",
    )

    @field_validator("date", mode="before")
    @classmethod
    def _iso(cls, value: Any) -> Any:
        if type(value) is datetime.date:  # what YAML makes of a day without quotes
            value = value.isoformat()
        if not is_iso_date(value):
            raise ValueError("must be a day as 2024-07-26")
        return value

    @model_validator(mode="after")
    def _one_document(self) -> PromptPart:
        if self.user.count("{document}") != 1:
            raise ValueError("must hold {document} exactly once")
        return self

    def spec(self) -> PromptSpec:
        """As the other rooms take it."""
        return PromptSpec(self.user, self.system, self.language, self.template, self.date)


class LoraPart(Part):
    """The adapter's shape."""

    rank: int = Field(16, gt=0, description="Rank of the two matrices.")
    alpha: float = Field(32, gt=0, description="Scale: the delta is alpha / rank × B·A.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[str] | Literal["all-linear"] = Field("all-linear", description="Which layers get one.")
    use_rslora: bool = Field(False, description="Scale by alpha / √rank instead.")


class Nf4Part(Part):
    """How qlora stores the base while it trains."""

    double_quant: bool = Field(True, description="Quantize the block scales too.")
    compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Dtype of the computation, and for lora of the base's weights. float32 on a CPU, bfloat16 on a "
        "GPU; T5 takes no float16.",
    )


class TrainPart(Part):
    """Supervised fine-tuning: TRL's SFTTrainer, or transformers' Seq2SeqTrainer for an encoder-decoder base."""

    method: Literal["qlora", "lora", "full"] = Field(
        "qlora",
        description="qlora: an adapter on the base in 4-bit NF4; lora: on the base in 16 or 32 bit; full: no adapter, "
        "every weight is trained, in float32.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: Muon for the layers' matrices, in steps as large as AdamW's would be, and AdamW for all "
        "else. It goes with method: full, best on a base that was itself trained with Muon.",
    )
    seed: int = Field(0, ge=0, description="Seeds data order, adapter and dropout.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training split.")
    max_steps: int | None = Field(None, gt=0, description="Stop after this many optimizer steps; null runs the epochs.")
    batch_size: int = Field(8, gt=0, description="Examples per forward pass.")
    accumulation_steps: int = Field(1, gt=0, description="Forward passes per optimizer step.")
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate.")
    scheduler: Literal["cosine", "linear", "constant"] = Field("cosine", description="Its course after warm-up.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.0, ge=0, description="The optimizer's weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    max_length: int = Field(
        1024,
        gt=16,
        description="Tokens per row, of an encoder-decoder what its encoder reads; longer documents are cut, summaries "
        "never.",
    )
    max_target_length: int = Field(
        256, gt=4, description="Tokens an encoder-decoder's summary may have; a longer one is refused, never cut."
    )
    evaluations: int = Field(
        4,
        gt=0,
        description="How often validation loss is measured and a checkpoint kept; the best one becomes the adapter.",
    )
    gradient_checkpointing: bool = Field(False, description="Less memory, more time.")
    lora: LoraPart = Field(LoraPart(), description="The adapter's shape; full has none.")
    nf4: Nf4Part = Field(Nf4Part(), description="How qlora stores the base, and what is computed in.")

    @model_validator(mode="after")
    def _muon_for_whole_matrices(self) -> TrainPart:
        if self.optimizer == "muon" and self.method != "full":
            raise ValueError(f"optimizer: muon goes with method: full, not with {self.method}")
        return self


class MergePart(Part):
    """Adapter and base into one model."""

    dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="Stored dtype; merged in float32.")
    base: Literal["W16", "NF4", "auto"] = Field(
        "W16",
        description="Weights to merge onto: the 16-bit base; the base as the adapter saw it in training (NF4, "
        "dequantized); or whichever of the two is measured to be nearer to the adapter, on validation documents.",
    )


class GgufPart(Part):
    """GGUF files to make."""

    quants: list[Quant] = Field(["f16", "q8_0", "q4_k_m"], min_length=1, description="One artifact each.")
    check: Literal["structure", "logits"] = Field(
        "logits", description="structure reads every tensor back; logits also runs it against torch."
    )
    strict: bool = Field(False, description="Refuse a quantization some tensors cannot take.")
    imatrix: bool = Field(
        False,
        description="Weigh quantization errors with an importance matrix of the training split's text. The types "
        "iq3_xxs, iq2_…, iq1_… and q2_k_s cannot be made without.",
    )


class OnnxPart(Part):
    """ONNX folders to make."""

    precisions: list[OnnxPrecision] = Field(["fp32", "int8"], min_length=1, description="One artifact each.")
    check: Literal["structure", "logits"] = Field(
        "logits", description="structure reads graphs and weights back; logits also runs them against torch."
    )
    strict: bool = Field(
        False,
        description="Refuse a precision some weights cannot take, and int8 in 7 bits (CPUs without VNNI).",
    )


class ExportPart(Part):
    """What is made from the merged model."""

    gguf: GgufPart | None = Field(GgufPart(), description="GGUF files; null makes none.")
    onnx: OnnxPart | None = Field(None, description="ONNX folders; null makes none.")


class GeneratePart(Part):
    """How summaries are written when artifacts are scored and served."""

    max_new_tokens: int = Field(128, gt=0, description="A summary that is longer counts as never stopped.")
    num_beams: int = Field(1, gt=0, description="1 is greedy; more is beam search, which only encoder-decoders do.")
    length_penalty: float = Field(1.0, description="Beams: over 0 favours longer summaries.")
    early_stopping: bool = Field(False, description="Beams: stop as soon as there are num_beams finished summaries.")
    repetition_penalty: float = Field(1.0, gt=0, description="Over 1 makes tokens that were there already less likely.")
    no_repeat_ngram_size: int = Field(0, ge=0, description="No run of so many tokens comes twice; 0 allows all.")
    min_new_tokens: int = Field(0, ge=0, description="A summary does not end before.")

    def params(self) -> GenerateParams:
        """As runtimes take them."""
        return GenerateParams(**self.model_dump())

    def recorded(self) -> dict[str, Any]:
        """What an artifact's details keep of it: the length, and whatever is not the default."""
        return {"max_new_tokens": self.max_new_tokens, **self.model_dump(exclude_defaults=True)}


class Recipe(Part):
    """One use of Assay, from data to served file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the files that are made.")
    model: ModelPart = Field(description="The model that is fine-tuned.")
    data: DataPart = Field(DataPart(), description="The examples.")
    prompt: PromptPart = Field(PromptPart(), description="The words around the document.")
    train: TrainPart = Field(TrainPart(), description="Fine-tuning.")
    merge: MergePart = Field(MergePart(), description="Merging.")
    export: ExportPart = Field(ExportPart(), description="Files to make.")
    generate: GeneratePart = Field(GeneratePart(), description="How summaries are written.")
    gate: GatePart = Field(GatePart(), description="What must hold before serving.")

    @model_validator(mode="before")
    @classmethod
    def _full_requires_no_merge(cls, values: Any) -> Any:
        """Where every weight is trained nothing is merged; by default only what is exported must pass."""
        if not isinstance(values, dict):
            return values
        train, gate = values.get("train"), values.get("gate", {})
        if isinstance(train, dict) and train.get("method") == "full" and isinstance(gate, dict):
            exported = [label for label in GatePart().require if label != "merged"]
            return {**values, "gate": {"require": exported, **gate}}
        return values

    @model_validator(mode="after")
    def _made_and_required(self) -> Recipe:
        gguf, onnx = self.export.gguf, self.export.onnx
        quants = gguf.quants if gguf else []
        precisions = onnx.precisions if onnx else []
        if len(set(quants)) != len(quants):
            raise ValueError("export.gguf.quants names a type twice")
        if len(set(precisions)) != len(precisions):
            raise ValueError("export.onnx.precisions names a precision twice")
        unweighed = [quant for quant in quants if quant in NEED_IMATRIX and gguf and not gguf.imatrix]
        if unweighed:
            raise ValueError(f"{', '.join(unweighed)} cannot be made without export.gguf.imatrix: true")
        if self.train.method == "full" and "merged" in self.gate.require:
            raise ValueError(
                "gate.require names merged, but with train.method: full the model is what was trained, and nothing is "
                "merged that could be proven; require what is exported from it"
            )
        made = ("merged", *quants, *(ONNX_LABEL + precision for precision in precisions))
        never = [label for label in self.gate.require if label not in made]
        if never:
            raise ValueError(f"gate.require names what is never made: {', '.join(never)}")
        return self


def load_recipe(path: str | Path) -> Recipe:
    """Read and validate a recipe; relative paths in it are taken from its own folder.

    Raises:
        AssayError: naming every key that is unknown (with the nearest known one) or has a wrong value.
    """
    path = Path(path)
    if not path.is_file():
        raise AssayError("no such recipe", where=str(path), hint="the ones that come with Assay are in recipes/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a day that is none
        raise AssayError("the recipe is not YAML", where=str(path), got=str(error)) from None
    if not isinstance(values, dict):
        raise AssayError("the recipe is not a mapping of keys to values", where=str(path), got=type(values).__name__)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        raise AssayError(
            f"{len(problems)} problem(s) in the recipe",
            where=str(path),
            got="\n    " + "\n    ".join(problems),
            hint="docs/recipe.md lists every key",
        ) from None
    return _with_absolute_paths(recipe, path.resolve().parent)


def run_folder(path: str | Path) -> Path:
    """Where a recipe's run goes unless it is told: runs/STEM, after its file, as `make` has it too.

    Not after the name in it: a copied recipe that kept its name would go into the first one's folder.
    """
    return Path("runs") / Path(path).stem


def recipe_sha256(recipe: Recipe, *parts: str) -> str:
    """The sha256 of the recipe, or of the parts named: what a stage depends on."""
    values = recipe.model_dump(mode="json")
    chosen = {part: values[part] for part in parts} if parts else values
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1])
        hint = did_you_mean(str(item["loc"][-1]), known)
        return f"{where}: unknown key" + (f", {hint}" if hint else f"; known here: {', '.join(known)}")
    got = f", got {item['input']!r}" if item["type"] != "missing" else ""
    return f"{where}: {item['msg']}{got}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            for annotation in (model.model_fields[part].annotation, *get_args(model.model_fields[part].annotation)):
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    model = annotation
                    break
    return list(model.model_fields)


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(value: str | None) -> str | None:
        if value is None or value.startswith("hf:") or Path(value).is_absolute():
            return value
        return str((folder / value).resolve())

    base = recipe.model.base
    package = recipe.model.package
    home = folder if package is None else package_folder(package)
    local = package is not None or (folder / base).exists() or base.startswith(".")
    template = recipe.prompt.template
    is_file = template is not None and template != "plain" and "{" not in template
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"base": str((home / base).resolve()) if local else base}),
            "data": recipe.data.model_copy(
                update={name: absolute(getattr(recipe.data, name)) for name in ("train", "valid", "test", "source")}
            ),
            "prompt": recipe.prompt.model_copy(update={"template": absolute(template) if is_file else template}),
        }
    )
