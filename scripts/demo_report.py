"""What scripts/demo reads out of a run: demo_report.py METRICS.jsonl VERB ...
  steps SECONDS                       how many steps fit into that time, at the median speed measured (40 to 500)
  report STOPPED PPL.json MODEL SEC   the closing table
demo_report.py - latent FOLDER        the closing table of scripts/demo_latent
"""
import json
import os
import statistics
import sys


def records(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def steps_that_fit(rows, seconds):
    step_s = statistics.median(r["step_ms"] for r in rows[1:]) / 1000  # the first one builds caches
    return min(500, max(40, int(min(seconds, 280) / step_s)))


def size(path):
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(os.path.getsize(os.path.join(folder, n)) for n in names)
    return total


def report(rows, stopped, ppl_file, model, seconds):
    with open(ppl_file, encoding="utf-8") as file:
        ppl = json.load(file)
    last = [r["loss"] for r in rows[-10:]]
    run = os.path.dirname(model)
    table = [
        ("steps", f"{len(rows)} (interrupted after {stopped}, resumed)"),
        ("tokens trained on", f"{rows[-1]['tokens']:,}"),
        ("loss, step 1", f"{rows[0]['loss']:.3f}"),
        (f"loss, mean of the last {len(last)} steps", f"{statistics.mean(last):.3f}"),
        (f"perplexity of unseen text, {ppl['windows']} windows of 512", f"{ppl['ppl']:.1f}"),
        ("training, tokens/s (median)", f"{statistics.median(r['tokens_per_s'] for r in rows):.0f}"),
        ("largest memory while training, MiB", f"{max(r['rss_bytes'] for r in rows) / 2**20:.0f}"),
        ("whole demo, seconds", seconds),
    ]
    width = max(len(name) for name, _ in table)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in table))
    print("\nfiles written")
    for name in sorted(os.listdir(run)):
        print(f"{size(os.path.join(run, name)) or os.path.getsize(os.path.join(run, name)):>14,}  {run}/{name}")
    for name in sorted(os.listdir(model)):
        path = os.path.join(model, name)
        print(f"{size(path) if os.path.isdir(path) else os.path.getsize(path):>14,}  {path}")


def report_latent(folder):
    def read(name):
        with open(os.path.join(folder, name + ".json"), encoding="utf-8") as file:
            return json.load(file)
    def column(kind):
        healed, int8 = read(kind + "_text"), read(kind + "_int8")
        return [kind.upper(), f"{read(kind + '_converted')['ppl']:.2f}", f"{read(kind + '_healed')['ppl']:.2f}",
                f"{healed['cache_bytes_per_token']:,}", f"{int8['cache_bytes_per_token']:,}"]
    original = read("text_original")
    rows = zip(["", "perplexity", "perplexity, healed", "cache, bytes per token", "cache, bytes per token, in int8"],
               ["original", f"{read('ppl_original')['ppl']:.2f}", "", f"{original['cache_bytes_per_token']:,}", ""],
               column("mla"), column("hla"))
    for name, *cells in rows:
        print(f"{name:<32}" + "".join(f"{cell:>10}" for cell in cells))
    print("\nthey go on with")
    for name, text in (("original", original), ("MLA, healed", read("mla_text")), ("HLA, healed", read("hla_text")),
                       ("HLA, from its int8 cache", read("hla_int8"))):
        print(f"{name:<25} {text['text']!r}")


def main():
    path, verb, *rest = sys.argv[1:]
    if verb == "latent":
        return report_latent(*rest)
    rows = records(path)
    if verb == "steps":
        print(steps_that_fit(rows, float(rest[0])))
    elif verb == "report":
        report(rows, *rest)
    else:
        sys.exit(__doc__)


main()
