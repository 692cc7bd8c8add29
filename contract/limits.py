"""The limits of a recipe: what an artifact must meet before it is served."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quant = Literal[
    "f32",
    "bf16",
    "f16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q5_0",
    "q4_k_m",
    "q4_k_s",
    "q4_0",
    "iq4_nl",
    "iq4_xs",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "iq3_xxs",
    "q2_k",
    "iq2_m",
    "q2_k_s",
    "iq2_s",
    "iq2_xs",
    "iq2_xxs",
    "iq1_m",
    "iq1_s",
]
OnnxPrecision = Literal["fp32", "fp16", "int8", "int4"]


# Wider than the coarsest type needs: beyond these a check could hardly say no, so a recipe that asks for it is refused.
WIDEST_KL_NATS = 3.0
LEAST_TOP1 = 0.3
WIDEST_ROUGE_L = 20.0  # points


class Part(BaseModel):
    """A part of a recipe: unknown keys and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QuantLimits(Part):
    """How far an export may be from the merged model."""

    max_kl_nats: float = Field(
        gt=0, le=WIDEST_KL_NATS, description="Mean KL(merged‖export) per token, on either target set."
    )
    min_top1_agreement: float = Field(ge=LEAST_TOP1, le=1, description="Share of tokens with the same argmax.")
    max_perplexity_ratio: float = Field(gt=1, le=10, description="Perplexity over the merged model's.")
    max_rouge_l_loss: float = Field(
        gt=0, le=WIDEST_ROUGE_L, description="ROUGE-L points it may lose (non-inferiority margin)."
    )


def _limits(kl: float, top1: float, ratio: float, rouge: float) -> QuantLimits:
    return QuantLimits(max_kl_nats=kl, min_top1_agreement=top1, max_perplexity_ratio=ratio, max_rouge_l_loss=rouge)


def _default_onnx_limits() -> dict[OnnxPrecision, QuantLimits]:
    return {
        "fp32": _limits(1e-6, 0.999, 1.001, 1.0),
        "fp16": _limits(0.001, 0.99, 1.005, 1.0),
        "int8": _limits(0.05, 0.935, 1.05, 1.5),
        "int4": _limits(0.15, 0.89, 1.15, 2.0),
    }


def _default_quant_limits() -> dict[Quant, QuantLimits]:
    return {
        "f32": _limits(1e-6, 0.999, 1.001, 1.0),
        "f16": _limits(1e-4, 0.995, 1.002, 1.0),
        "bf16": _limits(0.001, 0.99, 1.005, 1.0),
        "q8_0": _limits(0.005, 0.98, 1.01, 1.0),
        "q6_k": _limits(0.015, 0.965, 1.02, 1.0),
        "q5_k_m": _limits(0.03, 0.95, 1.035, 1.5),
        "q5_k_s": _limits(0.035, 0.945, 1.04, 1.5),
        "q5_0": _limits(0.04, 0.94, 1.045, 1.5),
        "q4_k_m": _limits(0.08, 0.92, 1.08, 2.0),
        "q4_k_s": _limits(0.1, 0.91, 1.1, 2.0),
        "q4_0": _limits(0.13, 0.9, 1.13, 2.0),
        "iq4_nl": _limits(0.13, 0.9, 1.13, 2.0),
        "iq4_xs": _limits(0.14, 0.895, 1.14, 2.0),
        "q3_k_l": _limits(0.2, 0.87, 1.2, 3.0),
        "q3_k_m": _limits(0.25, 0.855, 1.25, 3.0),
        "q3_k_s": _limits(0.4, 0.82, 1.45, 4.0),
        "iq3_xxs": _limits(0.45, 0.81, 1.5, 4.0),
        "q2_k": _limits(0.6, 0.78, 1.7, 5.0),
        "iq2_m": _limits(0.65, 0.77, 1.8, 5.0),
        "q2_k_s": _limits(0.7, 0.76, 1.9, 5.0),
        "iq2_s": _limits(0.8, 0.74, 2.0, 5.5),
        "iq2_xs": _limits(0.9, 0.72, 2.2, 6.0),
        "iq2_xxs": _limits(1.1, 0.68, 2.6, 7.0),
        "iq1_m": _limits(1.4, 0.62, 3.5, 8.0),
        "iq1_s": _limits(1.7, 0.58, 4.5, 10.0),
    }


class MergeLimits(Part):
    """How far the merged model may be from the unmerged adapter on the same weights."""

    rounding_multiple: float = Field(
        4.0,
        gt=1,
        le=100,
        description="Mean KL allowed: self-noise plus this many times what "
        "rounding the fp32 merge to the stored dtype costs by itself.",
    )


class BaseChangeLimits(Part):
    """How far an NF4-trained adapter may move when it is put on 16-bit weights."""

    max_kl_nats: float = Field(0.25, gt=0, le=WIDEST_KL_NATS, description="Mean KL per token.")
    min_top1_agreement: float = Field(0.85, ge=LEAST_TOP1, le=1, description="Share of tokens with the same argmax.")
    max_rouge_l_loss: float = Field(2.0, gt=0, le=WIDEST_ROUGE_L, description="ROUGE-L points it may lose.")


class ServedLimits(Part):
    """How far what an endpoint serves may be from the local artifact it claims to be."""

    min_same_text: float = Field(
        0.9,
        ge=LEAST_TOP1,
        le=1,
        description="Share of greedy texts that must be the same, and of stops; other engines and batch sizes break "
        "near-ties.",
    )
    max_rouge_l_loss: float = Field(1.0, gt=0, le=WIDEST_ROUGE_L, description="ROUGE-L points it may lose.")
    allow_control_text: bool = Field(
        True,
        description="May text in a document become control tokens? Most servers let it; `assay serve` does not.",
    )


class GatePart(Part):
    """What an artifact must meet before it is served."""

    require: list[str] = Field(["merged", "q4_k_m"], min_length=1, description="Artifacts that must pass.")
    max_eos_rate_loss: float = Field(
        0.05,
        gt=0,
        le=0.5,
        description="Share of summaries that may stop ending by themselves, against the model it was made from.",
    )
    max_ruined_share: float = Field(
        0.003,
        ge=0,
        le=0.1,
        description="Share of documents that may be ruined, which the mean over all hides: their own mean KL is beyond "
        "20 times the limit. Passes if none is seen, else if the exact 95% interval lies within.",
    )
    merge: MergeLimits = Field(MergeLimits(), description="Merge fidelity.")
    base_change: BaseChangeLimits = Field(BaseChangeLimits(), description="NF4-trained adapter on 16-bit weights.")
    quant: dict[Quant, QuantLimits] = Field(
        default_factory=_default_quant_limits, description="Limits per GGUF type; a type left out keeps its default."
    )
    onnx: dict[OnnxPrecision, QuantLimits] = Field(
        default_factory=_default_onnx_limits,
        description="Limits per ONNX precision; one left out keeps its default.",
    )

    served: ServedLimits = Field(ServedLimits(), description="An endpoint beside the artifact it claims to be.")

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled: dict[str, Any] = {}
        for key, known in (("quant", _default_quant_limits()), ("onnx", _default_onnx_limits())):
            if isinstance(values.get(key), dict):
                defaults = {str(name): limits.model_dump() for name, limits in known.items()}
                given = {
                    name: {**defaults.get(name, {}), **limits} if isinstance(limits, dict) else limits
                    for name, limits in values[key].items()
                }
                filled[key] = {**defaults, **given}
        return {**values, **filled}

    def limits_of(self, kind: str, storage: str | None) -> QuantLimits | None:
        """The limits of an export: `storage` is a GGUF type, or an ONNX precision."""
        known: dict[Any, QuantLimits] = self.onnx if kind == "onnx" else self.quant
        return known.get(storage)
