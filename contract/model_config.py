"""RoPE and tied heads, read from a config.json of transformers 4 or 5 alike, without transformers.

Version 4 wrote rope_theta, rope_scaling and partial_rotary_factor side by side; version 5 writes one rope_parameters,
for all layers or for each kind of layer. Version 5 also calls the embeddings of T5 tied whatever the weights hold, and
says in scale_decoder_outputs what tie_word_embeddings used to say. A config may have both forms, as those that we
write have; where the two say different things, nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from contract.errors import AssayError, listed

FULL, SLIDING = "full_attention", "sliding_attention"
T5_FAMILY = ("t5", "mt5", "umt5", "longt5")  # tied in every config of version 5, whatever their weights are

_ORIGINAL = "original_max_position_embeddings"
# Kind of RoPE -> keys that it needs, keys that it may have (transformers' RotaryEmbeddingConfigMixin).
_KINDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), (_ORIGINAL,)),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "longrope": (("short_factor", "long_factor"), (_ORIGINAL, "attention_factor", "factor")),
    "proportional": ((), ("factor",)),
    "yarn": (
        ("factor",),
        (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
_NO_BEARING = {"finetuned"}  # the first YaRN models say so of themselves; no code reads it
_SEVERAL_AXES = ("mrope_section", "mrope_interleaved")  # for pictures; text has the same position on each
_OWN_KEYS = {  # model_type -> keys that its own code reads
    "ministral3": ("llama_4_scaling_beta", "max_position_embeddings"),
    "mistral4": ("llama_4_scaling_beta", "max_position_embeddings"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _SEVERAL_AXES),
}
# model_type -> version 4's words for the base and for the share of a head that turns
_WORDS = dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), ("rotary_emb_base", "rotary_pct"))
_USUAL_WORDS = ("rope_theta", "partial_rotary_factor")
_LOCAL_BASE = "rope_local_base_freq"  # of layers with a window, which turn unscaled
_TWO_BASES = ("gemma3_text", "gemma3n_text")
_UNSCALED_WINDOWS = ("olmo3",)  # layers with a window have the same base and no scaling


class NoOldWordsError(AssayError):
    """What a config says cannot be said in the words of transformers 4."""


@dataclass(frozen=True)
class Rope:
    """How positions turn in one kind of layer. None: the config does not say, its family's default holds."""

    kind: str | None = None
    theta: float | None = None
    partial: float | None = None  # the share of each head that turns
    scaling: Mapping[str, Any] = field(default_factory=dict)  # the kind's own keys

    @property
    def flat(self) -> dict[str, Any]:
        """Every setting that is known, by name; "rope_type" is always there."""
        said = {"rope_theta": self.theta, "partial_rotary_factor": self.partial}
        return {
            "rope_type": self.kind or "default",
            **{key: value for key, value in said.items() if value is not None},
            **self.scaling,
        }


def ropes(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Rope]:
    """RoPE by kind of layer (FULL, SLIDING …), or under FULL alone where all layers turn alike.

    Args:
        config: a config.json.
        where: the file, for messages.

    Raises:
        AssayError: a kind of RoPE or one of its keys is not known, or the two forms say different things.
    """
    old, new = _old_form(config, where), _new_form(config, where)
    problems = []
    for layer, rope in new.items():
        before = old.get(layer, Rope()) if layer in (FULL, SLIDING) else Rope()
        problems += [f"{layer}: {text}" for text in differences(before, rope)]
    if problems:
        raise AssayError(
            "the config says two things about RoPE: the words of transformers 4 differ from those of transformers 5",
            where=where,
            got=listed(problems),
            hint="keep the form that the model was trained with: rope_parameters, or rope_theta and rope_scaling",
        )
    return {layer: _joined(old.get(layer, Rope()), rope) for layer, rope in (new or old).items()}


def full_rope(config: Mapping[str, Any], where: str = "config.json") -> Rope:
    """RoPE of the layers that see everything, or of all where they are alike. Raises as `ropes` does."""
    found = ropes(config, where)
    return found.get(FULL) or next(iter(found.values()))


def as_written_by_4(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """A config.json in the words of transformers 4, which computes the same from it.

    A head that is not tied must lie in the weights: version 4 makes one up where it does not.

    Args:
        config: a config.json of either form; it is not changed.
        where: the file, for messages.

    Raises:
        NoOldWordsError: version 4 has no words for it.
        AssayError: as `ropes` and `scales_tied_head`.
    """
    found = dict(config)
    if config.get("rope_parameters"):
        found |= _old_words(config, ropes(config, where), where)
    found.pop("rope_parameters", None)
    if config.get("model_type") in T5_FAMILY:
        found["tie_word_embeddings"] = scales_tied_head(config, where)
        found.pop("scale_decoder_outputs", None)
    return found


def as_written_by_both(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """A config.json that transformers 4 and 5 read alike: the words of both. Raises as `as_written_by_4` does."""
    found = as_written_by_4(config, where)
    layers = ropes(config, where)
    if config.get("rope_parameters"):
        found["rope_parameters"] = config["rope_parameters"]
    elif any(rope != Rope() for rope in layers.values()):
        found["rope_parameters"] = {layer: rope.flat for layer, rope in layers.items()}
        if len(layers) == 1:
            found["rope_parameters"] = layers[FULL].flat
    if config.get("model_type") in T5_FAMILY and config.get("model_type") != "mt5":
        found["scale_decoder_outputs"] = found["tie_word_embeddings"]
    return found


def scales_tied_head(config: Mapping[str, Any], where: str = "config.json") -> bool:
    """Does a model of T5's family scale what it puts through its head? It does where the head is the embeddings.

    Version 4 says so in tie_word_embeddings. Version 5 writes true there always, and scale_decoder_outputs beside it;
    for mT5, which it never scales, it writes no more than its own number.

    Raises:
        AssayError: the two contradict each other, or nothing tells which of the versions wrote an mT5.
    """
    tied, scaled = config.get("tie_word_embeddings"), config.get("scale_decoder_outputs")
    if config.get("model_type") == "mt5":
        newer = str(config.get("transformers_version", "")).partition(".")[0]
        if scaled or (tied and (not newer.isdigit() or int(newer) < 5)):
            raise AssayError(
                "the config of this mT5 says that its head is tied, and then transformers 4 scales what transformers 5 "
                "does not",
                where=where,
                expected='"tie_word_embeddings": false and a head in the weights, as every published mT5 has it',
                got=f"tie_word_embeddings {json.dumps(tied)}, scale_decoder_outputs {json.dumps(scaled)}",
            )
        return False
    if tied is False and scaled:
        raise AssayError(
            "the config says two things about its head",
            where=where,
            got="tie_word_embeddings false (by it transformers 4 does not scale the decoder's output) and "
            "scale_decoder_outputs true",
        )
    return bool(scaled) if scaled is not None else tied is not False


def head_is_tied(
    config: Mapping[str, Any], stored: Collection[str], *, usual: bool, where: str = "config.json"
) -> bool:
    """Are the input embeddings and the head one tensor?

    In T5's family it is the weights that tell, as in transformers 5: what has no scale in front of its head has one of
    its own where one is stored. Many LongT5 say that they are not tied, and store none.

    Args:
        config: a config.json.
        stored: the names of the tensors in its folder.
        usual: what its family does where the config does not say.
        where: the file, for messages.

    Raises:
        AssayError: as `scales_tied_head`.
    """
    said = config.get("tie_word_embeddings")
    if config.get("model_type") in T5_FAMILY:
        return scales_tied_head(config, where) or "lm_head.weight" not in stored
    return bool(usual if said is None else said)


def _new_form(config: Mapping[str, Any], where: str) -> dict[str, Rope]:
    """What rope_parameters says; nothing where there is none."""
    given, where = config.get("rope_parameters") or {}, f"{where}: rope_parameters"
    if not isinstance(given, dict):
        raise AssayError("this is not known as RoPE", where=where, expected="an object", got=json.dumps(given))
    nested = {layer: value for layer, value in given.items() if isinstance(value, dict)}
    if not nested:
        if given and config.get("model_type") in (*_TWO_BASES, *_UNSCALED_WINDOWS):
            raise AssayError(
                "this family has RoPE for each kind of layer, and the config has one for all",
                where=where,
                expected=f"{FULL} and {SLIDING}, an object each",
                got=listed(sorted(given)),
            )
        return {FULL: _rope(config, given, where)} if given else {}
    known = {FULL, SLIDING, *(config.get("layer_types") or ())}
    beside = {key: value for key, value in given.items() if key not in nested and value is not None}
    wrong = sorted(set(nested) - known)  # transformers leaves them unread
    wrong += [key for key, value in beside.items() if not any(value == one.get(key) for one in nested.values())]
    if wrong:
        raise AssayError("RoPE has a key that is not known", where=where, got=listed(wrong))
    return {layer: _rope(config, value, f"{where}.{layer}") for layer, value in nested.items()}


def _old_form(config: Mapping[str, Any], where: str) -> dict[str, Rope]:
    """What version 4's words say: of FULL, and of SLIDING where the family turns those layers otherwise."""
    family, scaling = config.get("model_type"), config.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        raise AssayError(
            "this is not known as RoPE", where=f"{where}: rope_scaling", expected="an object", got=json.dumps(scaling)
        )
    if scaling and any(isinstance(value, dict) for value in scaling.values()):
        raise AssayError(
            "RoPE of several kinds of layer stands in the words of transformers 4",
            where=f"{where}: rope_scaling",
            expected="rope_parameters",
        )
    inside = _rope(config, scaling or {}, f"{where}: rope_scaling")
    theta_word, partial_word = _WORDS.get(str(family), _USUAL_WORDS)
    beside = Rope(None, config.get(theta_word), config.get(partial_word))
    if problems := differences(beside, inside):
        raise AssayError("the config says two things about RoPE", where=where, got=listed(problems))
    kind = inside.kind if scaling else "default" if "rope_scaling" in config else None
    full = _joined(beside, Rope(kind, inside.theta, inside.partial, inside.scaling))
    if family in _TWO_BASES or _LOCAL_BASE in config:
        return {FULL: full, SLIDING: Rope("default" if kind else None, config.get(_LOCAL_BASE), full.partial)}
    if family in _UNSCALED_WINDOWS:
        return {FULL: full, SLIDING: Rope("default" if kind else None, full.theta, full.partial)}
    return {FULL: full}


def _rope(config: Mapping[str, Any], given: Mapping[str, Any], where: str) -> Rope:
    """One object of RoPE's settings, every key understood."""
    family = str(config.get("model_type"))
    settings = {key: value for key, value in given.items() if value is not None and key not in _NO_BEARING}
    kinds = {_kind(family, str(settings.pop(key))) for key in ("rope_type", "type") if key in settings}
    if len(kinds) > 1:
        raise AssayError("RoPE is of two kinds", where=where, got=f"rope_type and type: {listed(sorted(kinds))}")
    kind = kinds.pop() if kinds else "default"
    if kind not in _KINDS:
        raise AssayError("this kind of RoPE is not known", where=where, expected=listed(_KINDS), got=kind)
    needed, optional = _KINDS[kind]
    numbers = {key: settings.pop(key, None) for key in _USUAL_WORDS}
    if kind == "default":  # what saving by version 5 or the model's own code leaves there turns nothing
        settings.pop(_ORIGINAL, None)
    unknown = sorted(set(settings) - {*needed, *optional, *_OWN_KEYS.get(family, ())})
    missing = [key for key in needed if key not in settings]
    if unknown:
        raise AssayError(f"RoPE of kind {kind} has a key that is not known", where=where, got=listed(unknown))
    if missing:
        raise AssayError(f"RoPE of kind {kind} lacks a key", where=where, expected=listed(missing))
    outside = config.get(_ORIGINAL)  # where Phi-3 has it, whose class has a number for it in any case
    if outside is not None and _ORIGINAL in optional:
        if settings.get(_ORIGINAL, outside) != outside:
            raise AssayError(
                "the config says two things about RoPE",
                where=where,
                got=f"{_ORIGINAL} {json.dumps(settings[_ORIGINAL])}, and {json.dumps(outside)} in the config itself",
            )
        settings[_ORIGINAL] = outside
    wrong = [
        f"{key} {json.dumps(value)}"
        for key, value in {**numbers, **settings}.items()
        if value is not None and not _fits(key, value)
    ]
    if wrong:
        raise AssayError("RoPE has a value that is no number", where=where, got=listed(wrong))
    return Rope(kind, numbers["rope_theta"], numbers["partial_rotary_factor"], settings)


def _kind(family: str, name: str) -> str:
    """Earlier names: Phi-3's first files say "su" for what is LongRoPE, and its class takes "yarn" so, too."""
    return "longrope" if name == "su" or (family == "phi3" and name == "yarn") else name


def _fits(key: str, value: Any) -> bool:
    if key in ("truncate", "mrope_interleaved"):
        return isinstance(value, bool)
    values = value if key in ("short_factor", "long_factor", "mrope_section") and isinstance(value, list) else [value]
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def differences(one: Rope, other: Rope, *, whole: bool = True) -> list[str]:
    """What both say, and not alike.

    Args:
        one: RoPE of a kind of layer.
        other: the same kind's, by another word.
        whole: a key that only one of them has is a difference, too.
    """
    pairs = {
        "base": (one.theta, other.theta),
        "share of each head that turns": (one.partial, other.partial),
        "kind": (one.kind, other.kind),
    }
    if one.kind and one.kind == other.kind:
        for key in sorted({*one.scaling, *other.scaling} - {_ORIGINAL}):
            nothing = "nothing" if whole else None
            pairs[key] = (one.scaling.get(key, nothing), other.scaling.get(key, nothing))
        pairs[_ORIGINAL] = (one.scaling.get(_ORIGINAL), other.scaling.get(_ORIGINAL))  # version 5 adds its default
    return [
        f"{name} {json.dumps(left)} and {json.dumps(right)}"
        for name, (left, right) in pairs.items()
        if left is not None and right is not None and left != right
    ]


def _joined(one: Rope, other: Rope) -> Rope:
    """What either says; they do not contradict each other."""
    return Rope(
        one.kind if other.kind is None else other.kind,
        one.theta if other.theta is None else other.theta,
        one.partial if other.partial is None else other.partial,
        {**one.scaling, **other.scaling},
    )


def _old_words(config: Mapping[str, Any], layers: Mapping[str, Rope], where: str) -> dict[str, Any]:
    """RoPE in version 4's words."""
    family = str(config.get("model_type"))
    full = layers.get(FULL) or next(iter(layers.values()))
    others = {layer: rope for layer, rope in layers.items() if layer != FULL}
    if family in _TWO_BASES:
        allowed = {SLIDING: Rope("default", others.get(SLIDING, Rope()).theta, full.partial)}
    elif family in _UNSCALED_WINDOWS:
        allowed = {SLIDING: Rope("default", full.theta, full.partial)}
    else:
        allowed = dict.fromkeys(others, full)
    if strange := [layer for layer, rope in others.items() if rope != allowed.get(layer)]:
        raise NoOldWordsError(
            "transformers 4 has no words for RoPE that differs by the kind of layer here",
            where=f"{where}: rope_parameters",
            got=listed(f"{layer}: {json.dumps(others[layer].flat)}" for layer in strange),
        )
    theta_word, partial_word = _WORDS.get(family, _USUAL_WORDS)
    found = {theta_word: full.theta, partial_word: full.partial}
    if family in _TWO_BASES and SLIDING in others:
        found[_LOCAL_BASE] = others[SLIDING].theta
    found = {word: value for word, value in found.items() if value is not None}
    return {**found, **_old_scaling(config, full, where)}


def _old_scaling(config: Mapping[str, Any], rope: Rope, where: str) -> dict[str, Any]:
    """rope_scaling, null where nothing is scaled."""
    if rope.kind in (None, "default"):
        return {"rope_scaling": None}
    if rope.kind == "proportional":
        raise NoOldWordsError(
            "transformers 4 has no words for RoPE of kind proportional", where=f"{where}: rope_parameters"
        )
    scaling = {"rope_type": rope.kind, **rope.scaling}
    if config.get("model_type") != "phi3":
        return {"rope_scaling": scaling}
    scaling = {"type": rope.kind, **rope.scaling}  # its class takes three keys and no more
    original = scaling.pop(_ORIGINAL, None)
    factor = scaling.pop("factor", None)
    stretch = config["max_position_embeddings"] / original if original else None
    if "attention_factor" in scaling or factor not in (None, stretch):
        raise NoOldWordsError(
            "transformers 4 has no words for this LongRoPE",
            where=f"{where}: rope_parameters",
            got=f"factor {json.dumps(factor)}, attention_factor {json.dumps(scaling.get('attention_factor'))}",
        )
    return {"rope_scaling": scaling, **({_ORIGINAL: original} if original is not None else {})}
