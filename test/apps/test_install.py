"""make install's promise: a project outside this tree finds llatte::llatte, compiles against the installed headers,
links and runs. Called with the apps folder of the build; works in a temporary folder."""
import os
import pathlib
import subprocess
import sys
import tempfile

BUILD = pathlib.Path(sys.argv[1]).resolve().parent

CMAKE = """cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
find_package(llatte 0.1 REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE llatte::llatte)
"""
MAIN = """#include <iostream>
#include "models/llama.h"
int main() {
  llatte::LlamaConfig c = llatte::preset("clm-60m");
  c.num_hidden_layers = 1;
  c.vocab_size = 32;
  llatte::Llama model(c, llatte::DType::f32);
  model.init(1, 0.02);
  const auto tokens = llatte::Tensor::from(std::vector<int32_t>{1, 2, 3}, {1, 3});
  std::cout << model.loss(tokens, tokens).value.item() << std::endl;
}
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def main():
    cache = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8")
    sanitizer = next((line.split("=", 1)[1] for line in cache.splitlines() if line.startswith("LLATTE_SAN:")), "")
    flags = [f"-DCMAKE_CXX_FLAGS=-fsanitize={sanitizer}"] if sanitizer else []
    with tempfile.TemporaryDirectory() as folder:
        at = pathlib.Path(folder)
        run("cmake", "--install", str(BUILD), "--prefix", str(at / "prefix"))
        (at / "CMakeLists.txt").write_text(CMAKE, encoding="utf-8")
        (at / "main.cpp").write_text(MAIN, encoding="utf-8")
        run("cmake", "-S", folder, "-B", str(at / "out"), f"-DCMAKE_PREFIX_PATH={at / 'prefix'}", *flags)
        run("cmake", "--build", str(at / "out"))
        loss = float(run(str(at / "out" / "consumer"), env={**os.environ, "OMP_NUM_THREADS": "1"}))
        # an untrained model of 32 words: within 0.5 of ln 32 = 3.4657, as its logits are small against 1
        assert abs(loss - 3.4657) < 0.5, loss
        installed = sorted(p.name for p in (at / "prefix" / "bin").glob("*"))
        programs = sorted("llatte-" + p.name for p in pathlib.Path(sys.argv[1]).iterdir() if p.is_file())
        assert installed == programs and programs, f"installed {installed}, built {programs}"
    print("1 passed, 0 failed")


main()
