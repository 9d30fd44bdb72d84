"""The peer of benches/onnx.rs: onnxruntime-genai with the same folder, in the same run.

Reads lines `PROMPT_TOKENS ANSWER_TOKENS` and answers each with a line of JSON:
seconds to load, to read the prompt, to write the answer, and the memory of this process.
"""
import json
import random
import sys
import time

import onnxruntime_genai as og

folder, threads = sys.argv[1], int(sys.argv[2])
started = time.perf_counter()
config = og.Config(folder)
options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
model = og.Model(config)
load = time.perf_counter() - started


def memory() -> dict:
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {key: int(fields[key].split()[0]) >> 10 for key in ("VmRSS", "RssAnon", "RssFile")}


for line in sys.stdin:
    prompt, answer = map(int, line.split())
    tokens = [random.randrange(100, 40000) for _ in range(prompt)]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=1024, do_sample=False, min_length=prompt + answer)
    generator = og.Generator(model, params)
    started = time.perf_counter()
    generator.append_tokens(tokens)
    generator.generate_next_token()
    read = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(answer):
        generator.generate_next_token()
    write = time.perf_counter() - started
    print(json.dumps({"load": load, "read": read, "write": write, "memory": memory()}), flush=True)
