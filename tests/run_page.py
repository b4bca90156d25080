"""Run the blocks of one page, given as JSON on standard input, in order; the first that fails ends it with status 1."""

import json
import subprocess
import sys
import traceback


def run(todo: list[dict]) -> int:
    """`python` blocks share one namespace, and their lines are numbered as in the page; `sh` blocks go to bash."""
    names: dict = {"__name__": "__main__"}
    for block in todo:
        where = f"{block['page']}:{block['line']}"
        print(f"--- {where} ({block['language']})", flush=True)
        if block["language"] == "sh":
            script = f"set -euo pipefail\n{block['text']}\n"
            status = subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL).returncode
            if status:
                print(f"{where}: exit status {status} of\n{block['text']}")
                return 1
            continue
        try:
            exec(compile("\n" * (block["line"] - 1) + block["text"], block["page"], "exec"), names)
        except Exception:
            traceback.print_exc(file=sys.stdout)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(json.load(sys.stdin)))
