"""Published chat templates in an independent form: Jinja, short, written from what the published ones do.

What they leave out (tools, in some; odd orders of roles) is said beside each.
"""

# deepseek-llm-7b-chat and DeepSeek-V2-Chat
V1 = """\
{{ bos_token }}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ 'User: ' + m.content + '\\n\\n' }}
{%- elif m.role == 'system' -%}{{ m.content + '\\n\\n' }}
{%- else -%}{{ 'Assistant: ' + m.content + eos_token }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"""

# DeepSeek-V3-0324: the whole grammar, tools in the system text aside
V3 = """\
{%- set ns = namespace(system='', before='') -%}
{%- for m in messages if m.role == 'system' -%}
{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m.content -%}
{%- endfor -%}
{{ bos_token + ns.system }}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{{ '\\n' if ns.before == 'tool' else '<｜tool▁outputs▁begin｜>' }}
{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- elif m.role == 'user' -%}
{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' -%}
{{ '<｜tool▁outputs▁end｜>' if ns.before == 'tool' else '<｜Assistant｜>' }}{{ CONTENT }}
{%- for c in m.tool_calls or [] -%}
{{ '<｜tool▁calls▁begin｜>' if loop.first else '\\n' }}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c.function.name }}
{{- '\\n```json\\n' + c.function.arguments + '\\n```<｜tool▁call▁end｜>' -}}
{%- if loop.last -%}{{ '<｜tool▁calls▁end｜>' }}{%- endif -%}
{%- endfor -%}
{{ '<｜end▁of▁sentence｜>' }}
{%- endif -%}
{%- set ns.before = m.role -%}
{%- endfor -%}
{%- if ns.before == 'tool' -%}{{ '<｜tool▁outputs▁end｜>' }}{%- endif -%}
{%- if add_generation_prompt and ns.before != 'tool' -%}{{ '<｜Assistant｜>OPENING' }}{%- endif -%}"""
SHOWN, ANSWER = "m.content or ''", "(m.content or '').split('</think>')[-1]"


def fenced(content: str, opening: str = "") -> str:
    return V3.replace("CONTENT", content).replace("OPENING", opening)


# DeepSeek-V3.1
V31 = """\
{%- set ns = namespace(system='', asked=false) -%}
{%- for m in messages if m.role == 'system' -%}
{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m.content -%}
{%- endfor -%}
{{ bos_token + ns.system }}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'tool' -%}{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- elif m.role == 'assistant' -%}
{{ '<｜Assistant｜></think>' if ns.asked else '' }}{{ (m.content or '').split('</think>')[-1] }}
{%- for c in m.tool_calls or [] -%}
{{ '<｜tool▁calls▁begin｜>' if loop.first else '' }}
{{- '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments + '<｜tool▁call▁end｜>' -}}
{%- if loop.last -%}{{ '<｜tool▁calls▁end｜>' }}{%- endif -%}
{%- endfor -%}
{{ '<｜end▁of▁sentence｜>' }}
{%- endif -%}
{%- if m.role != 'system' -%}{%- set ns.asked = m.role == 'user' -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.asked -%}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{%- endif -%}"""

# SmolLM2-135M-Instruct, with another sentence where it names itself
CHATML = """\
{%- for m in messages -%}
{%- if loop.first and messages[0].role != 'system' -%}{{ '<|im_start|>system\\nYou are a small model<|im_end|>\\n' }}{%- endif -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# Meta-Llama-3-8B-Instruct
LLAMA3 = """\
{%- for m in messages -%}
{{ bos_token if loop.first }}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

# Of no known kind: the last message of a user in capitals
STRANGE = """\
{%- for m in messages -%}{{ '[' + m.role + ']' + (m.content | upper if loop.last else m.content) + '[END]' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}"""

TEMPLATES = {
    "v1": V1,
    "v2": V1,
    "v2.5": fenced(SHOWN),
    "v3": fenced(SHOWN),
    "r1": fenced(ANSWER, "<think>\\n"),
    "v3.1": V31,
    "chatml": CHATML,
    "llama3": LLAMA3,
}
