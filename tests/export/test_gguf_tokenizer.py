"""llama.cpp tokenizes like Hugging Face, for every kind of tokenizer that is let through; the others are refused."""

from __future__ import annotations

import json
import shutil
import unicodedata
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from contract.artifact import open_artifact
from contract.errors import AssayError
from contract.prompt import hf_tokenize
from export.check_gguf import CheckFailed
from export.gguf_file import plan_gguf, write_vocabulary
from export.gguf_pre_tokenizers import KNOWN, PreTokenizer
from export.gguf_tokenizer import load_tokenizer, special_ids
from export.llama_vocab import LlamaVocab
from export.source import open_model
from export.to_gguf import export_gguf
from runtimes import load_runtime
from tests.export.makers import (
    byte_level_tokenizer,
    convert_sentencepiece,
    edit_json,
    gemma_tokenizer,
    gpt2_tokenizer,
    known_tokenizer,
    llama3_tokenizer,
    metaspace_tokenizer,
    smollm_tokenizer,
    train_sentencepiece,
)
from tests.tiny import make_bpe_tokenizer, make_llama
from tests.tiny_seq2seq import make_t5

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("maker", "pre"),
    [
        (make_bpe_tokenizer, "qwen2"),
        (llama3_tokenizer, "llama-bpe"),
        (gpt2_tokenizer, "gpt-2"),
        (smollm_tokenizer, "smollm"),
        (train_sentencepiece, "default"),
        (convert_sentencepiece, "default"),
        (gemma_tokenizer, "default"),
    ],
)
def test_token_ids_agree_on_hard_text(tmp_path: Path, maker: object, pre: str) -> None:
    folder = make_llama(tmp_path / "model", tokenizer=maker, layers=1)
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])  # the structure check compares ids
    assert made[0].details["tokenizer"] == pre


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_every_known_pre_tokenizer_is_recognised_and_cuts_alike(tmp_path: Path, row: PreTokenizer) -> None:
    folder = make_llama(tmp_path / "model", tokenizer=known_tokenizer(row), layers=1)
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert made[0].details["tokenizer"] == row.name
    assert ("tokenizer_differences" in made[0].details) == (row.differs is not None)


def test_known_differences_are_said_and_strict_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = [row for row in KNOWN if row.name == "tekken"]
    folder = make_llama(tmp_path / "model", tokenizer=known_tokenizer(row), layers=1)
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16", "q8_0"])
    said = "llama.cpp's tekken cuts some text otherwise: combining marks"
    assert capsys.readouterr().err.count(said) == 1
    assert all("naïve" in artifact.details["tokenizer_differences"][0] for artifact in made)
    with pytest.raises(AssayError, match="combining marks"):
        export_gguf(open_artifact(folder), tmp_path / "strict", quants=["f16"], strict=True)
    assert not list((tmp_path / "strict").iterdir())


def strange_texts(count: int) -> list[str]:
    """Random texts: half everyday characters, half from every category of Unicode alike."""
    random = Random(1)
    kinds: dict[str, list[str]] = {}
    for code in range(0x20, 0x30000):
        kinds.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    pools = [pool for kind, pool in kinds.items() if kind not in ("Cn", "Co", "Cs")]
    everyday = list("abcABC 12'’sStTdDlL.,!?-\n\r\t  /_")

    def character() -> str:
        return random.choice(everyday if random.random() < 0.55 else random.choice(pools))

    return ["".join(character() for _ in range(random.randint(4, 28))) for _ in range(count)]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_no_difference_but_the_known_ones_on_strange_text(tmp_path: Path, row: PreTokenizer) -> None:
    """The tokenizer is trained on the texts until whole pieces are tokens, so that a piece cut elsewhere shows."""
    texts = strange_texts(300)
    folder = make_llama(tmp_path / "model", tokenizer=known_tokenizer(row, texts), layers=1)
    source = open_model(open_artifact(folder)).source(tmp_path)
    plan = plan_gguf(source)
    write_vocabulary(tmp_path / "vocabulary.gguf", plan, source)
    tokenize = hf_tokenize(plan.tokenizer)
    with LlamaVocab(tmp_path / "vocabulary.gguf") as vocab:
        differing = [
            text
            for text in texts
            if vocab.tokenize(text, add_special=False, parse_special=False) != tokenize(text, False)
        ]
    assert [text for text in differing if row.differs is None or not row.differs(text)] == []
    assert bool(differing) == (row.differs is not None)


def test_a_difference_that_is_not_known_fails_though_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import gguf_pre_tokenizers

    rows = [replace(row, differs=lambda text: "हि" in text) for row in KNOWN if row.name == "tekken"]
    monkeypatch.setattr(gguf_pre_tokenizers, "KNOWN", rows)
    folder = make_llama(tmp_path / "model", tokenizer=known_tokenizer(rows[0]), layers=1)
    with pytest.raises(CheckFailed, match="naïve") as error:
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert "हि" not in str(error.value)


def test_scores_rebuilt_from_merges_order_pieces_like_the_sentencepiece_model(tmp_path: Path) -> None:
    from export.gguf_tokenizer import token_tables

    (tmp_path / "spm").mkdir()
    train_sentencepiece(tmp_path / "spm")
    tokenizer = load_tokenizer(tmp_path / "spm")
    own = token_tables(tmp_path / "spm", tokenizer, 420)
    (tmp_path / "spm/tokenizer.model").unlink()
    rebuilt = token_tables(tmp_path / "spm", tokenizer, 420)
    assert own.texts == rebuilt.texts
    assert own.types == rebuilt.types
    merged = [i for i, text in enumerate(own.texts) if len(text) > 1 and own.types[i] == 1]
    assert own.scores is not None
    assert rebuilt.scores is not None
    assert sorted(merged, key=own.scores.__getitem__) == sorted(merged, key=rebuilt.scores.__getitem__)
    assert own.add_space_prefix
    assert [own.types[i] for i in (0, 1, 2, 3)] == [2, 3, 3, 6]  # unknown, control, control, byte


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_llama(tmp_path / "model", layers=1, vocab_size=576)
    made = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    reader = GGUFReader(made[0].gguf_path)
    tokens, types = (reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "token_type"))
    assert len(tokens) == 576
    assert tokens[-1] == "[PAD575]"
    assert types[-1] == 5


def test_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1, vocab_size=300)
    with pytest.raises(AssayError, match="more tokens than the embedding has rows"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert not list((tmp_path / "gguf").iterdir())


def with_one_more(folder: Path, *, special: bool = True, text: str = "<image>") -> None:
    from transformers import AddedToken, AutoTokenizer

    make_bpe_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
    if text == "<turn>":
        tokenizer.chat_template += "<turn>"
    tokenizer.save_pretrained(folder)


def test_a_control_token_without_a_row_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path / "model", tokenizer=with_one_more, layers=1)
    rows = len(load_tokenizer(folder)) - 1
    shutil.rmtree(folder)
    folder = make_llama(tmp_path / "model", tokenizer=with_one_more, layers=1, vocab_size=rows)
    export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f32"], check="logits", threads=1)
    assert "'<image>': left out" in capsys.readouterr().err
    for maker in (partial(with_one_more, special=False), partial(with_one_more, text="<turn>")):
        shutil.rmtree(folder)
        folder = make_llama(tmp_path / "model", tokenizer=maker, layers=1, vocab_size=rows)
        with pytest.raises(AssayError, match="more tokens than the embedding has rows"):
            export_gguf(open_artifact(folder), tmp_path / "not", quants=["f16"])


def test_unknown_pre_tokenizer_is_named_with_the_nearest_known(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    def odd(folder: Path) -> None:
        byte_level_tokenizer(
            folder,
            [
                pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,4}|\s+"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        )

    folder = make_llama(tmp_path / "model", tokenizer=odd, layers=1)
    with pytest.raises(AssayError, match="nearest known") as error:
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert r"\p{N}{1,4}" in str(error.value)
    assert "--pre-tokenizer" in str(error.value)


def test_a_named_pre_tokenizer_is_taken_and_compared_all_the_same(tmp_path: Path) -> None:
    """GPT-2's expression with a digit by itself, written as one step: not in the table, and llama.cpp's smollm."""
    from tokenizers import Regex, pre_tokenizers

    def spelled(folder: Path) -> None:
        gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (r"\p{N}", gpt2)]
        byte_level_tokenizer(folder, [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    folder = make_llama(tmp_path / "model", tokenizer=spelled, layers=1)
    with pytest.raises(AssayError, match="nearest known"):
        export_gguf(open_artifact(folder), tmp_path / "unnamed", quants=["f16"])
    made = export_gguf(open_artifact(folder), tmp_path / "right", quants=["f16"], pre_tokenizer="smollm")
    assert made[0].details["tokenizer"] == "smollm"
    with pytest.raises(CheckFailed, match="ids differ at"):
        export_gguf(open_artifact(folder), tmp_path / "wrong", quants=["f16"], pre_tokenizer="deepseek-coder")
    with pytest.raises(AssayError, match="unknown pre-tokenizer type: 'smolm'") as error:
        export_gguf(open_artifact(folder), tmp_path / "unknown", quants=["f16"], pre_tokenizer="smolm")
    assert 'did you mean "smollm"' in str(error.value)
    assert error.value.where == str(folder), "not a file that is gone"
    assert len(str(error.value.got).splitlines()) == 1


def test_the_command_line_hands_the_name_on(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from export.cli import export

    folder = make_llama(tmp_path / "model", layers=1)
    words = ["gguf", str(folder), "--out", str(tmp_path / "gguf"), "--quant", "bf16", "--pre-tokenizer"]
    assert isinstance(CliRunner().invoke(export, [*words, "gpt-2"]).exception, CheckFailed)
    done = CliRunner().invoke(export, [*words, "qwen2"])
    assert done.exit_code == 0, done.output
    assert "model-BF16.gguf" in done.output


def test_a_sentencepiece_tokenizer_takes_no_pre_tokenizer(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", tokenizer=train_sentencepiece, layers=1)
    for model in (folder, make_t5(tmp_path / "t5")):
        with pytest.raises(AssayError, match="has no pre-tokenizer to name"):
            export_gguf(open_artifact(model), tmp_path / "gguf", quants=["f16"], pre_tokenizer="llama-bpe")


@pytest.mark.parametrize(
    ("old", "new"), [('"BPE"', '"NewBPE"'), ('"ByteLevel"', '"NewLevel"'), ('"merges"', '"mer')], ids=str
)
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, llama_folder: Path, old: str, new: str) -> None:
    text = (llama_folder / "tokenizer.json").read_text(encoding="utf-8")
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    cut = text.index(old) if new == '"mer' else len(text)
    (folder / "tokenizer.json").write_text(text[:cut].replace(old, new) + new * (cut < len(text)), encoding="utf-8")
    torn = new == '"mer'
    with pytest.raises(AssayError, match="is not JSON" if torn else "the tokenizer cannot be loaded") as error:
        load_tokenizer(folder)
    assert torn or "new enough" in str(error.value.hint)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path, llama_folder: Path) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(AssayError, match="there is no tokenizer") as error:
        load_tokenizer(folder)
    assert "tokenizer.json, tokenizer.model" in str(error.value)


def test_ids_of_minus_one_are_none_and_others_are_ids(tmp_path: Path, llama_folder: Path) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    edit_json(folder / "generation_config.json", eos_token_id=[4, -1], pad_token_id=-1)
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = None
    found = special_ids(folder, tokenizer)
    assert (found.stops, found.pad) == ((1, 4), None)
    for key, value in (("eos_token_id", ["a", 1]), ("eos_token_id", 2.5), ("pad_token_id", -7)):
        edit_json(folder / "generation_config.json", eos_token_id=4, pad_token_id=2)
        edit_json(folder / "generation_config.json", **{key: value})
        with pytest.raises(AssayError, match=f"no token id\\n.*{key}"):
            special_ids(folder, tokenizer)


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ raise_exception('no') }}", "{{ 1/0 }}"])
def test_a_template_that_cannot_write_a_turn_is_refused(tmp_path: Path, llama_folder: Path, template: str) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(AssayError, match="the chat template cannot write a user's turn"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert not list((tmp_path / "gguf").iterdir())


def test_a_prefix_that_spares_leading_spaces(tmp_path: Path) -> None:
    """A known difference of llama.cpp's, which our runtime makes good."""
    folder = make_llama(tmp_path / "model", tokenizer=metaspace_tokenizer, layers=1)
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert all(line.startswith(("' ", "'▁")) for line in made.details["tokenizer_differences"])
    tokenizer = load_tokenizer(folder)
    runtime = load_runtime(made, threads=1)
    try:
        for text in (" x", "x", "  x", "▁x", "a b"):
            assert runtime.encode_raw(text) == tokenizer(text).input_ids, text
    finally:
        runtime.close()
    export_gguf(open_artifact(folder), tmp_path / "run", quants=["f32"], check="logits", threads=1)
    with pytest.raises(AssayError, match="begins with a space"):
        export_gguf(open_artifact(folder), tmp_path / "strict", quants=["f16"], strict=True)


@pytest.mark.parametrize("keep_model", [True, False])
def test_runs_of_spaces_in_a_gemma_tokenizer(tmp_path: Path, keep_model: bool) -> None:
    """Added tokens of ▁ are reached by merging, and are written out as spaces again."""
    folder = make_llama(tmp_path / "model", tokenizer=gemma_tokenizer, layers=1)
    if not keep_model:
        (folder / "tokenizer.model").unlink()
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    runtime = load_runtime(made, threads=1)
    try:
        ids = runtime.encode_raw("a    b")
        assert runtime.decode(ids[1:]) == "a    b"
        assert len(ids) == 4, "BOS, a, four spaces, b"
    finally:
        runtime.close()


def test_a_normalizer_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    edit_json(folder / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(AssayError, match="rewrites text"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])


def test_composing_normalizer_is_said_aloud_and_made_up_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_llama(tmp_path / "model", layers=1)
    edit_json(folder / "tokenizer.json", normalizer={"type": "NFC"})
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert "NFC" in capsys.readouterr().err
    text = "nai\u0308ve cafe\u0301"
    runtime = load_runtime(made, threads=1)
    try:
        assert runtime.encode_raw(text) == load_tokenizer(folder)(text).input_ids
    finally:
        runtime.close()
    with LlamaVocab(made.gguf_path) as vocab:
        assert vocab.tokenize(text, add_special=True, parse_special=True) != load_tokenizer(folder)(text).input_ids


def test_a_wrong_pre_tokenizer_is_caught_by_token_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import gguf_pre_tokenizers

    folder = make_llama(tmp_path / "model", tokenizer=llama3_tokenizer, layers=1)
    rows = [replace(row, name="smollm") for row in gguf_pre_tokenizers.KNOWN if row.name == "llama-bpe"]
    monkeypatch.setattr(gguf_pre_tokenizers, "KNOWN", rows)
    with pytest.raises(CheckFailed, match="ids differ at"):
        export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    assert not list((tmp_path / "gguf").iterdir())


def test_a_tokenizer_without_bos(tmp_path: Path) -> None:
    """As Qwen's: nothing is put in front, though llama.cpp has a default BOS for byte-level tokenizers."""
    folder = make_llama(tmp_path / "model", layers=1)
    edit_json(folder / "tokenizer.json", post_processor=None)
    edit_json(folder / "tokenizer_config.json", bos_token=None)
    assert not (folder / "special_tokens_map.json").exists()
    [made] = export_gguf(open_artifact(folder), tmp_path / "gguf", quants=["f16"])
    runtime = load_runtime(made, threads=1)
    try:
        assert runtime.bos_id is None
        assert len(runtime.encode_raw("a")) == 1
    finally:
        runtime.close()


def test_every_stop_id_ends_a_generation(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = make_llama(tmp_path / "model", layers=1)
    made = export_gguf(open_artifact(folder), tmp_path / "ok", quants=["f16"])
    reader = GGUFReader(made[0].gguf_path)
    assert [reader.get_field(f"tokenizer.ggml.{end}_token_id").contents() for end in ("eos", "eot")] == [1, 4]
    edit_json(folder / "generation_config.json", eos_token_id=[1, 4, 10, 11, 12])  # llama.cpp has three fields
    with pytest.raises(CheckFailed, match="ends nothing"):
        export_gguf(open_artifact(folder), tmp_path / "many", quants=["f16"])


def test_the_template_and_the_prompt_are_embedded(tmp_path: Path, llama_folder: Path) -> None:
    from gguf import GGUFReader

    from contract.artifact import new_artifact
    from tests.tiny import TEMPLATE

    with new_artifact(tmp_path / "merged", "merged", "m", details={"prompt": {"user": "Sum up: {document}"}}) as draft:
        shutil.copytree(llama_folder, draft.path, dirs_exist_ok=True)
    made = export_gguf(draft.finished, tmp_path / "gguf", quants=["f16"])
    reader = GGUFReader(made[0].gguf_path)
    assert reader.get_field("tokenizer.chat_template").contents() == TEMPLATE
    assert json.loads(reader.get_field("assay.prompt").contents()) == {"user": "Sum up: {document}"}
    assert made[0].details["prompt"] == {"user": "Sum up: {document}"}
