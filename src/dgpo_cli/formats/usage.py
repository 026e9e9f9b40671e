"""The program in a model card that runs the model with plain transformers, without this package."""

TAGS = """\
import json, re
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder = Path(".")  # where this card lies
question = "Where was the author of the book born?"
passages = ['"Title"\\nText of a passage; a search engine belongs here.']

agent = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)

def search(query):  # the passages that share most words with the query
    words = set(query.lower().split())
    return sorted(passages, key=lambda p: -len(words & set(p.lower().split())))[: agent["top_k"]]

def observation(found):
    docs = [f"Doc {n}(Title: {p.partition(chr(10))[0]}) {p.partition(chr(10))[2]}" for n, p in enumerate(found, 1)]
    text = re.sub(r"<(?=\\s*/?\\s*(think|search|information|answer)\\b)", "&lt;", "\\n".join(docs))  # text, not tags
    return agent["observation"].replace("{results}", text)

def encode(text):  # as text, whatever special token it may name
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

prompt = agent["prompt"].replace("{question}", question)
if agent["chat_template"] and tokenizer.chat_template:
    message = [{"role": "user", "content": prompt}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
ids = tokenizer(prompt, add_special_tokens=not (agent["chat_template"] and tokenizer.chat_template)).input_ids
for turn in range(agent["max_turns"] + 1):
    stops = {"stop_strings": ["</search>", "</answer>"], "tokenizer": tokenizer, "max_new_tokens": 500}
    written = tokenizer.decode(model.generate(torch.tensor([ids]), **stops)[0, len(ids) :], skip_special_tokens=True)
    action = re.search(r"^(.*?<(search|answer)>(.*?)</\\2>)", written, re.DOTALL)
    if action and action[2] == "answer":
        print("answer:", action[3].strip())
        break
    print("searched:", action[3].strip()) if action else print("a turn without an action")
    ids += encode(action[1] + observation(search(action[3])) if action else written + agent["correction"])
"""

TOOL_CALLS = """\
import json, re
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

folder = Path(".")  # where this card lies
question = "Where was the author of the book born?"
passages = ['"Title"\\nText of a passage; a search engine belongs here.']

agent = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
tools = [TOOL]
told = [TOLD]  # by a system message, where the template passes over tools

def search(query):  # the passages that share most words with the query
    words = set(query.lower().split())
    return sorted(passages, key=lambda p: -len(words & set(p.lower().split())))[: agent["top_k"]]

def results(found):
    docs = [f"Doc {n}(Title: {p.partition(chr(10))[0]}) {p.partition(chr(10))[2]}" for n, p in enumerate(found, 1)]
    return re.sub(r"<(?=\\s*/?\\s*(think|tool_call|tool_response|tools)\\b)", "&lt;", "\\n".join(docs))

def shown(text):  # as text, whatever special token it may name
    return re.sub(r"<(?=\\|)", "&lt;", text)

def render(messages):
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)

messages = [{"role": "user", "content": agent["prompt"].replace("{question}", shown(question))}]
if "</tool_call>" not in render(messages):
    messages.insert(0, {"role": "system", "content": told})
for turn in range(agent["max_turns"] + 1):
    ids = tokenizer(render(messages), add_special_tokens=False).input_ids
    stops = {"stop_strings": ["</tool_call>"], "tokenizer": tokenizer, "max_new_tokens": 500}
    written = tokenizer.decode(model.generate(torch.tensor([ids]), **stops)[0, len(ids) :], skip_special_tokens=True)
    messages.append({"role": "assistant", "content": written})
    call = re.search(r"<tool_call>(.*?)</tool_call>", written, re.DOTALL)
    if not call:
        print("answer:", written.rpartition("</think>")[2].strip())
        break
    try:
        query = json.loads(call[1])["arguments"]["query"]
    except (ValueError, KeyError, TypeError):
        print("a turn without an action")
        messages.append({"role": "tool", "content": agent["correction"]})
    else:
        print("searched:", query)
        messages.append({"role": "tool", "content": shown(results(search(query)))})
"""
