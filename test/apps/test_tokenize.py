"""The tokenize program from outside: files, documents, exit codes and sentences. argv[1] is the apps folder."""
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

APP = [str(pathlib.Path(sys.argv.pop(1)).resolve() / "tokenize")]
ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOLLM2 = str(ROOT / "assets/tokenizer")
FIXTURES = ROOT / "test/fixtures/tokenizers"


def run(*args, stdin=""):
    return subprocess.run(APP + [str(a) for a in args], input=stdin.encode(), capture_output=True, timeout=120)


def read_ids(path, width=2):
    data = pathlib.Path(path).read_bytes()
    return list(struct.unpack("<%d%s" % (len(data) // width, "H" if width == 2 else "I"), data))


class Tokenize(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.dir = pathlib.Path(self.folder.name)

    def write(self, name, text):
        (self.dir / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.dir / name

    def ok(self, *args, **kw):
        r = run(*args, **kw)
        self.assertEqual(r.returncode, 0, r.stderr.decode())
        return r.stdout.decode()

    def fails(self, code, words, *args):
        r = run(*args)
        error = r.stderr.decode()
        self.assertEqual(r.returncode, code, error)
        self.assertTrue(error.splitlines()[-1].startswith("llatte-tokenize: "), error)
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, error)

    def test_cases_and_decode_match_the_fixtures(self):
        for folder, tokenizer in [("smollm2", SMOLLM2), ("llama3_pairs_plain", FIXTURES / "llama3_pairs_plain")]:
            cases = FIXTURES / folder / "cases.jsonl"
            want = [json.loads(line) for line in cases.read_text().splitlines()]
            got = self.ok("--tokenizer", tokenizer, "--cases", cases)
            self.assertEqual([json.loads(line) for line in got.splitlines()], [c["ids"] for c in want])
            arrays = self.write("ids.jsonl", got)
            decoded = [c["decoded"] for c in want]
            for text in (self.ok("--tokenizer", tokenizer, "--decode", arrays),
                         self.ok("--tokenizer", tokenizer, "--decode", stdin=got),
                         self.ok("--tokenizer", tokenizer, "--cases", cases, "--decode")):
                self.assertEqual([json.loads(line) for line in text.splitlines()], decoded)

    def test_text_becomes_u16_byte_for_byte(self):
        text = self.write("a.txt", "Hello world 2026\n")
        out = self.dir / "a.ds"
        ids = json.loads(self.ok("--tokenizer", SMOLLM2, "--cases", self.write("c.jsonl", json.dumps(
            {"text": "Hello world 2026\n"}))))
        stdout = self.ok(text, "--tokenizer", SMOLLM2 + "/tokenizer.json", "--out", out, "--json")
        self.assertEqual(out.read_bytes(), struct.pack("<%dH" % len(ids), *ids))
        report = json.loads(stdout.splitlines()[-1])
        self.assertEqual((report["tokens"], report["documents"], report["bytes"]), (len(ids), 1, 17))

    def test_documents_of_all_inputs_in_order_with_eos(self):
        text = self.write("a.txt", "one")
        lines = self.write("b.jsonl", '{"text": "two", "id": 1}\n\n{"text": "three"}\n{"text": ""}\n')
        out = self.dir / "x.ds"
        self.ok(lines, text, "--tokenizer", SMOLLM2, "--out", out, "--eos", "--threads", 2)
        cases = self.write("c.jsonl", '{"text":"two"}\n{"text":"three"}\n{"text":"one"}\n')
        two, three, one = map(json.loads, self.ok("--tokenizer", SMOLLM2, "--cases", cases).splitlines())
        self.assertEqual(read_ids(out), two + [0] + three + [0] + [0] + one + [0])
        self.ok(lines, text, "--tokenizer", SMOLLM2, "--out", out)
        self.assertEqual(read_ids(out), two + three + one)

    def test_eos_is_the_one_the_config_names(self):
        folder = self.dir / "t"
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((FIXTURES / "qwen2_strings_plain/tokenizer.json").read_bytes())
        text, out = self.write("a.txt", "a"), self.dir / "a.ds"
        self.fails(1, ["--eos", "tokenizer_config.json"], text, "--tokenizer", folder, "--out", out, "--eos")
        for eos in ("<|im_end|>", {"content": "<|im_end|>"}):
            (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
            self.ok(text, "--tokenizer", folder, "--out", out, "--eos")
            self.assertEqual(read_ids(out)[-1], 2006)

    def test_a_trained_tokenizer_round_trips(self):
        source = ROOT / "assets/wikitext-2/valid.tokens"
        out = self.dir / "tokenizer.json"
        report = json.loads(self.ok(source, "--train-bpe", 500, "--out", out, "--json"))
        self.assertEqual(report["vocab_size"], 500)
        model = json.loads(out.read_text())["model"]
        self.assertEqual(sorted(model["vocab"].values()), list(range(500)))
        self.ok(source, "--tokenizer", out, "--out", self.dir / "v.ds")
        ids = self.write("ids.jsonl", json.dumps(read_ids(self.dir / "v.ds")))
        self.assertEqual(json.loads(self.ok("--tokenizer", out, "--decode", ids)), source.read_text())
        jsonl = self.write("same.jsonl", json.dumps({"text": source.read_text()}))
        self.ok(jsonl, "--train-bpe", 500, "--out", self.dir / "again.json")
        self.assertEqual((self.dir / "again.json").read_bytes(), out.read_bytes())

    def test_invalid_utf8_is_replaced_in_text_and_refused_in_jsonl(self):
        out = self.dir / "x.ds"
        self.ok(self.write("bad.txt", b"a\xffb"), "--tokenizer", SMOLLM2, "--out", out)
        ids = self.write("ids.jsonl", json.dumps(read_ids(out)))
        self.assertEqual(json.loads(self.ok("--tokenizer", SMOLLM2, "--decode", ids)), "a\ufffdb")
        bad = self.write("bad.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n')
        self.fails(1, "bad.jsonl:2", bad, "--tokenizer", SMOLLM2, "--out", out)

    def test_failures_are_sentences_and_leave_no_file(self):
        text, out = self.write("a.txt", "a"), self.dir / "no.ds"
        t = ("--tokenizer", SMOLLM2, "--out", out)
        self.fails(1, "missing.txt", self.dir / "missing.txt", *t)
        self.fails(1, "no_such", text, "--tokenizer", self.dir / "no_such", "--out", out)
        self.fails(1, "empty", self.write("e.txt", ""), *t)
        self.fails(1, ["b.jsonl:2", ".text"], self.write("b.jsonl", '{"text":"a"}\n{"txt":"a"}\n'), *t)
        self.fails(1, "b.jsonl:1", self.write("b.jsonl", '{"text":"a"\n'), *t)
        self.fails(1, "'Unigram'", text, "--tokenizer", FIXTURES / "malformed/model_type_unigram.json", "--out", out)
        self.fails(1, "99999", "--tokenizer", SMOLLM2, "--decode", self.write("i.jsonl", "[99999]"))
        self.fails(1, "i.jsonl:1", "--tokenizer", SMOLLM2, "--decode", self.write("i.jsonl", "[-1]"))
        self.fails(1, "not 5000", text, "--train-bpe", 5000, "--out", out)
        self.assertEqual(list(self.dir.glob("*no.ds*")), [])

    def test_wrong_usage(self):
        text = self.write("a.txt", "a")
        self.fails(2, "INPUT", "--tokenizer", SMOLLM2, "--out", "x.ds")
        self.fails(2, "--out", text, "--tokenizer", SMOLLM2)
        self.fails(2, "--tokenizer", text, "--out", "x.ds")
        self.fails(2, "--train-bpe", text, "--train-bpe", 12, "--out", "x.json")
        self.fails(2, "--nonsense", text, "--nonsense")
        self.fails(2, "tpu", text, "--device", "tpu", "--tokenizer", SMOLLM2, "--out", "x.ds")
        self.assertIn("Example", self.ok("--help"))


if __name__ == "__main__":
    unittest.main()
