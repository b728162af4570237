"""llatte-generate on a tiny model: JSON keys, seeds, streaming, exit codes, error sentences."""
import json, pathlib, subprocess, sys, tempfile, unittest

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIX = pathlib.Path("test/fixtures")
TINY = FIX / "tiny-llama" / "tiny-llama"  # 384 ids, 256 positions, 2 layers, K = 2, E = 16
SMALL = FIX / "tiny-llama" / "mha"  # 48 ids: too few for the tokenizer's words
TOKENIZER = FIX / "lm-eval" / "tokenizer"
PROMPT = "the lake and the river"


def run(*args):
    p = subprocess.run([APPS / "generate", *map(str, args)], capture_output=True, timeout=300)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


def ok(*args):
    code, out, err = run(TINY, "--tokenizer", TOKENIZER, "--prompt", PROMPT, *args, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


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

    def test_streams_the_text(self):
        args = ("--max-tokens", 30, "--temperature", 1, "--seed", 3)
        code, out, err = run(TINY, "--tokenizer", TOKENIZER, "--prompt", PROMPT, *args, "--stats")
        self.assertEqual(code, 0)
        self.assertEqual(out, ok(*args)["text"] + "\n")
        for word in ("prefill", "decode", "cache"):
            self.assertIn(word, err)

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

    def test_failures(self):
        tok = ("--tokenizer", TOKENIZER)
        self.fails(1, "none does not exist", "none", *tok, "--prompt", "a")
        self.fails(1, "has no tokenizer; name one with --tokenizer", TINY, "--prompt", "a")
        self.fails(1, "none", TINY, "--tokenizer", "none", "--prompt", "a")
        self.fails(1, "but the model's vocabulary ends at 47", SMALL, *tok, "--prompt", PROMPT)
        self.fails(1, "exceed max_position_embeddings 256", TINY, *tok, "--prompt", "x " * 400)
        with tempfile.TemporaryDirectory() as d:
            self.fails(1, "config.json", d, *tok, "--prompt", "a")

    def test_usage(self):
        tok = ("--tokenizer", TOKENIZER)
        self.fails(2, "--prompt", TINY, *tok)
        for option, value in (("--max-tokens", 0), ("--temperature", -1), ("--top-p", 2), ("--min-p", -1),
                              ("--top-k", -1), ("--seed", "x"), ("--dtype", "f8"), ("--device", "tpu")):
            self.fails(2, option, TINY, *tok, "--prompt", "a", option, value)
        code, out, _ = run("--help")
        self.assertEqual(code, 0)
        self.assertIn("Example:", out)


if __name__ == "__main__":
    unittest.main()
