"""A GGUF file as the MODEL of a program: the same words as the Hugging Face folder it was made from, its own tokenizer
and chat template, and an error sentence for a broken one."""
import json, pathlib, subprocess, sys, tempfile, unittest

APPS = pathlib.Path(sys.argv.pop(1)).resolve()
FIX = pathlib.Path("test/fixtures/gguf")


def generate(model, *args):
    p = subprocess.run([APPS / "generate", model, "--prompt", "the theory", *args], capture_output=True, timeout=300)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


class Gguf(unittest.TestCase):
    def test_same_words_as_the_folder(self):
        answers = []
        for model in (FIX / "f32.gguf", FIX / "hf"):
            code, out, err = generate(model, "--max-tokens", "20", "--seed", "3", "--ignore-eos", "--json")
            self.assertEqual(code, 0, err)
            answers.append(json.loads(out.splitlines()[-1])["ids"])
        self.assertEqual(len(answers[0]), 20)
        self.assertEqual(answers[0], answers[1])

    def test_errors_are_sentences(self):
        code, _, err = generate(FIX / "f32.gguf", "--chat")
        self.assertEqual(code, 1)
        self.assertIn("chat template", err)
        with tempfile.TemporaryDirectory() as folder:
            cut = pathlib.Path(folder) / "cut.gguf"
            cut.write_bytes((FIX / "f32.gguf").read_bytes()[:60000])
            code, _, err = generate(cut)
            self.assertEqual(code, 1)
            self.assertIn("cut.gguf", err)
            self.assertIn("is it cut short?", err)


if __name__ == "__main__":
    unittest.main()
