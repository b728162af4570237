"""Writes chat_templates.json: what Jinja2 itself makes of some templates, set up as in transformers'
apply_chat_template. Run by hand: python3 -m venv v && v/bin/pip install jinja2 && v/bin/python make_chat_templates.py
"want" is the text; where Jinja2 or the template refuses, "want" is null."""
import json, pathlib
import jinja2, jinja2.sandbox

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a"
    " helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role']"
    " + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}")
QWEN2 = SMOLLM2.replace("AI assistant named SmolLM, trained by Hugging Face", "assistant.")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
LLAMA31 = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message, if there is one, comes out of the list. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\n\n"}}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- for arg_name, arg_val in message.tool_calls[0].function.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- tool_call.arguments | tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}")
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}")
NAMED = {"SmolLM2": SMOLLM2, "Qwen2": QWEN2, "Qwen2.5": QWEN25, "Llama-3": LLAMA3, "Llama-3.1": LLAMA31,
         "Mistral": MISTRAL, "Zephyr": ZEPHYR, "Gemma": GEMMA}

SMALL = [  # one rule each
    "", "plain\ntext\n", "plain\n\n", "a\r\nb\rc\r\n", "{ {} }", "é {{ 'ü\\u00e9\\x41' }} 中",
    "  {% if true %}\n  a\n  {% endif %}\n b", "x {% if true %}\n\n  a {% endif %} y", "  {{ 1 }}  \n  {{ 2 }}\n",
    "x  \n\t {%- if true -%} \n a \n {%- endif -%} \n y", "a {{- ' b ' -}} c", "  {%+ if true %}\n a{% endif +%}\n b",
    "a {# note #}\n b", "  {# note #}\n  b", "a\n  {#- note -#}\n  b", "{##}{#-#}{#--#}x{# {{ #}", "{% if true %}{% endif %}\n\nx",
    "{% if true %} \n {% endif %}|{% if true %}\n  {% if true %}\n  x{% endif %}{% endif %}", "\u00a0 {%- if true %}x{% endif %}",
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }} {% endfor %}",
    "{% for m in messages %}{% for n in messages %}{{ loop.index }}{% endfor %}:{{ loop.index }} {% endfor %}[{{ loop }}]",
    "{% set x = 'out' %}{% for m in messages %}{{ x }}{% set x = 'in' %}{{ x }}{% endfor %}{{ x }}",
    "{% if true %}{% set x = 1 %}{% endif %}{{ x }}", "{% for m in [] %}x{% endfor %}{% for m in nothing %}x{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% set late = 1 %}{% endif %}{{ late }}{% endfor %}",
    "{{ 'it''s' }}{{ 'a' \"b\" }}{{ 'q\\'q\\\\n\\n\\q' }}", "{{ 1 + 2 ~ 'x' }}", "{{ 'a' ~ 1 ~ none ~ true ~ nothing }}",
    "{{ 'a' + 'b' ~ 1 }}", "{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 1 - 2 - 3 }} {{ 10 - 2 % 3 }}",
    "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 1 == 1 != 2 }} {{ true == 1 }} {{ 'a' == 1 }} {{ 'b' > 'a' }} {{ 'é' > 'z' }}",
    "{{ 'a' in 'cat' }} {{ 'x' not in 'cat' }} {{ 2 in [1, 2] }} {{ 'role' in messages[0] }} {{ 'a' in nothing }}",
    "{{ not true or true }} {{ not 1 == 2 }} {{ 'a' or 'b' }} {{ '' or 'b' }} {{ 0 and 1 }} {{ none or nothing }} {{ 1 and 'x' }}",
    "{{ messages[0].role }} {{ messages[-1]['role'] }} {{ messages.0.role }} {{ messages[99] }} {{ messages[0].nothing }}",
    "{{ messages[1:][0].role }} {{ messages[:-1] | length }} {{ messages[5:] | length }} {{ messages[-1:][0].role }} {{ messages[2:1]|length }}",
    "{{ nothing is defined }} {{ nothing is not defined }} {{ messages is defined }} {{ none is none }} {{ 'a' is string }} {{ 1 is string }}",
    "{{ nothing is none }} {{ tools is none }} {{ nothing.x is defined }}", "{{ not nothing is defined }} {{ messages is iterable }} {{ messages[0] is mapping }} {{ nothing is undefined }}",
    "{{ '  a b \\n' | trim }}| {{ 'héllo' | length }} {{ messages | length }} {{ 'aB' | upper | lower }} {{ 5 | trim }} {{ nothing | trim }} {{ nothing | length }}",
    "{{ '\\u3000 x \\x85' | trim }}|{{ ' s '.strip() }}|{{ messages[0]['content'].strip() }}",
    "{{ -5 | length }}", "{{ ' a ' | trim + ' b ' | trim }}", "{{ 'y' if true else 'n' }}{{ 'y' if false }}{{ 'y' if false else 'n' if false else 'z' }}",
    "{{ none }}{{ true }}{{ false }}{{ None }}{{ True }}{{ 0 }}", "{{ '}}' }}{{ '%}' }}{% if '%}' %}x{% endif %}", "{{(((1)))}}{{[1,2,]|length}}",
    "{{ nothing }}|{{ nothing == none }}|{{ nothing == other }}|{% if nothing %}x{% endif %}", "{{ nothing.x }}", "{{ nothing['x'] }}", "{{ nothing + 'a' }}",
    "{{ 'a' + 1 }}", "{{ 1 < 'a' }}", "{{ none + 'a' }}", "{{ 'a' in 5 }}", "{{ raise_exception('no ' ~ 1) }}", "{% for x in none %}{% endfor %}", "{{ 1 % 0 }}",
    "{% if %}x{% endif %}", "{% for %}", "{{ }}", "{{ 1 +", "{% if true %}", "{% endif %}", "{% else %}", "{% if true %}{% endfor %}", "{{ 'a }}", "{{ a b }}", "{{ (1 }}", "{{ ] }}", "{# x",
    "{% set x %}", "{{ 1 | nofilter }}", "{{ 1 is notest }}", "{% nonsense %}", "{{ $ }}", "{{ a. }}", "{{ 01 }}", "{{ '\\ud800' }}",
]

ONE = [{"role": "user", "content": "Hello there"}]
TWO = [{"role": "system", "content": " Be brief. "}] + ONE
LONG = ONE + [{"role": "assistant", "content": "  Hi, \u00e9\u4e2d <|im_end|> {{ 1 }}\n"}, {"role": "user", "content": "Why?\n\n"}]


def render(template, messages, prompt):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=["jinja2.ext.loopcontrols"])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.globals["raise_exception"] = raise_exception
    env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
    try:
        text = env.from_string(template).render(messages=messages, tools=None, documents=None, bos_token="<s>", eos_token="</s>",
                                                add_generation_prompt=prompt)
        text.encode()
        return text
    except (jinja2.TemplateError, TypeError, ZeroDivisionError, UnicodeError):
        return None


def main():
    cases = []
    for name, template in NAMED.items():
        for messages in (ONE, TWO, LONG, []):
            for prompt in (True, False):
                cases.append({"name": name, "template": template, "messages": messages, "add_generation_prompt": prompt})
    cases += [{"name": "small", "template": t, "messages": LONG, "add_generation_prompt": True} for t in SMALL]
    for c in cases:
        c["want"] = render(c["template"], c["messages"], c["add_generation_prompt"])
    out = pathlib.Path(__file__).with_name("chat_templates.json")
    head = {"made_by": f"make_chat_templates.py, Jinja2 {jinja2.__version__}", "bos_token": "<s>", "eos_token": "</s>"}
    out.write_text(json.dumps({**head, "cases": cases}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
