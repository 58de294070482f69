"""A program of the protocol `json` that does what its prompts say."""

from __future__ import annotations

# Each prompt is what the program is to do for it: words joined by ";". `wait` is until another task says `go`.
PROGRAM = """
import json, os, sys, time
waiting = {}

def say(id, **what):
    print(json.dumps({"id": id, **what}), flush=True)

def work(id, steps):
    while steps:
        step = steps.pop(0)
        if step == "wait":
            waiting[id] = steps
            return
        if step == "go":
            for other in list(waiting):
                work(other, waiting.pop(other))
        elif step == "die":
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(9)
        elif step.startswith("err:"):
            print(step[4:], file=sys.stderr, flush=True)
        elif step == "flood":
            for _ in range(2000):
                say(id, text="x" * 100)
        elif step.startswith("raw:"):
            sys.stdout.write(step[4:].replace("ID", id) + "\\n")
            sys.stdout.flush()
        elif step.startswith("hangup:"):
            os.close(1)
            open(step[7:], "w").close()
            time.sleep(0.7)
            os._exit(5)
        elif step == "longline":
            sys.stdout.write("x" * 200_000)
            sys.stdout.flush()
        else:
            say(id, text=step)
    say(id, done=True, usage={"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1}, finish_reason="length")

for line in sys.stdin:
    task = json.loads(line)
    if "cancel" in task:
        if waiting.pop(task["id"], ["stubborn"])[:1] != ["stubborn"]:
            say(task["id"], done=True)
    elif task["prompt"] == "task?":
        say(task["id"], text=json.dumps(task), done=True)
    else:
        work(task["id"], task["prompt"].split(";"))
"""
