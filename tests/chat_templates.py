"""Chat templates as the tokenizers of released models have them, as far as an episode with a tool meets them."""

from __future__ import annotations

from tests.tiny import bpe_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

_SYSTEM = """\
{%- set own = messages[0].role == 'system' %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content if own else 'You are a helpful assistant.') }}
    {{- '\\n\\n# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nCall one as {"name": ..., "arguments": ...} within <tool_call></tool_call>.<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\n' + (messages[0].content if own else 'You are a helpful assistant.') + '<|im_end|>\\n' }}
{%- endif %}
"""
_TOOL = """\
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# Qwen2.5: a default system message; a tool's results in <tool_response> in the role of the user.
QWEN2 = f"""{_SYSTEM}
{{%- for m in messages %}}
    {{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or m.role == 'assistant' %}}
        {{{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}}}
{_TOOL}"""
# Qwen3: thoughts of answers to earlier questions are dropped, those since the last question are kept.
QWEN3 = f"""{_SYSTEM}
{{%- set ns = namespace(searching=true, last=messages | length - 1) %}}
{{%- for m in messages[::-1] %}}
    {{%- if ns.searching and m.role == 'user' %}}
        {{%- set ns.searching = false %}}{{%- set ns.last = messages | length - 1 - loop.index0 %}}
    {{%- endif %}}
{{%- endfor %}}
{{%- for m in messages %}}
    {{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}}
        {{{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}}}
    {{%- elif m.role == 'assistant' %}}
        {{%- set thought = '' %}}{{%- set content = m.content %}}
        {{%- if '</think>' in content %}}
            {{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}}
            {{%- set content = content.split('</think>')[-1].lstrip('\\n') %}}
        {{%- endif %}}
        {{%- if loop.index0 > ns.last and (loop.last or thought) %}}
            {{{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}}}
        {{%- else %}}
            {{{{- '<|im_start|>assistant\\n' + content }}}}
        {{%- endif %}}
        {{{{- '<|im_end|>\\n' }}}}
{_TOOL}"""
# SmolLM2: knows of no tools, and writes whatever role a message has.
SMOLLM2 = """\
{%- for m in messages %}
    {%- if loop.first and m.role != 'system' %}{{- '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}{%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
TEMPLATES = {"qwen2.5": QWEN2, "qwen3": QWEN3, "smollm2": SMOLLM2}


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Qwen's have the tags of a tool as tokens that are not special, SmolLM2's has them in pieces."""
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = template
    if template != SMOLLM2:
        names = ("think", "tool_call", "tool_response") if template == QWEN3 else ("tool_call",)
        tags = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer
