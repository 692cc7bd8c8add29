"""Go's own text/template writes the text that training used, for the usual chat templates and one to three turns."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from contract.errors import AssayError
from contract.model_folder import chat_format
from contract.prompt import PLAIN_TEMPLATE, ChatFormat, Message
from export.go_template import Turns, conversations, go_turns, trained_text
from tests.tiny import TEMPLATE

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + s + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
    "(first if loop.first else '') + m.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (s if loop.index0 == 0 else '') + "
    "m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.PLACE else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
AWKWARD = (
    "{{ bos_token }}{% for m in messages %}\t{{ '{{ ' + m.role + ' }}{' }}{{ m.content }}"
    '{{ \'""" - \\\\\\u00a0\\r\\n\' }}'
    "{% endfor %}{% if add_generation_prompt %}{{ '{{- `assistant` -}}{' }}{% endif %}"
)
TEMPLATES = {
    "tiny": (TEMPLATE, "turn"),
    "ChatML": (CHATML, "turn"),
    "Qwen, its own system turn": (QWEN, "turn"),
    "Llama 3": (LLAMA3, "turn"),
    "Llama 3.1": (LLAMA31, "turn"),
    "Gemma 2": (GEMMA2, "none"),
    "Gemma 3": (GEMMA3, "first"),
    "Llama 2": (LLAMA2, "first"),
    "Mistral, system first": (MISTRAL.replace("PLACE", "first"), "first"),
    "Mistral, system last": (MISTRAL.replace("PLACE", "last"), "last"),
    "Phi 3": (PHI3, "turn"),
    "plain": (PLAIN_TEMPLATE, "turn"),
    "awkward characters": (AWKWARD, "turn"),
}


# chat templates as models come with them, which TRL carries along
MODELS = (
    *("cohere", "cohere2", "deepseekv3", "gemma", "gemma3", "glm4moe", "llama3", "llama3_1", "llama3_2", "phi3"),
    *("phi3_5", "qwen2_5", "qwen3", "qwen3_instruct_2507"),
)


def chat(template: str, *, add_bos: bool) -> ChatFormat:
    special = (
        "<s>",
        "</s>",
        "<|user|>",
        "<|assistant|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|eot_id|>",
    )
    return ChatFormat(template, special, "<s>", "</s>", add_bos)


def go(requests: list[tuple[str, list[Message]]]) -> list[str]:
    """The texts that Go's text/template makes; system and messages are handed over as Ollama does."""
    if shutil.which("go") is None:
        pytest.skip("there is no Go here (Debian: golang-go), so its text/template cannot be asked")
    asked = [
        {"template": text, "messages": [{"role": m.role, "content": m.content} for m in messages]}
        for text, messages in requests
    ]
    done = subprocess.run(
        ["go", "run", str(HERE / "render.go")], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    texts: list[str] = json.loads(done.stdout)
    return texts


def model_template(name: str) -> str:
    spec = find_spec("trl")
    assert spec
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


def cases() -> list[tuple[str, ChatFormat, Turns, list[Message]]]:
    templates = {name: template for name, (template, _) in TEMPLATES.items()}
    templates |= {name: model_template(name) for name in MODELS}
    formats = {
        f"{name}, {'tokenizer' if add_bos else 'template'} adds BOS": chat(template, add_bos=add_bos)
        for name, template in templates.items()
        for add_bos in (True, False)
    }
    formats["embedded base"] = chat_format(HERE.parents[1] / "assets" / "tiny-base")
    return [
        (name, found, turns, messages)
        for name, found in formats.items()
        for turns in [go_turns(found)]
        for messages in conversations(turns.place)
    ]


def test_go_writes_what_training_used() -> None:
    every = cases()
    texts = go([(turns.text(), messages) for _, _, turns, messages in every])
    assert len(every) == len(texts) > 300
    for (name, found, turns, messages), text in zip(every, texts, strict=True):
        assert text == trained_text(found, messages), (name, turns.text())
        assert turns.render(messages) == text, name


def test_the_modelfile_keeps_every_character() -> None:
    """Its reader ends a text at three quotes and drops what does not print, line ends apart."""
    for _, _, turns, _ in cases():
        assert '"""' not in turns.text()
        assert all(line.isprintable() for line in turns.text().split("\n"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_where_the_system_goes(name: str) -> None:
    template, place = TEMPLATES[name]
    assert go_turns(chat(template, add_bos=True)).place == place


def test_bos_is_written_by_one_side_only() -> None:
    messages = [Message("user", "Hello")]
    for add_bos in (True, False):
        text = go_turns(chat(TEMPLATE, add_bos=add_bos)).render(messages)
        assert text.count("<s>") == (0 if add_bos else 1)


def test_a_templates_text_is_not_lost_in_a_changed_one() -> None:
    turns = go_turns(chat(CHATML, add_bos=True))
    assert turns.render([Message("user", "Hi")]) != trained_text(
        chat(CHATML.replace("assistant\n", "assistant"), add_bos=True), [Message("user", "Hi")]
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[-1].content }}", "leaves out, repeats or reorders"),
        ("{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}", "more than its role and place"),
        (CHATML.replace("m.content", "('>' if m.content | length > 20 else '') + m.content"), "changes the text"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes the text"),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}",
            "rendered",
        ),
    ],
)
def test_what_go_cannot_follow_is_refused(template: str, said: str) -> None:
    with pytest.raises(AssayError, match=said):
        go_turns(chat(template, add_bos=False))
