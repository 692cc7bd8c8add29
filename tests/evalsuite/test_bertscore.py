from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("bert_score")

import bert_score
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from contract.errors import AssayError
from evalsuite.metrics.bertscore import BertScorer, bertscore_available
from evalsuite.metrics.encoder import DEFAULT_LAYER, default_encoder, encoder_digest

pytestmark = pytest.mark.engine

TEXT = "the bus leaves at nine mara says olin pays ten crowns for two beers nobody spoke . , ##s ##ing"
PREDICTIONS = ["the bus leaves at nine", "olin pays", "", "mara says the bus leaves " * 9, "nobody spoke.", "?!"]
REFERENCES = [
    ["mara says the bus leaves at nine .", "nine"],
    ["olin pays ten crowns for two beers"],
    ["nobody spoke .", "the bus"],
    ["the bus leaves at nine " * 7, "mara"],
    ["nobody spoke."],
    ["olin", "mara says"],
]
LIMIT = 24


def make_encoder(folder: Path) -> Path:
    """A random BERT of three layers that takes 24 tokens."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=LIMIT).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LIMIT,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_roberta(folder: Path) -> Path:
    """A random RoBERTa over single bytes, which does not say how long a text may be."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True)
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *bytes_to_unicode().values()]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=82,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoders") / "tiny-bert")


def theirs(encoder: Path, layer: int) -> list[torch.Tensor]:
    """Of all that have words: bert-score cannot take the others with transformers 5, and gave them 0 before."""
    said = [(text, texts) for text, texts in zip(PREDICTIONS, REFERENCES, strict=True) if text]
    return list(bert_score.score(*zip(*said, strict=True), model_type=str(encoder), num_layers=layer, device="cpu"))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_figures_are_bert_scores_own(encoder: Path, layer: int) -> None:
    ours = BertScorer(encoder, layer, threads=1).score(PREDICTIONS, REFERENCES)
    for mine, yours in zip((ours.precision, ours.recall, ours.f1), theirs(encoder, layer), strict=True):
        assert mine[:2] + mine[3:] == pytest.approx(yours.tolist(), abs=1e-5)
    assert (ours.layer, ours.encoder, ours.limit) == (layer, "tiny-bert", LIMIT)
    assert ours.f1[2] == 0  # nothing was written
    assert len(set(ours.f1)) > 4


def test_of_another_family_too(tmp_path: Path) -> None:
    """RoBERTa's tokenizer wants a space in front and keeps two positions to itself; where no limit is stated,
    bert-score has to be told one."""
    encoder = make_roberta(tmp_path / "tiny-roberta")
    scorer = BertScorer(encoder, 2, threads=1)
    assert scorer.limit == 80
    wordy = [(text, texts) for text, texts in zip(PREDICTIONS, REFERENCES, strict=True) if text]
    short = [text[:70] for text, _ in wordy], [[text[:70] for text in texts] for _, texts in wordy]
    ours = scorer.score(*short)
    told = Path(shutil.copytree(encoder, tmp_path / "told"))
    stated = json.loads((told / "tokenizer_config.json").read_text()) | {"model_max_length": 80}
    (told / "tokenizer_config.json").write_text(json.dumps(stated))
    expected = bert_score.score(*short, model_type=str(told), num_layers=2, device="cpu")
    for mine, yours in zip((ours.precision, ours.recall, ours.f1), expected, strict=True):
        assert mine == pytest.approx(yours.tolist(), abs=1e-5)
    assert ours.truncated == 0
    assert scorer.score(PREDICTIONS, REFERENCES).truncated == 2


def test_what_was_cut_is_counted(encoder: Path) -> None:
    scorer = BertScorer(encoder, 2, threads=1)
    found = scorer.score(PREDICTIONS, REFERENCES)
    assert found.texts == len({*PREDICTIONS, *(text for texts in REFERENCES for text in texts)})
    assert found.truncated == 2  # the prediction of 45 words and its reference of 35
    fits, cut = "olin " * (LIMIT - 2), "olin " * (LIMIT - 1)
    assert scorer.score([fits], [["nine"]]).truncated == 0
    assert scorer.score([cut], [["nine"]]).truncated == 1


def test_every_text_is_embedded_once_and_the_order_does_not_matter(encoder: Path) -> None:
    scorer = BertScorer(encoder, 2, threads=1)
    model, seen = scorer._model, []

    def counting(ids: torch.Tensor, **others: torch.Tensor) -> object:
        seen.append(len(ids))
        return model(ids, **others)

    scorer._model = counting
    first = scorer.score(PREDICTIONS, REFERENCES)
    assert sum(seen) == first.texts
    assert scorer.score(PREDICTIONS, REFERENCES) == first
    assert sum(seen) == first.texts
    backwards = scorer.score(PREDICTIONS[::-1], REFERENCES[::-1])
    assert backwards.f1[::-1] == pytest.approx(first.f1, abs=1e-6)
    again = BertScorer(encoder, 2, threads=1).score(PREDICTIONS[::-1], REFERENCES[::-1])
    assert again.f1[::-1] == pytest.approx(first.f1, abs=1e-6)


def test_forgotten_texts_are_embedded_again(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = BertScorer(encoder, 2, threads=1).score(PREDICTIONS, REFERENCES)
    monkeypatch.setattr("evalsuite.metrics.bertscore._CACHE_BYTES", 1000)
    monkeypatch.setattr("evalsuite.metrics.bertscore._PAIRS_AT_A_TIME", 2)
    scorer = BertScorer(encoder, 2, threads=1)
    for _ in range(2):
        assert scorer.score(PREDICTIONS, REFERENCES).f1 == pytest.approx(expected.f1, abs=1e-6)
        assert scorer._bytes <= 1000
        assert scorer._bytes == sum(one.vectors.nbytes for one in scorer._embedded.values())


def test_the_digest_is_of_the_files(encoder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(encoder, tmp_path / "copy"))
    assert encoder_digest(copy) == encoder_digest(encoder) == BertScorer(copy, 1).digest
    (copy / ".cache").write_text("x")
    assert encoder_digest(copy) == encoder_digest(encoder)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert encoder_digest(copy) != encoder_digest(encoder)


def test_threads_are_put_back(encoder: Path) -> None:
    before = torch.get_num_threads()
    BertScorer(encoder, 1, threads=before + 1).score(["olin"], [["mara"]])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no encoder there"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no safetensors weights"),
        (lambda folder: drop_tensor(folder, "encoder.layer.1.output.dense.weight"), "weights are incomplete"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: [(folder / name).unlink() for name in ("vocab.txt", "tokenizer.json")], "no tokenizer"),
        (lambda folder: widen(folder), "cannot be loaded"),
    ],
)
def test_a_damaged_encoder_is_refused(
    encoder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = Path(shutil.copytree(encoder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(AssayError, match=message):
        BertScorer(copy, 2)


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("layer", [0, 4])
def test_a_layer_it_does_not_have_is_refused(encoder: Path, layer: int) -> None:
    with pytest.raises(AssayError, match="no such layer"):
        BertScorer(encoder, layer)


def test_an_encoder_of_ones_own_needs_a_layer(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssayError, match="needs a layer"):
        BertScorer(encoder)
    known = Path(shutil.copytree(encoder, tmp_path / "roberta-large"))
    with pytest.raises(AssayError, match="--layer 17, which bert-score found best"):
        BertScorer(known)


def test_every_prediction_needs_a_reference(encoder: Path) -> None:
    scorer = BertScorer(encoder, 1)
    for predictions, references in ((["a"], []), (["a"], [[]])):
        with pytest.raises(AssayError, match="needs a reference"):
            scorer.score(predictions, references)


@pytest.mark.skipif(not bertscore_available(), reason="the bertscore extra is not installed")
def test_the_default_encoder_against_bert_score() -> None:
    """Real words: a paraphrase is nearer than another statement."""
    predictions = ["Mara takes the bus at nine."] * 3
    references = [["At nine o'clock Mara goes by bus."], ["Olin buys two beers."], ["Mara takes the bus at nine."]]
    found = BertScorer(threads=1).score(predictions, references)
    expected = bert_score.score(
        predictions, references, model_type=str(default_encoder()), num_layers=DEFAULT_LAYER, device="cpu"
    )
    for mine, yours in zip((found.precision, found.recall, found.f1), expected, strict=True):
        assert mine == pytest.approx(yours.tolist(), abs=1e-5)
    near, far, same = found.f1
    assert far < near - 0.1 < near < same == pytest.approx(1)
    assert (found.layer, found.truncated, len(found.encoder_digest)) == (DEFAULT_LAYER, 0, 64)
