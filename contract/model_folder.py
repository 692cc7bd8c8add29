"""What a Hugging Face model folder says of itself, read without transformers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from contract.errors import AssayError, listed
from contract.pinned_date import DEFAULT_DATE
from contract.prompt import PLAIN_TEMPLATE, ChatFormat

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")  # a tokenizer has one of these
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # "gpt2", "google/mt5-small"
_LARGEST_ID = (1 << 31) - 1  # that every engine has numbers for
_TRAINED_ON = {"t5": 512, "mt5": 1024, "umt5": 1024}  # tokens: arXiv 1910.10683, 2010.11934; UMT5 as mT5
_LONGEST = 1 << 30  # tokens; what tokenizers write for "no limit" is far beyond


def plain_causal(config: Any) -> bool:
    """Does every layer of a causal model see everything before it? By its transformers config; no window, no chunks.

    A window or chunk as long as the context leaves nothing out (Ministral's, Phi-4-mini's), so it is none.
    """
    longest = getattr(config, "max_position_embeddings", None)
    kinds = getattr(config, "layer_types", None) or []
    open_kinds = {"full_attention"}
    for kind, name in (("sliding_attention", "sliding_window"), ("chunked_attention", "attention_chunk_size")):
        size = getattr(config, name, None)
        if size and longest and size >= longest:
            open_kinds.add(kind)
        elif size:
            return False
    return all(kind in open_kinds for kind in kinds)


def is_encoder_decoder(folder: Path) -> bool:
    """Does a model folder hold an encoder and a decoder (T5, BART …)? By its config.json."""
    return read_json(folder / "config.json").get("is_encoder_decoder") is True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AssayError("a file of the model is not JSON", where=str(path), got=str(error)) from None
    if not isinstance(value, dict):
        raise AssayError("a file of the model is not a JSON object", where=str(path), got=type(value).__name__)
    return value


def resolve_model(reference: str | Path, revision: str | None = None, *, beside: Path | None = None) -> Path:
    """The local folder of a model given as a folder or as a hub id (downloaded, or found in the hub's cache).

    Args:
        reference: the folder, or the id.
        revision: of the hub's.
        beside: the adapter's folder that names it; "../base", if it is not seen from here, is looked for from there.

    Raises:
        AssayError: there is no such folder and the hub cannot be reached or does not know it.
    """
    reference = str(reference)
    path = Path(reference)
    if path.is_dir():
        return path.resolve()
    if beside is not None and path.parts[:1] == ("..",) and (beside / path).is_dir():
        return (beside / path).resolve()
    if path.is_file() and path.suffix == ".gguf":
        raise AssayError(
            "a model folder is wanted here, and this is a GGUF",
            where=reference,
            hint=f"make a folder of it: {import_command(path)} (assay run and assay train do so by themselves)",
        )
    if path.exists() or not _HUB_ID.fullmatch(reference):
        raise AssayError("no such model folder", where=reference)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise AssayError(
            "no such model folder, and huggingface_hub is not installed",
            where=reference,
            hint="in Assay's checkout: pip install -e '.[train]'",
        ) from None
    try:
        folder = snapshot_download(
            reference,
            revision=revision,
            allow_patterns=["README.md", "*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "LICENSE*"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AssayError(
            "the model is neither a folder nor on the hub or in its cache",
            where=reference,
            got=str(error).splitlines()[0],
        ) from None
    return Path(folder)


def import_command(gguf: str | Path) -> str:
    """The command that makes a model folder of a GGUF."""
    return f"assay import {shlex.quote(str(gguf))} --out FOLDER"


def token_text(value: Any) -> str | None:
    """A token as tokenizer_config.json writes it: plain text, or {"content": text}."""
    return value.get("content") if isinstance(value, dict) else value


def chat_format(folder: Path, template: str | None = None, *, date: str = DEFAULT_DATE) -> ChatFormat:
    """The chat format of a model folder.

    Args:
        folder: with the tokenizer's files.
        template: "plain", a .jinja file or Jinja text; replaces the model's own.
        date: what the template is told, as the artifact's prompt records it.
    """
    config = read_json(folder / "tokenizer_config.json")
    tokenizer = read_json(folder / "tokenizer.json")
    special = {token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")}
    special |= {token["content"] for token in config.get("added_tokens_decoder", {}).values() if token.get("special")}
    older = read_json(folder / "special_tokens_map.json")  # of folders whose tokenizer_config names none
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    named = {name: token_text(config[name] if name in config else older.get(name)) for name in names}
    special |= {token for token in named.values() if token}
    own = config.get("chat_template")
    if isinstance(own, list):  # several named templates
        own = next((entry["template"] for entry in own if entry.get("name") == "default"), None)
    if (folder / "chat_template.jinja").is_file():
        own = _read_template(folder / "chat_template.jinja")
    chosen = load_template(template) if template else own
    return ChatFormat(
        chosen or PLAIN_TEMPLATE,
        tuple(sorted(special)),
        named["bos_token"],
        named["eos_token"],
        _adds_bos(config, tokenizer),
        plain=chosen is None or chosen == PLAIN_TEMPLATE,
        unk_token=named["unk_token"],
        pad_token=named["pad_token"],
        date=date,
    )


def load_template(template: str) -> str:
    """A template given as "plain", as the path of a .jinja file, or as Jinja text."""
    if template == "plain":
        return PLAIN_TEMPLATE
    if "{" not in template:
        path = Path(template)
        if not path.is_file():
            raise AssayError("no such template file", where=template)
        return _read_template(path)
    return template


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AssayError("the template is not UTF-8", where=str(path), got=str(error)) from None


def _adds_bos(config: dict[str, Any], tokenizer: dict[str, Any]) -> bool:
    """A fast tokenizer's post-processor decides; without tokenizer.json, tokenizer_config's add_bos_token does."""
    processor = tokenizer.get("post_processor")
    if tokenizer:
        bos = token_text(config.get("bos_token"))
        flat = [processor, *(processor or {}).get("processors", [])] if processor else []
        singles = [piece for part in flat for piece in (part or {}).get("single", [])]
        first = singles[0] if singles else {}
        return bool(bos) and first.get("SpecialToken", {}).get("id") == bos
    return bool(config.get("add_bos_token", config.get("tokenizer_class", "").startswith("Llama")))


def stop_ids(folder: Path) -> list[int]:
    """Every id that ends generation: the union of generation_config's and config's eos_token_id, sorted.

    Raises:
        AssayError: one of them has something else there.
    """
    names = ("generation_config.json", "config.json")
    return sorted({stop for name in names for stop in token_ids(folder / name, "eos_token_id")})


def token_ids(path: Path, key: str) -> list[int]:
    """The token ids that a configuration file has for `key`; -1, which some tools write for none, is none.

    Raises:
        AssayError: it has something else there.
    """
    value = read_json(path).get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    wrong = [item for item in ids if type(item) is not int or item < -1 or item > _LARGEST_ID]
    if wrong:
        raise AssayError(
            "this is no token id",
            where=f"{path}: {key}",
            got=listed(json.dumps(item) for item in wrong),
            hint="put the token's number there, or take the key out",
        )
    return [item for item in ids if item != -1]


def context_of(folder: Path) -> int:
    """The context a model folder was made for, in tokens."""
    config = read_json(folder / "config.json")
    length = config.get("max_position_embeddings", config.get("n_positions"))
    if length is None and config.get("is_encoder_decoder"):  # mT5 turns no positions into weights and names no number
        length = read_json(folder / "tokenizer_config.json").get("model_max_length")
        if not isinstance(length, int) or length > _LONGEST:
            length = _TRAINED_ON.get(config.get("model_type", ""), length)
    if not isinstance(length, int) or length > _LONGEST:
        raise AssayError(
            "the config does not say how long the context is",
            where=str(folder / "config.json"),
            expected="max_position_embeddings",
            got=json.dumps(length),
        )
    return length


def license_of(folder: Path) -> str | None:
    """The licence a model card's front matter names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines[:1] != ["---"]:
        return None
    for line in lines[1:]:
        if line == "---":
            return None
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("'\"") or None
    return None
