"""llatte-generate on a tiny model: JSON keys, seeds, streaming, stop texts, conversations, exit codes, error
sentences."""
import json, pathlib, select, shutil, signal, subprocess, sys, tempfile, unittest

import device

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIX = pathlib.Path("test/fixtures")
TINY = FIX / "tiny-llama" / "tiny-llama"  # 384 ids, 256 positions, 2 layers, K = 2, E = 16
SMALL = FIX / "tiny-llama" / "mha"  # 48 ids: too few for the tokenizer's words
TOKENIZER = FIX / "lm-eval" / "tokenizer"
PROMPT = "the lake and the river"


TEMPLATE = ("{% for m in messages %}{{ '<|bos|>' + m['role'] + '<|eos|>' + m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|bos|>assistant<|eos|>' }}{% endif %}")


def run(*args, stdin=""):
    p = subprocess.run([APPS / "generate", *device.ARGS, *map(str, args)], capture_output=True, timeout=300, input=stdin.encode())
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def ok(*args):
    code, out, err = run(TINY, "--tokenizer", TOKENIZER, "--prompt", PROMPT, *args, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def copy_of_tiny(folder, template=None, **config):
    """The tiny model with a tokenizer of its own, and perhaps a chat template and another config."""
    model = pathlib.Path(folder) / "model"
    shutil.copytree(TINY, model, copy_function=shutil.copyfile)
    shutil.copyfile(TOKENIZER / "tokenizer.json", model / "tokenizer.json")
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    if config:
        old = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**old, **config}))
    return model


class Generate(unittest.TestCase):
    def test_keys_and_cache(self):
        got = ok("--max-tokens", 10, "--temperature", 0)
        self.assertLessEqual({"text", "tokens", "prefill_tokens_per_s", "decode_tokens_per_s", "cache_bytes",
                              "cache_bytes_per_token"}, set(got))
        self.assertEqual(got["tokens"], len(got["ids"]))
        self.assertEqual(got["cache_bytes_per_token"], 2 * 2 * 2 * 16 * 4)  # k and v, layers, K, E, f32
        self.assertEqual(got["cache_bytes"], (got["prompt_tokens"] + 10) * got["cache_bytes_per_token"])
        self.assertGreater(got["prefill_tokens_per_s"], 0)
        half = ok("--max-tokens", 10, "--temperature", 0, "--dtype", "bf16")
        self.assertEqual(half["cache_bytes_per_token"], got["cache_bytes_per_token"] / 2)

    def test_seeds(self):
        a, again, b = (ok("--max-tokens", 40, "--temperature", 1, "--seed", s) for s in (1, 1, 2))
        self.assertEqual(a["ids"], again["ids"])
        self.assertNotEqual(a["ids"], b["ids"])
        greedy = ok("--max-tokens", 20, "--temperature", 0)
        self.assertEqual(greedy["ids"], ok("--max-tokens", 20, "--temperature", 1, "--top-k", 1)["ids"])

    @device.cpu_alone
    def test_streams_the_text(self):
        args = ("--max-tokens", 30, "--temperature", 1, "--seed", 3)
        code, out, err = run(TINY, "--tokenizer", TOKENIZER, "--prompt", PROMPT, *args, "--stats")
        self.assertEqual(code, 0)
        self.assertEqual(out, ok(*args)["text"] + "\n")
        for word in ("prefill", "decode", "cache"):
            self.assertIn(word, err)

    @device.cpu_alone
    def test_long_text_stops_at_the_last_position(self):
        code, out, err = run(TINY, "--tokenizer", TOKENIZER, "--prompt", PROMPT, "--max-tokens", 5000, "--json")
        self.assertEqual(code, 0)
        self.assertIn("--max-tokens 5000 lowered to", err)
        got = json.loads(out)
        self.assertEqual(got["cache_bytes"], 256 * got["cache_bytes_per_token"])

    def fails(self, code, sentence, *args):
        got, out, err = run(*args)
        self.assertEqual(got, code, err)
        self.assertIn(sentence, err)
        self.assertTrue(err.startswith("llatte-generate: "), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertEqual(out, "")

    @device.cpu_alone
    def test_failures(self):
        tok = ("--tokenizer", TOKENIZER)
        self.fails(1, "none does not exist", "none", *tok, "--prompt", "a")
        self.fails(1, "has no tokenizer; name one with --tokenizer", TINY, "--prompt", "a")
        self.fails(1, "none", TINY, "--tokenizer", "none", "--prompt", "a")
        self.fails(1, "but the model's vocabulary ends at 47", SMALL, *tok, "--prompt", PROMPT)
        self.fails(1, "exceed max_position_embeddings 256", TINY, *tok, "--prompt", "x " * 400)
        with tempfile.TemporaryDirectory() as d:
            self.fails(1, "config.json", d, *tok, "--prompt", "a")

    @device.cpu_alone
    def test_stop_text(self):
        greedy = ("--max-tokens", 40, "--temperature", 0)
        free = ok(*greedy)
        text = free["text"]
        for stop in (text[7:12], text[20:22]):  # wherever the token borders are
            got = ok(*greedy, "--stop", "never seen", "--stop", stop)
            self.assertEqual(got["text"], text[: text.index(stop)])
            self.assertLess(got["tokens"], free["tokens"])
            _, out, _ = run(TINY, "--tokenizer", TOKENIZER, "--prompt", PROMPT, *greedy, "--stop", stop)
            self.assertEqual(out, got["text"] + "\n")
        self.assertEqual(ok(*greedy, "--stop", text + "x")["text"], text)

    @device.cpu_alone
    def test_end_of_text(self):
        greedy = ("--max-tokens", 20, "--temperature", 0)
        free = ok(*greedy)["ids"]
        with tempfile.TemporaryDirectory() as d:
            model = copy_of_tiny(d, eos_token_id=free[5])
            for flags, want in (((), free[: free.index(free[5]) + 1]), (("--ignore-eos",), free)):
                code, out, err = run(model, "--prompt", PROMPT, *greedy, *flags, "--json")
                self.assertEqual(code, 0, err)
                self.assertEqual(json.loads(out)["ids"], want)

    def test_repetition_penalty(self):
        greedy = ("--max-tokens", 200, "--temperature", 0)
        free, less = ok(*greedy)["ids"], ok(*greedy, "--repetition-penalty", 1.5)["ids"]
        self.assertGreater(len(set(less)), len(set(free)))  # more different tokens
        self.assertEqual(ok(*greedy, "--repetition-penalty", 1)["ids"], free)

    def test_cache_dtype(self):
        args = ("--max-tokens", 10, "--temperature", 0)
        per_token = {c: ok(*args, "--cache", c)["cache_bytes_per_token"] for c in ("f32", "bf16", "int8", "int4")}
        rows = 2 * 2  # k and v, layers; 2 heads of 16 numbers, each a group with a scale of 2 bytes
        self.assertEqual(per_token, {"f32": rows * 32 * 4, "bf16": rows * 32 * 2, "int8": rows * (32 + 4),
                                     "int4": rows * (16 + 4)})

    def test_conversation(self):
        greedy = ("--max-tokens", 12, "--temperature", 0)
        with tempfile.TemporaryDirectory() as d:
            model = copy_of_tiny(d, TEMPLATE)
            chat = (model, "--chat", "--system", "be kind", *greedy)
            code, out, err = run(*chat, "--json", stdin="the lake\n\nand the river\n")
            self.assertEqual(code, 0, err)
            first, second = map(json.loads, out.splitlines())  # an empty line is no question
            code, out, err = run(*chat, "--prompt", "the lake", "--json")
            self.assertEqual(json.loads(out)["ids"], first["ids"])
            written = "<|bos|>system<|eos|>be kind<|bos|>user<|eos|>the lake<|bos|>assistant<|eos|>"
            code, out, err = run(model, "--prompt", written, *greedy, "--json")
            self.assertEqual(json.loads(out)["ids"], first["ids"])  # the template is what makes the prompt
            written += first["text"] + "<|bos|>user<|eos|>and the river<|bos|>assistant<|eos|>"
            code, out, err = run(model, "--prompt", written, *greedy, "--json")
            self.assertEqual(json.loads(out)["ids"], second["ids"])  # as without a cache kept
            self.assertEqual(first["prefilled_tokens"], first["prompt_tokens"])
            self.assertLessEqual(second["prefilled_tokens"], second["prompt_tokens"] - first["prompt_tokens"])
            code, out, err = run(*chat, "--stats", stdin="the lake\nand the river")
            self.assertEqual(out, first["text"] + "\n" + second["text"] + "\n")
            self.assertEqual(err.count("prefill"), 2)

    @device.cpu_alone
    def test_interrupt_ends_the_answer_only(self):
        with tempfile.TemporaryDirectory() as d:
            model = copy_of_tiny(d, TEMPLATE, max_position_embeddings=100000)
            args = [APPS / "generate", *device.ARGS, model, "--chat", "--max-tokens", "40000", "--ignore-eos", "--stats"]
            p = subprocess.Popen(list(map(str, args)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, bufsize=0)
            for question in (b"one\n", b"two\n"):
                p.stdin.write(question)
                self.assertTrue(select.select([p.stdout], [], [], 120)[0])  # text streams while it is made
                p.send_signal(signal.SIGINT)
                decode = [p.stderr.readline().decode() for _ in ("prefill", "decode", "cache")][1]
                self.assertLess(int(decode.split()[1]), 40000)
                self.assertTrue(p.stdout.read(1 << 16))
                p.send_signal(signal.SIGINT)  # between answers it ends nothing
            p.communicate(timeout=120)
            self.assertEqual(p.returncode, 0)

    @device.cpu_alone
    def test_conversation_failures(self):
        with tempfile.TemporaryDirectory() as d:
            model = copy_of_tiny(d, "{{ raise_exception('no') }}")
            self.fails(1, "chat template: line 1: the template refuses this conversation: no", model, "--chat",
                       "--prompt", "a")
        with tempfile.TemporaryDirectory() as d:
            model = copy_of_tiny(d)
            self.fails(1, "has no chat template; --chat needs a model with chat_template.jinja", model, "--chat")
            self.fails(2, "--system is for --chat", model, "--prompt", "a", "--system", "b")
        with tempfile.TemporaryDirectory() as d:
            model = copy_of_tiny(d, TEMPLATE)
            self.fails(1, "exceed max_position_embeddings 256", model, "--chat", "--prompt", "x " * 400)

    @device.cpu_alone
    def test_usage(self):
        tok = ("--tokenizer", TOKENIZER)
        self.fails(2, "--prompt is required, or --chat", TINY, *tok)
        self.fails(2, "a stop text must not be empty", TINY, *tok, "--prompt", "a", "--stop", "")
        for option, value in (("--max-tokens", 0), ("--temperature", -1), ("--top-p", 2), ("--min-p", -1),
                              ("--top-k", -1), ("--seed", "x"), ("--repetition-penalty", 0), ("--cache", "f8"), ("--dtype", "f8"), ("--device", "tpu")):
            self.fails(2, option, TINY, *tok, "--prompt", "a", option, value)
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        self.assertIn("Example:", out)


if __name__ == "__main__":
    unittest.main()
