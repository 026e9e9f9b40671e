"""The program in a model card that runs the model with plain transformers, without this package."""

from __future__ import annotations

from collections.abc import Sequence

_BEGINNING = """\
import json, re
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder = "."  # where this card lies
question = "Where was the author of the book born?"
passages = ['"Title"\\nText of a passage; a search engine belongs here.']
agent = json.load(open(f"{folder}/protocol.json", encoding="utf-8"))
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)

def search(query):  # the passages that share most words with the query
    words = set(query.lower().split())
    return sorted(passages, key=lambda p: -len(words & set(p.lower().split())))[: agent["top_k"]]

def observation(found):  # in which nothing is a tag but what the agent text has
    docs = [f"Doc {n}(Title: {p.partition(chr(10))[0]}) {p.partition(chr(10))[2]}" for n, p in enumerate(found, 1)]
    text = re.sub(r"<(?=[MARKS])", "&lt;", "\\n".join(docs))
    return agent["observation"].replace("{results}", text)

def write(ids, *stops):  # a turn of the model
    how = {"stop_strings": [*stops], "tokenizer": tokenizer, "max_new_tokens": agent.get("max_new_tokens", 500)}
    return tokenizer.decode(model.generate(torch.tensor([ids]), **how)[0, len(ids) :], skip_special_tokens=True)

"""

_TAGS = (
    _BEGINNING.replace("[MARKS]", r"\s*/?\s*([NAMES])\b")
    + """\
def encode(text):  # as text, whatever special token it may name
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

prompt, chat = agent["prompt"].replace("{question}", question), agent["chat_template"] and tokenizer.chat_template
if chat:
    message = [{"role": "user", "content": prompt}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
ids = tokenizer(prompt, add_special_tokens=not chat).input_ids
for turn in range(agent["max_turns"] + 1):
    written = write(ids, "</[SEARCH]>", "</[ANSWER]>")
    action = re.search(r"^(.*?<([SEARCH]|[ANSWER])>(.*?)</\\2>)", written, re.DOTALL)
    if action and action[2] == "[ANSWER]":
        print("answer:", action[3].strip())
        break
    print("searched:", action[3].strip()) if action else print("a turn without an action")
    ids += encode(action[1] + observation(search(action[3])) if action else written + agent["correction"])
"""
)


def of_tags(names: Sequence[str], search: str, answer: str) -> str:
    """The program for a format whose tags are `names`; those of a query and of an answer are two of them."""
    return _TAGS.replace("[NAMES]", "|".join(names)).replace("[SEARCH]", search).replace("[ANSWER]", answer)


# A special token that a passage names is escaped too: the messages become text before they become tokens.
TOOL_CALLS = (
    _BEGINNING.replace("[MARKS]", r"\||\s*/?\s*(think|tool_call|tool_response|tools)\b")
    + """\
def render(messages, tools=[TOOL]):
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)

messages = [{"role": "user", "content": agent["prompt"].replace("{question}", question)}]
if render(messages) == render(messages, None):  # a template that passes over tools
    messages.insert(0, {"role": "system", "content": [TOLD]})
for turn in range(agent["max_turns"] + 1):
    written = write(tokenizer(render(messages), add_special_tokens=False).input_ids, "</tool_call>")
    action = written.rpartition("</think>")[2]
    if "<tool_call>" not in action:
        print("answer:", action.strip())
        break
    call = re.search(r'"query": *("(?:[^"\\\\]|\\\\["\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4})*")', action)
    print(f"searched: {call[1]}" if call else "a turn without an action")
    told = observation(search(json.loads(call[1], strict=False))) if call else agent["correction"]
    messages += [{"role": "assistant", "content": written}, {"role": "tool", "name": "search", "content": told}]
"""
)
