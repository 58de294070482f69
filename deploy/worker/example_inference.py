"""A model wrapped as a Helix worker: put your own in place of `load` and `generate`.

HELIX_GET_JOB_URL='http://127.0.0.1:8080/api/v1/worker/task?mode=Create&type=Text&model_name=mistral' \
    python example_inference.py
"""

import sys

from helix_worker import TaskFailed, serve


def load():
    """Return the model: this takes its time, and is done once. Here it knows a few words backwards."""
    return lambda prompt: (word[::-1] + " " for word in prompt.split())


def main():
    generate = load()
    remembered = {}  # session -> what was computed for it: its next turn comes to this worker again

    def do_inference(task):
        if len(task["prompt"]) > 10_000:
            raise TaskFailed("prompt_too_long", "the prompt has more than 10000 characters")
        if task["mode"] == "continue":
            print("turn", task["turn"], "goes on from", remembered.get(task["session_id"]), file=sys.stderr)
        tokens = 0
        for piece in generate(task["prompt"]):
            if task.cancelled:  # somebody stopped it: what was said until now is kept
                break
            tokens += 1
            yield piece
        remembered[task["session_id"]] = tokens
        return {"usage": {"prompt_tokens": len(task["prompt"].split()), "completion_tokens": tokens}}

    serve(do_inference)


if __name__ == "__main__":
    main()
