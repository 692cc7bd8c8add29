"""Writes a merged model's side files: configuration, generation config and tokenizer, cleaned of training residue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed
from contract.gguf_leftovers import tokenizer_files
from contract.model_config import NoOldWordsError, as_written_by_both
from contract.model_folder import VOCABULARIES, chat_format, read_json, stop_ids
from contract.prompt import Message, completion_segments
from export import clean_seq2seq

# Left in config.json by training and loading; wrong or meaningless for a stored model.
_RESIDUE = (
    "_name_or_path",
    "gradient_checkpointing",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "attn_implementation",
    "_flash_attn_2_enabled",
    "_load_in_4bit",
    "_load_in_8bit",
    "load_in_4bit",
    "load_in_8bit",
    "unsloth_fixed",
    "unsloth_version",
)
_LOADING = ("backend", "is_local", "local_files_only")  # left in tokenizer_config.json by loading in transformers 5
_SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}
_BEAMS = {"early_stopping": False, "length_penalty": 1.0, "diversity_penalty": 0.0, "num_beam_groups": 1}


@dataclass
class Cleaner:
    """Writes side files into `out` and notes every change."""

    base: Path
    adapter: Path
    out: Path
    changes: list[str] = field(default_factory=list)

    def write_all(self, *, dtype: str, tied: bool, rows: int) -> list[str]:
        """Write them.

        Args:
            dtype: what the weights are stored in.
            tied: are input and output embeddings one tensor.
            rows: embedding rows.

        Returns:
            Every change, in words.

        Raises:
            AssayError: the tokenizer has tokens without a row that a prompt can hold, or the generation config stays
                invalid.
        """
        from export.gguf_tokenizer import tokens_without_row

        tokenizer = self.copy_tokenizer()
        beyond = tokens_without_row(tokenizer, chat_format(self.out).template, rows)
        if beyond is None:
            raise AssayError(
                "the tokenizer has more tokens than the embeddings have rows",
                where=str(self.adapter),
                expected=f"at most {rows}",
                got=str(len(tokenizer)),
                hint="train the adapter with its resized embeddings saved (modules_to_save: embed_tokens)",
            )
        if beyond:
            self.changes.append(f"tokenizer: {listed(beyond)} kept without an embedding; no prompt can hold them")
        config = self.cleaned_config(read_json(self.base / "config.json"), dtype=dtype, tied=tied, rows=rows)
        self._write_both_forms(config)
        config, moved = self._moved(config) if config.get("is_encoder_decoder") else (config, {})
        generation = self.generation_config(config, tokenizer, moved)
        _write_json(self.out / "config.json", config)
        _write_json(self.out / "generation_config.json", generation)
        for path in sorted([*self.base.glob("LICENSE*"), *self.base.glob("NOTICE*")]):
            shutil.copyfile(path, self.out / path.name)
        return self.changes

    def copy_tokenizer(self) -> Any:
        """Copy the adapter's tokenizer files, or the base's where it brings none, and load the result."""
        from export.gguf_tokenizer import load_tokenizer

        own = any((self.adapter / name).is_file() for name in VOCABULARIES)
        origin = self.adapter if own else self.base
        for name in tokenizer_files(origin):
            shutil.copyfile(origin / name, self.out / name)
        self.changes.append(f"tokenizer: taken from the {'adapter' if own else 'base'}")
        self._write_tokenizer_for_both()
        template = self.adapter / "chat_template.jinja"
        if not own and template.is_file():
            shutil.copyfile(template, self.out / template.name)
            self.changes.append("chat_template.jinja: taken from the adapter")
        return load_tokenizer(self.out, where=str(origin))

    def _write_tokenizer_for_both(self) -> None:
        """tokenizer_config.json in words that transformers 4 reads, and 5 as well."""
        path = self.out / "tokenizer_config.json"
        values = read_json(path)
        found = {key: value for key, value in values.items() if key not in _LOADING}
        if found.get("tokenizer_class") == "TokenizersBackend":
            found["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(found.get("extra_special_tokens"), list):  # version 4 has an object of names there
            found["additional_special_tokens"] = found.pop("extra_special_tokens")
        if found != values:
            _write_json(path, found)
            self.changes.append("tokenizer_config.json: put in words that transformers 4 and 5 read")

    def cleaned_config(self, config: dict[str, Any], *, dtype: str, tied: bool, rows: int) -> dict[str, Any]:
        """The base's config.json without residue, true to the weights that are written."""
        for path, holder, key in list(_nested(config)):
            if key == "quantization_config" or key in _RESIDUE:
                del holder[key]
                self.changes.append(f"config.json: {path} removed")
        dtype_key = "dtype" if "dtype" in config or "torch_dtype" not in config else "torch_dtype"
        for path, holder, key in list(_nested(config)):
            if key in ("dtype", "torch_dtype") and (path != key or key != dtype_key):
                del holder[key]
                self.changes.append(f"config.json: {path} removed")
        self._set(config, dtype_key, dtype)
        if config.get("use_cache") is False:
            self._set(config, "use_cache", True)
        if config.get("tie_word_embeddings") != tied:
            self._set(config, "tie_word_embeddings", tied)
            if not tied and config.get("scale_decoder_outputs"):  # the scale lies in the head now
                self._set(config, "scale_decoder_outputs", False)
        if config.get("vocab_size") != rows:
            self._set(config, "vocab_size", rows)
        return config

    def _set(self, config: dict[str, Any], key: str, value: Any) -> None:
        if key not in config or config[key] != value:
            self.changes.append(f"config.json: {key} {json.dumps(config.get(key))} -> {json.dumps(value)}")
        config[key] = value

    def _write_both_forms(self, config: dict[str, Any]) -> None:
        """RoPE, and what ties T5's head, in the words of transformers 4 and 5."""
        try:
            both = as_written_by_both(config, str(self.base / "config.json"))
        except NoOldWordsError as error:
            self.changes.append(f"config.json: for transformers 5 alone ({error.what})")
            return
        for key, value in both.items():
            if config.get(key) != value:
                self._set(config, key, value)
            config[key] = value  # a null is no change

    def _moved(self, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        left, moved = clean_seq2seq.moved(config)
        gone = sorted(set(config) - set(left))
        self.changes += [f"config.json: {key} moved to generation_config.json" for key in gone]
        return left, moved

    def generation_config(
        self, config: dict[str, Any], tokenizer: Any, moved: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Base's and adapter's generation configs together: every stop id, a pad id, and no setting that is ignored.

        Args:
            config: the cleaned config.json.
            tokenizer: the merged model's.
            moved: settings that stood in config.json; those of generation_config.json go before them.
        """
        name = "generation_config.json"
        base, own = read_json(self.base / name), read_json(self.adapter / name)
        before = {**(moved or {}), **base, **own}
        both = bool(config.get("is_encoder_decoder"))
        merged = {key: value for key, value in before.items() if value is not None and key != "_from_model_config"}
        stops = {*stop_ids(self.base), *stop_ids(self.adapter), tokenizer.eos_token_id}
        stops |= set() if both else {self._closing(tokenizer)}
        known = sorted(stops - {None}, key=lambda stop: (stop != tokenizer.eos_token_id, stop))
        if known:
            merged["eos_token_id"] = known if len(known) > 1 else known[0]
        for key, value in (("bos_token_id", tokenizer.bos_token_id), ("pad_token_id", tokenizer.pad_token_id)):
            if value is not None:
                merged[key] = value
        if "pad_token_id" not in merged and config.get("pad_token_id") is not None:
            merged["pad_token_id"] = config["pad_token_id"]
        elif "pad_token_id" not in merged and known:
            merged["pad_token_id"] = known[0]
        if not merged.get("do_sample"):
            _drop_where_set(merged, _SAMPLING)
        if both:
            merged, notes = clean_seq2seq.checked(merged, config["vocab_size"], str(self.adapter))
            self.changes += notes
        if merged.get("num_beams", 1) == 1:
            _drop_where_set(merged, _BEAMS)
        self._note_generation(name, before, merged)
        _validate(merged, str(self.adapter))
        return merged

    def _note_generation(self, name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        for key in sorted(set(before) | set(after)):
            if key not in after:
                self.changes.append(f"{name}: {key} removed (was {json.dumps(before[key])})")
            elif before.get(key) != after[key]:
                self.changes.append(f"{name}: {key} {json.dumps(before.get(key))} -> {json.dumps(after[key])}")

    def _closing(self, tokenizer: Any) -> int | None:
        """The id that closes an assistant turn in the template the merged model carries."""
        try:
            last = completion_segments(chat_format(self.out), [Message("user", "Which room?")], "Room 527.")[-1]
        except AssayError as error:
            self.changes.append(
                f"generation_config.json: the end of a turn could not be told from the template ({error.what})"
            )
            return None
        token_id = tokenizer.convert_tokens_to_ids(last.text)
        return token_id if last.control and token_id != tokenizer.unk_token_id else None


def _nested(value: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every key of a JSON value, with its path and the object that holds it; parents before children."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield prefix + key, value, key
            yield from _nested(child, f"{prefix}{key}.")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _nested(child, f"{prefix}{index}.")


def _drop_where_set(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    for key, default in defaults.items():
        if key in values and values[key] != default:
            del values[key]


def _validate(values: dict[str, Any], where: str) -> None:
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(dict(values)).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise AssayError("the generation config is not valid", where=where, got=str(error)) from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
