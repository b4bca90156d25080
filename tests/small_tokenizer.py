"""The small tokenizer of `tests/text`: its texts, its files, and a way to change one."""

import json

TEXTS = ["the cat sat on the mat", "what's that?  12 cats\n", "naïve café, naïve façade", "你好，世界！你好"] * 3
PARTS = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")


def parsed(path):
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path, change):
    data = parsed(path)
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
