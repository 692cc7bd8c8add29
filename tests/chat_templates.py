"""Chat templates with the constructs of models' real ones, written anew for the tiny tokenizer's special tokens."""

from __future__ import annotations

# Llama 3.1 and 3.2: a date unless the caller brings one, tools that may be missing, messages cut to those that are left
LLAMA = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 1970" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|im_start|>system\\n" }}
{%- if tools is not none or builtin_tools is defined %}
    {{- "Tools: " + (tools | tojson(indent=4)) }}
{%- endif %}
{{- "Today is " + date_string + ".\\n" + system_message + "<|im_end|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# SmolLM3: comments, a date without asking whether there is one, switches inside the system's words, a generation block
SMOL = """{# a header #}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- set mode = "/think" if enable_thinking else "/no_think" -%}
{{- bos_token + "<|im_start|>system\\n" -}}
{%- if messages[0].role == "system" -%}
  {%- set words = messages[0].content -%}
  {%- if "/no_think" in words -%}
    {%- set mode = "/no_think" -%}
  {%- endif -%}
  {%- set instructions = words.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- if "/override" in words -%}
  {{- instructions.replace("/override", "").rstrip() -}}
{%- else -%}
  {%- set today = strftime_now("%d %B %Y") -%}
  {{- "Today: " ~ today ~ "\\nMode: " ~ mode ~ "\\n" -}}
  {%- if instructions -%}
    {{- instructions + "\\n" -}}
  {%- else -%}
    {{- "You help.\\n" -}}
  {%- endif -%}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if mode == "/think" -%}
        {{ "<|im_start|>assistant\\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" }}
    {%- endif -%}
{%- endif -%}"""

# Qwen3: the last question looked for backwards, reasoning cut off what the assistant said
QWEN = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not
           (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# Qwen3.5 and GLM 4.5: what is written of a message comes from a macro and is looked at afterwards
MACRO = """{%- macro words(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
    {%- set content = words(message.content) | trim %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = (content.split('</think>') | last).strip() %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Gemma 3: the system's words in front of the first question, turns that must alternate
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("turns must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<|im_start|>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>model\\n' }}
{%- endif -%}"""

# Phi-4-mini: everything in one line, keys asked for before they are read, EOS where nothing is to follow
PHI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not "
    "none %}{{ '<|im_start|>' + message['role'] + message['content'] + message['tools'] + '<|im_end|>' }}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)

# What a template may ask besides: tokens by their names, those that are not there, and the date in many forms
NAMED = """{{ bos_token }}{{ pad_token }}{{ unk_token is defined }}{{ tools is none }}{{ documents is none }}
{{- strftime_now('%A %-d %B %Y, %a %b %H:%M:%S %p, %j %U %% %c') }}
{%- for message in messages %}{{ message.role }}: {{ message.get('content') }}<|im_end|>{% endfor %}
{{- {'b': 'é<&>', 'a': [1, none]} | tojson }}
{{- {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, indent=1, sort_keys=true) }}
{{- [1, 2] | tojson(separators=(';', ':')) }}{% if add_generation_prompt %}<|im_start|>{% endif %}"""

TEMPLATES = {
    "Llama 3.2": LLAMA,
    "SmolLM3": SMOL,
    "Qwen3": QWEN,
    "Qwen3.5": MACRO,
    "Gemma 3": GEMMA,
    "Phi-4-mini": PHI,
    "names": NAMED,
}
