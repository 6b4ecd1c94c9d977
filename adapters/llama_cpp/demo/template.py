"""The chat format of the demo model: special tokens and the Jinja template that goes into the GGUF file."""

from __future__ import annotations

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)
# Tokens that are shown as text, so that a client of the plain completion sees the call.
VISIBLE_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")

DEFAULT_SYSTEM = "You are gateway-demo, a tiny demonstration model."
TOOLS_OPEN = "\n\n# Tools\n\nYou may call these functions:\n<tools>\n"
TOOLS_CLOSE = '\n</tools>\n\nFor each call return:\n<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'


def jinja_text(text: str) -> str:
    """A Jinja string literal of `text`."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


# Content may be a string, None, or a list of parts of which the text parts count.
_CONTENT = """{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is iterable and content is not mapping -%}{%- for part in content -%}
{%- if part is string -%}{{ part }}{%- elif part.text is defined -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_SYSTEM = """{%- if messages and messages[0].role in ['system', 'developer'] -%}
{%- set system = text(messages[0].content) -%}{%- set rest = messages[1:] -%}
{%- else -%}
{%- set system = DEFAULT_SYSTEM -%}{%- set rest = messages -%}
{%- endif -%}
{{- '<|im_start|>system\\n' + system -}}
{%- if tools -%}
{{- TOOLS_OPEN -}}
{%- for tool in tools -%}
{%- if tool.function is defined -%}{{- tool.function | tojson -}}{%- else -%}{{- tool | tojson -}}{%- endif -%}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{{- TOOLS_CLOSE -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
"""
_ASSISTANT = """{{- '<|im_start|>assistant\\n' + text(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function if call.function is defined else call -%}
{%- if not loop.first or text(message.content) -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": ' + (call.name | tojson) + ', "arguments": ' -}}
{%- if call.arguments is string -%}{{- call.arguments or '{}' -}}
{%- else -%}{{- (call.arguments or {}) | tojson -}}{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
"""
_TOOL = """{%- if loop.first or rest[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' -}}
{%- if loop.last or rest[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
"""
CHAT_TEMPLATE = (
    _CONTENT
    + _SYSTEM.replace("DEFAULT_SYSTEM", jinja_text(DEFAULT_SYSTEM))
    .replace("TOOLS_OPEN", jinja_text(TOOLS_OPEN))
    .replace("TOOLS_CLOSE", jinja_text(TOOLS_CLOSE))
    + "{%- for message in rest -%}\n{%- if message.role == 'assistant' -%}\n"
    + _ASSISTANT
    + "{%- elif message.role == 'tool' -%}\n"
    + _TOOL
    + (
        "{%- else -%}\n{{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|"
        ">\\n' -}}\n{%- endif -%}\n{%- endfor -%}\n"
    )
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
