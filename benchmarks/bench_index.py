"""Searching reference indexes of every kind beside FAISS with its defaults: speed, recall, memory, time to build.

    python benchmarks/bench_index.py [--references 1000000] [--dim 256] [--kinds flat ivf-pq ...] [--save index]
    python benchmarks/bench_index.py --references 20000 --data clustered --rounds 1     a look, in a minute

Two sets of embeddings: a million made-up ones that lie in clusters as embeddings do (`index_data.py` says how; the
report says how they came out), and the 100,000 of GeoCLIP's gallery, which need torch and geoclip and are left out
without. Queries come from the same distribution and are none of the references; run-time settings are chosen on
others of them, by the code of `geoinfer index tune`, for a recall@10 a little above --target.

Every contender lives in a process of its own, because FAISS's settings hold for a whole process: geoinfer's indexes as
`IndexWriter` builds them and `open_index` opens them from disk; and FAISS as it comes, its thresholds untouched:
IndexFlatIP, IndexHNSWFlat (32 links, efSearch 16), IndexIVFFlat (the root of n lists, nprobe 1). All have all cores.
Contenders take turns within a round, so that a machine that slows down slows everything; ratios are taken within a
round.

Recall@k is the share of the k most similar references that are among the k answers, equally similar ones counting as
each other. Memory is that of a fresh process that opens the index and answers a thousand queries: resident, which
counts pages of mapped files that any other process shares, and private. `--work FOLDER` keeps what was built between
runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import index_data
import numpy as np
from common import machine, save, spread
from index_contender import SETTLED, Contender, K

from geoinfer.index.flat import FlatIndex
from geoinfer.index.manifest import INDEX_VERSION
from geoinfer.index_kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).with_name("index_contender.py")
DEFAULTS = ("IndexFlatIP", "IndexHNSWFlat", "IndexIVFFlat")
BASELINE = ("faiss", "IndexFlatIP")
ASKED, TUNED = 1024, 2000
BATCHES = (1, 64, 256, 1024)
SAME = 1e-6
APPROXIMATE = ("sq8", "hnsw", "ivf", "ivf-pq")


class Server:
    """A contender's process, which answers one request at a time."""

    def __init__(self, contender: Contender) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "serve", contender.spec()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self._process.wait()}")
        return json.loads(line)


def main() -> None:
    options = parse()
    result: dict[str, Any] = {"machine": machine(), "sets": [], "skipped": {}}
    result["options"] = {name: str(value) for name, value in vars(options).items() if name not in ("save", "work")}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.data:
            try:
                data = made(name, options, work)
            except ImportError as error:
                result["skipped"][name] = f"not run: {' '.join(str(error).split())}"
                say(f"{name}: {result['skipped'][name]}")
            else:
                result["sets"].append(bench(data, options, work))
            if options.save:  # at once: the second set must not cost the first
                save(options.save, result).with_suffix(".md").write_text(markdown(result) + "\n")
    print(markdown(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=1_000_000, help="of the made-up embeddings")
    parser.add_argument("--dim", type=int, default=256, help="likewise")
    parser.add_argument("--data", nargs="+", choices=("clustered", "gallery"), default=["clustered", "gallery"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of geoinfer's indexes")
    parser.add_argument("--defaults", nargs="+", choices=DEFAULTS, default=list(DEFAULTS), help="FAISS's own")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--target", type=float, default=0.99, help="recall@10 that settings are chosen for")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement; at least one batch")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep embeddings and indexes there between runs")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args()
    if options.queries < max(options.batches):
        parser.error("--queries must be at least the largest batch")
    return options


def made(name: str, options: argparse.Namespace, work: Path) -> index_data.Data:
    say(f"{name}: making the embeddings")
    if name == "clustered":
        return index_data.clustered(work, options.references, options.dim, options.queries, TUNED)
    return index_data.gallery(work, options.queries, TUNED)


def bench(data: index_data.Data, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    place = work / data.name.split(",")[0].replace(" ", "-").lower()
    place = place.with_name(f"{place.name}-{len(data.references)}x{data.references.shape[1]}")
    place.mkdir(exist_ok=True)
    files = {name: place / f"{name}.npy" for name in ("references", "queries", "tuning")}
    np.save(files["queries"], data.queries)
    np.save(files["tuning"], data.tuning)
    if isinstance(data.references, np.memmap):
        files["references"] = Path(data.references.filename)
    else:
        np.save(files["references"], data.references)
    paths = {name: str(path) for name, path in files.items()}
    asked = data.queries[:ASKED]
    truth = FlatIndex(data.references).search(asked, K)
    nature = index_data.describe(data, truth.similarities)
    say(f"{data.name}: " + "; ".join(f"{name} {value:.3g}" for name, value in nature.items()))
    contenders = [
        Contender(who, kind, str(place / f"{who}-{kind}"), **paths, target=options.target)
        for who, kinds in (("faiss", options.defaults), ("geoinfer", options.kinds))
        for kind in kinds
    ]
    rows, failed = [], {}
    for contender in contenders:
        try:
            build = built(contender, place)
        except subprocess.CalledProcessError as error:  # what it said stands above
            failed[contender.title] = f"building ended with {error.returncode}"
            say(f"{contender.title}: {failed[contender.title]}")
            continue
        rows.append({"contender": contender, "build": build})
        rows[-1] |= {"who": contender.who, "kind": contender.kind, "title": contender.title}
    measure(rows, data, truth.similarities, options, place, failed)
    for row in rows:
        contender = row.pop("contender")
        row["memory"] = command("memory", contender)
        say(f"{contender.title}: {row['memory']['resident'] / 1e6:.0f} MB resident")
    about = {"name": data.name, "references": len(data.references), "nature": nature}
    return about | {"rows": rows, "failed": failed}


def built(contender: Contender, place: Path) -> dict[str, Any]:
    """What building took; what an earlier run built and noted is taken from there."""
    note = place / f"{contender.who}-{contender.kind}.json"
    about = {"faiss": version_of_faiss(), "format": INDEX_VERSION, "target": contender.target}
    if note.is_file():
        kept = json.loads(note.read_text())
        if kept["about"] == about:
            return kept["build"]
    say(f"{contender.title}: building")
    build = command("build", contender)
    say(f"{contender.title}: {build['seconds']:.0f} s, {build['parameters']}")
    note.write_text(json.dumps({"about": about, "build": build}) + "\n")
    return build


def version_of_faiss() -> str:
    for name in ("faiss-cpu", "faiss-gpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def command(work: str, contender: Contender) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), work, contender.spec()], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    rows: list[dict[str, Any]], data: index_data.Data, truth: np.ndarray, options: argparse.Namespace, place: Path,
    failed: dict[str, str],
) -> None:  # fmt: skip
    """Fills in recall and, round by round, queries a second; a row that cannot be opened moves to what failed."""
    with_servers: list[tuple[dict[str, Any], Server]] = []
    try:
        for row in list(rows):
            try:
                with_servers.append((row, Server(row["contender"])))
            except RuntimeError as error:
                failed[row["title"]] = f"opening it: {error}"
                rows.remove(row)
        for row, server in with_servers:
            answers = place / "answers.npy"
            server.ask(answer=str(answers), count=len(truth))  # which also warms it up
            found = similarities_of(data, np.load(answers))
            row["recall_at"] = {str(k): recall(found, truth, k) for k in (1, K)}
            row["queries_per_s"] = {str(batch): [] for batch in options.batches}
            say(f"{row['title']}: recall@1 {row['recall_at']['1']:.4f}, @{K} {row['recall_at'][str(K)]:.4f}")
        for number in range(options.rounds):
            for batch in options.batches:
                for row, server in with_servers:
                    rate = server.ask(batch=batch, seconds=options.seconds)["queries_per_s"]
                    row["queries_per_s"][str(batch)].append(rate)
            say(f"round {number + 1} of {options.rounds}")
    finally:
        for _, server in with_servers:
            server.close()


def similarities_of(data: index_data.Data, ids: np.ndarray) -> np.ndarray:
    """(q, k) of the answers to the first q queries, by the true embeddings and not those that an index keeps."""
    found = np.empty(ids.shape, np.float32)
    for query, (chosen, out) in zip(data.queries, zip(ids, found, strict=True), strict=False):
        out[:] = np.where(chosen < 0, -np.inf, data.references[chosen].astype(np.float64) @ query.astype(np.float64))
    return found


def recall(similarities: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of the k nearest among the first k answers; what is as similar as the k-th nearest is as good.

    Args:
        similarities: (q, >= k) of the answers, in their order.
        truth: (q, >= k) of the nearest references, descending.
        k: how many.
    """
    return float((similarities[:, :k] >= truth[:, k - 1 : k] - SAME).mean())


def ratios(row: dict[str, Any], rows: list[dict[str, Any]], batch: str) -> list[float]:
    """Times as fast as FAISS's exact search with its defaults, round by round; empty where that did not run."""
    base = next((other for other in rows if (other["who"], other["kind"]) == BASELINE), None)
    if base is None:
        return []
    pairs = zip(row["queries_per_s"][batch], base["queries_per_s"][batch], strict=True)
    return [mine / theirs for mine, theirs in pairs]


def goals(part: dict[str, Any], target: float) -> Iterator[str]:
    """What was aimed at, what was measured, and whether that is enough."""
    rows = part["rows"]
    ours = {row["kind"]: row for row in rows if row["who"] == "geoinfer"}

    def line(aim: str, measured: str, reached: bool) -> str:
        return f"- {aim}: {measured}: **{'reached' if reached else 'not reached'}**"

    batch = "256"
    if "flat" in ours and ratios(ours["flat"], rows, batch) if batch in rows[0]["queries_per_s"] else False:
        times = statistics.median(ratios(ours["flat"], rows, batch))
        yield line("exact search at least 8 times FAISS's default, batches of 256", f"{times:.1f} times", times >= 8)
    if batch in rows[0]["queries_per_s"]:
        good = {
            kind: statistics.median(ratios(row, rows, batch))
            for kind, row in ours.items()
            if kind in APPROXIMATE and row["recall_at"][str(K)] >= target and ratios(row, rows, batch)
        }
        if good:
            best = max(good, key=good.__getitem__)
            found = f"{best}, {good[best]:.0f} times at {ours[best]['recall_at'][str(K)]:.4f}"
            yield line(f"an approximate kind with recall@10 of {target:g} at least 100 times", found, good[best] >= 100)
        elif set(APPROXIMATE) & set(ours):
            yield line(f"an approximate kind with recall@10 of {target:g} at least 100 times", "none has it", False)
    for kind in ("hnsw", "ivf"):
        if kind in ours:
            seconds = ours[kind]["build"]["seconds"]
            aim = f"{kind} over {part['references']:,} built in under ten minutes"
            yield line(aim, f"{seconds:.0f} s", seconds < 600)
    if "ivf-pq" in ours:
        memory = ours["ivf-pq"]["memory"]
        found = f"{memory['resident'] / 1e6:.0f} MB, of which {memory['private'] / 1e6:.0f} MB private"
        yield line("a mapped ivf-pq resident in under 200 MB", found, memory["resident"] < 200e6)


def markdown(result: dict[str, Any]) -> str:
    about, options = result["machine"], result["options"]
    versions = ", ".join(f"{n} {v}" for n, v in about["versions"].items() if n in ("faiss-cpu", "faiss-gpu", "numpy"))
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; {versions}. Median of {options['rounds']} "
        f"rounds (smallest to largest); queries a second, k = {K}. Times: as fast as FAISS's IndexFlatIP with its "
        "defaults, in the same round."
    ]
    for part in result["sets"]:
        lines += ["", f"### {part['name']}", ""]
        lines.append("; ".join(f"{name} {value:.3g}" for name, value in part["nature"].items()) + ".")
        batches = list(part["rows"][0]["queries_per_s"])
        for batch in batches:
            lines += [
                "",
                f"| batches of {batch} | queries/s | times | recall@1 | recall@{K} |",
                "|---|---|---|---|---|",
            ]
            for row in part["rows"]:
                times = ratios(row, part["rows"], batch)
                found = row["recall_at"]
                lines.append(
                    f"| {row['title']} | {spread(row['queries_per_s'][batch])} | {spread(times) if times else ''} "
                    f"| {found['1']:.4f} | {found[str(K)]:.4f} |"
                )
        lines += [
            "",
            "| what | built in | tuned in | peak while building | bytes a reference on disk | in memory | resident "
            "| private | settings |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [size_row(row, part["references"]) for row in part["rows"]]
        lines += ["", *goals(part, float(options["target"]))]
        lines += [f"- not run: {title}: {why}" for title, why in part["failed"].items()]
    lines += [f"\n{name}: {why}" for name, why in result["skipped"].items()]
    lines += [
        "",
        "On disk: the whole folder, with the table of references. In memory: what opening the index and a thousand "
        f"queries, {SETTLED} at a time, add to a process that has its libraries loaded; resident counts all of that "
        "process, mapped files that others share included.",
    ]
    return "\n".join(lines)


def size_row(row: dict[str, Any], count: int) -> str:
    build, memory = row["build"], row["memory"]
    settings = ", ".join(f"{name} {value:g}" for name, value in build["parameters"].items())
    tuning = f"{build['tune_seconds']:.0f} s" if build.get("tune_seconds", 0) >= 0.5 else ""
    return (
        f"| {row['title']} | {build['seconds']:.0f} s | {tuning} | {build['peak_bytes'] / 1e6:.0f} MB "
        f"| {build['disk_bytes'] / count:.0f} | {(memory['resident'] - memory['libraries']) / count:.0f} "
        f"| {memory['resident'] / 1e6:.0f} MB | {memory['private'] / 1e6:.0f} MB | {settings} |"
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
