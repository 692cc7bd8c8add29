"""Refusals of single files: a tokenizer, a configuration, weights or a GGUF that is not what it has to be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.example import Example
from contract.prompt import PromptSpec
from evalsuite.cache import Cache
from export.clean import Cleaner
from export.gguf_families import read_model
from export.gguf_tokenizer import add_tokenizer, load_tokenizer, special_ids, token_tables
from export.ollama_facts import gguf_facts
from export.quantize import planned_types
from export.source import Source
from export.weights import FolderWeights
from flow.choose_base import choose_base
from flow.preflight import NoTwinError, make_twin
from flow.quant_bench import Bench, Settings
from flow.quant_limits import Figures, Limits
from tests.evalsuite.chain import examples
from tests.export.families import FAMILIES
from tests.export.makers import convert_sentencepiece, edit_json
from tests.tiny import make_adapter, make_bpe_tokenizer, make_llama
from tests.tiny_seq2seq import make_t5_tokenizer

pytestmark = pytest.mark.engine

ROWS = 1024  # more than any of these tokenizers has tokens


def refuse(match: str, call: Callable[[], object]) -> str:
    with pytest.raises(AssayError, match=match) as error:
        call()
    assert error.value.exit_code == 2
    return str(error.value)


def edit_model(folder: Path, **changes: Any) -> None:
    """Set keys of the model in tokenizer.json."""
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    edit_json(path, model=model | changes)


def refuse_tables(folder: Path, match: str) -> str:
    tokenizer = load_tokenizer(folder)
    message = refuse(match, lambda: token_tables(folder, tokenizer, ROWS))
    assert str(folder) in message
    return message


def make_tokenizer(folder: Path, maker: Callable[[Path], object]) -> Path:
    folder.mkdir()
    maker(folder)
    return folder


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE as tokenizer.json only. Do not write into it."""
    return make_tokenizer(tmp_path_factory.mktemp("refusals") / "sentencepiece", convert_sentencepiece)


@pytest.fixture
def sentencepiece(tmp_path: Path, sentencepiece_folder: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(sentencepiece_folder, tmp_path / "sentencepiece"))


@pytest.mark.parametrize("option", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_a_bpe_with_an_option_of_its_own(tmp_path: Path, option: str) -> None:
    folder = make_tokenizer(tmp_path / "bpe", make_bpe_tokenizer)
    edit_model(folder, **{option: "##"}, merges=[])
    assert f"{option} = '##'" in refuse_tables(folder, "llama.cpp's BPE has no such option")


def train(folder: Path, kind: str) -> None:
    """Another tokenizer.model."""
    import sentencepiece

    text = folder / "corpus.txt"
    text.write_text("a room and another room, a bus and another bus\n" * 8, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=280,
        hard_vocab_limit=False,
        byte_fallback=True,
        model_type=kind,
        minloglevel=2,
        num_threads=1,
    )


def test_a_sentencepiece_model_that_is_damaged(sentencepiece: Path) -> None:
    train(sentencepiece, "bpe")
    whole = (sentencepiece / "tokenizer.model").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2 + 1], b"\xff" * 40):
        (sentencepiece / "tokenizer.model").write_bytes(damaged)
        assert "tokenizer.model" in refuse_tables(sentencepiece, "tokenizer.model cannot be read")


def test_a_sentencepiece_model_of_another_type(sentencepiece: Path) -> None:
    train(sentencepiece, "unigram")
    assert "got: UNIGRAM" in refuse_tables(sentencepiece, "tokenizer.model is not a BPE model")


def test_a_sentencepiece_model_of_another_tokenizer(sentencepiece: Path) -> None:
    train(sentencepiece, "bpe")
    message = refuse_tables(sentencepiece, "tokenizer.model and tokenizer.json are of different tokenizers")
    assert "pieces have other ids" in message


def test_a_sentencepiece_that_rewrites_text(sentencepiece: Path) -> None:
    edit_json(sentencepiece / "tokenizer.json", normalizer={"type": "Lowercase"})
    assert "Lowercase" in refuse_tables(sentencepiece, "in a way llama.cpp's SentencePiece does not")


def test_a_byte_fallback_that_keeps_spaces(sentencepiece: Path) -> None:
    edit_json(sentencepiece / "tokenizer.json", normalizer={"type": "Prepend", "prepend": "▁"})
    assert "spaces replaced by ▁" in refuse_tables(sentencepiece, "keeps spaces is not SentencePiece")


def test_templates_without_a_default(tmp_path: Path) -> None:
    folder = make_tokenizer(tmp_path / "bpe", make_bpe_tokenizer)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    named = [{"name": name, "template": "{{ messages[0].content }}"} for name in ("tool_use", "rag")]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    message = refuse_tables(folder, "several chat templates and none of them is the default")
    assert "got: rag, tool_use" in message
    tokenizer = load_tokenizer(folder)
    refuse("none of them is the default", lambda: special_ids(folder, tokenizer))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"byte_fallback": True}, "no byte fallback for Unigram"),
        ({"unk_id": None}, "the tokenizer has no unknown token"),
    ],
)
def test_a_unigram_that_llama_cpp_cannot_have(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    folder = make_tokenizer(tmp_path / "t5", make_t5_tokenizer)
    edit_model(folder, **changes)
    refuse_tables(folder, match)


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null: llama.cpp always has one"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping is null: llama.cpp always has one"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping 5.0: llama.cpp has none here"),
        ("gemma3", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar 32: llama.cpp takes 64"),
        ("phi3-longrope", {"head_dim": 32}, "RoPE's long_factor has 24 values, expected 12"),
    ],
)
def test_configurations_without_a_place(tmp_path: Path, family: str, changes: dict[str, Any], match: str) -> None:
    import transformers

    stem, settings = FAMILIES[family]
    name = f"{stem}TextConfig" if stem == "Gemma3" else f"{stem}Config"
    raw = getattr(transformers, name)(**settings, architectures=[f"{stem}ForCausalLM"]).to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(raw))
    source = Source(tmp_path, raw, FolderWeights(tmp_path, {}), str(tmp_path), {}, None)
    refuse(match, lambda: read_model(source))


@pytest.mark.parametrize("key", ["context_length", "block_count", "embedding_length"])
def test_a_gguf_that_lacks_what_a_context_needs(tmp_path: Path, llama_folder: Path, key: str) -> None:
    import gguf

    sizes = {"context_length": 512, "block_count": 2, "embedding_length": 256}
    path, tokenizer = tmp_path / "model.gguf", load_tokenizer(llama_folder)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in sizes.items():
        if name != key:
            writer.add_uint32(f"llama.{name}", value)
    tables = token_tables(llama_folder, tokenizer, len(tokenizer))
    add_tokenizer(writer, tables, special_ids(llama_folder, tokenizer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    message = refuse("the .gguf lacks what a context needs", lambda: gguf_facts(path, PromptSpec()))
    assert f"{path}: llama.{key}" in message


def test_a_generation_config_that_is_not_valid(tmp_path: Path, llama_folder: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    for folder in (adapter, out):
        folder.mkdir()
    (adapter / "generation_config.json").write_text(json.dumps({"max_new_tokens": -5}))
    cleaner = Cleaner(llama_folder, adapter, out)
    message = refuse(
        "the generation config is not valid", lambda: cleaner.write_all(dtype="float16", tied=True, rows=ROWS)
    )
    assert str(adapter) in message
    assert "max_new_tokens" in message


def write_header(path: Path, header: dict[str, Any], values: bytes) -> Path:
    """A safetensors file, byte by byte."""
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + values)
    return path


def test_a_folder_without_weights(tmp_path: Path) -> None:
    message = refuse("there are no weights here", lambda: FolderWeights.open(tmp_path))
    assert "model.safetensors or model.safetensors.index.json" in message


def test_an_index_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    message = refuse("the shards and their index disagree", lambda: FolderWeights.open(tmp_path))
    assert "got: an empty index" in message


def test_a_shard_outside_its_folder(tmp_path: Path) -> None:
    """An index may name files of its own folder only, whether or not they are there."""
    folder = tmp_path / "model"
    folder.mkdir()
    header = {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
    write_header(tmp_path / "shard.safetensors", header, bytes(2))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../shard.safetensors"}}))
    message = refuse("the shards and their index disagree", lambda: FolderWeights.open(folder))
    assert "../shard.safetensors: no such shard" in message


def test_a_tensor_of_a_dtype_of_tomorrow(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}
    weights = FolderWeights.of_file(write_header(tmp_path / "model.safetensors", header, bytes(2)))
    message = refuse("a tensor of an unknown dtype", lambda: weights.read("a"))
    assert "model.safetensors: a" in message
    assert "got: F4" in message


def test_weights_cut_short_while_they_are_read(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}
    path = write_header(tmp_path / "model.safetensors", header, bytes(64))
    weights = FolderWeights.open(tmp_path)
    assert weights.read_rows("a", 0, 2).shape == (2, 4)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 20)
    assert str(path) in refuse("cut short while it was read", lambda: weights.read("a"))


def test_a_plan_for_what_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "outline.gguf"
    path.write_bytes(b"no GGUF")
    refuse("llama.cpp could not plan q4_k_m", lambda: planned_types(path, "q4_k_m", with_matrix=False))


def test_a_plan_that_does_not_speak_of_every_tensor(tmp_path: Path) -> None:
    """Another llama.cpp may write its lines otherwise than the pattern has them; a name with a space does so here."""
    from gguf import GGUFWriter

    path = tmp_path / "outline.gguf"
    writer = GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(256 if "length" in key else 1)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in ("token_embd.weight", "blk.0.attn norm.weight"):
        writer.add_tensor(name, np.zeros((256, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = refuse("does not say what it would do", lambda: planned_types(path, "q4_k_m", with_matrix=False))
    assert "1 of 2 tensors" in message


def test_documents_that_do_not_fit_the_context(adapter_folder: Path) -> None:
    long = Example("long", "Which room? " * 600, ("Room 527.",))
    message = refuse(
        "none of the documents fits the context",
        lambda: choose_base(open_artifact(adapter_folder), [long], trained_on="w16", threads=1),
    )
    assert "got: 512 tokens" in message


def test_a_choice_without_documents(adapter_folder: Path) -> None:
    adapter = open_artifact(adapter_folder)
    message = refuse("choosing a base needs documents", lambda: choose_base(adapter, [], trained_on="w16", threads=1))
    assert "--data EXAMPLES" in message


def test_a_config_of_no_known_model(tmp_path: Path, llama_folder: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base, ignore=shutil.ignore_patterns("*.safetensors"))
    edit_json(base / "config.json", model_type="wonder")
    with pytest.raises(AssayError, match="the base's config makes no model") as error:
        make_twin(base, tmp_path / "twin")
    assert error.value.exit_code == 2
    assert not isinstance(error.value, NoTwinError)
    assert error.value.where == str(base / "config.json")
    assert "wonder" in str(error.value.got)


def test_a_type_that_comes_out_otherwise_than_it_was_measured(tmp_path: Path, llama_folder: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    measured = Figures("q8_0", 1, 8.5, digest="sha256:measured")
    bench = Bench(
        open_artifact(llama_folder),
        examples(2),
        {"q8_0": measured},
        Limits(),
        Settings(threads=1),
        work,
        Cache(tmp_path / "cache"),
    )
    message = refuse(
        "q8_0 came out otherwise than when it was measured",
        lambda: bench.keep("q8_0", tmp_path / "out", "structure"),
    )
    assert "expected: sha256:measured" in message
    assert str(work) in message


def test_numbers_no_model_can_have(tmp_path: Path) -> None:
    from export.skeleton import skeleton_of

    folder = make_llama(tmp_path / "m", layers=1)
    edit_json(folder / "config.json", num_attention_heads=0)
    with pytest.raises(AssayError, match="does not describe a language model") as refusal:
        skeleton_of(folder)
    assert refusal.value.exit_code == 2


def test_an_architecture_whose_head_is_its_own_affair(tmp_path: Path) -> None:
    """A Llama that does not tell which module its head is."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from export.merge import merge_adapter

    class ClosedConfig(LlamaConfig):
        model_type = "closed"

    class ClosedForCausalLM(LlamaForCausalLM):
        config_class = ClosedConfig

        def get_output_embeddings(self) -> None:
            return None

    AutoConfig.register("closed", ClosedConfig, exist_ok=True)
    AutoModelForCausalLM.register(ClosedConfig, ClosedForCausalLM, exist_ok=True)
    folder = make_llama(tmp_path / "m", layers=1)
    adapter = make_adapter(tmp_path / "adapter", folder)
    edit_json(folder / "config.json", model_type="closed", architectures=["ClosedForCausalLM"])
    message = refuse(
        "the architecture has no input or output embeddings of its own",
        lambda: merge_adapter(open_artifact(adapter), tmp_path / "merged"),
    )
    assert "ClosedForCausalLM" in message
    assert not (tmp_path / "merged").exists()
