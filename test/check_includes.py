"""The include rule: rooms look downwards only, and vendor headers stay under tensor/.
Run from the repository root; exits 1 and names each offence, and 2 if it found no source to check."""
import re
import sys
from pathlib import Path

BELOW = {  # room -> the rooms right below it; what is below those is allowed too
    "tensor": [], "data": ["tensor"], "autograd": ["tensor"], "nn": ["autograd"], "optim": ["nn"],
    "models": ["nn", "data"], "convert": ["models"], "eval": ["models"], "train": ["eval", "convert", "optim"],
    "apps": ["train"], "bench": ["apps"], "test": ["apps", "bench"],
}
PRIVATE = ("tensor/cpu/", "tensor/cuda/")  # only files inside may include these
ONLY_IN = {  # a library -> the rooms that may know it, besides tests and benches
    "yaml-cpp/": {"models", "train"},
    "nlohmann/": {"data", "models", "convert", "eval", "train", "apps"},
    "pcre2": {"data"},
    "CLI/": {"apps"},
}
VENDOR = re.compile(r"dnnl|oneapi|cblas|lapack|mpi\.h|cuda|cublas|cusolver|nccl")
INCLUDE = re.compile(r'\s*#\s*include\s+([<"])([^>"]+)[>"]')


def reach(room):
    return {room}.union(*(reach(below) for below in BELOW[room]))


def offence(path, quote, target):
    here, room = path.as_posix(), path.parts[0]
    if quote == "<" and room not in ("test", "bench"):
        if VENDOR.search(target) and room != "tensor":
            return "vendor header outside tensor/"
        for library, rooms in ONLY_IN.items():
            if target.startswith(library) and room not in rooms:
                return f"{library} belongs to {', '.join(sorted(rooms))}"
    if quote == "<":
        return None
    if target.split("/")[0] in BELOW and target.split("/")[0] not in reach(room):
        return f"{room}/ may not include {target.split('/')[0]}/"
    if any(target.startswith(p) and not here.startswith(p) for p in PRIVATE) and room not in ("test", "bench"):
        return "private to its backend"
    return None


def main():
    files = sorted(p for room in BELOW for p in Path(room).rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
    offences = 0
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            m = INCLUDE.match(line)
            why = m and offence(path, m[1], m[2])
            if why:
                offences += 1
                print(f"{path}:{number}: {m[2]}: {why}")
    print(f"{len(files)} files, {offences} offences")
    sys.exit(2 if not files else offences > 0)


main()
