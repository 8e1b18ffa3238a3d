"""The claims of the five papers that this project builds on, each with the paper's figure, ours, and a verdict.

    python benchmarks/papers.py --quick --data-root data --results papers.jsonl --write docs/papers.md
    python benchmarks/papers.py --data-root data --results papers.jsonl --write docs/papers.md

The first command takes about 15 minutes on two cores, with one seed and small subsets; the second has the sizes of the
other benchmarks, three seeds, and takes hours. Finished measurements are stored with `--results` and not repeated, so
an interrupted run continues; quick and full measurements are kept apart. `--write` renders the page after measuring;
`--measured-only` shows what is stored so far.

The papers' claims, our measurements and the rules are in `paper_claims/`, one module per paper.
"""

import argparse
import datetime
import logging
import multiprocessing
import traceback
import warnings
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from harness.runs import Figures, Results, benchmark_parser, silence_lightning, with_seconds
from paper_claims.claims import Measurement, Paper
from paper_claims.page import Run, page, paper_lines, summary_lines
from paper_claims.paper_000 import PAPER as PAPER_000
from paper_claims.paper_001 import PAPER as PAPER_001
from paper_claims.paper_002 import PAPER as PAPER_002
from paper_claims.paper_003 import PAPER as PAPER_003
from paper_claims.paper_004 import PAPER as PAPER_004

from lightning_poison.serialization import atomic_path

PAPERS = {paper.number: paper for paper in (PAPER_000, PAPER_001, PAPER_002, PAPER_003, PAPER_004)}
QUICK_SEEDS, FULL_SEEDS = 1, 3


def start_worker() -> None:
    """Limit a worker process to one thread, and silence what the libraries say."""
    torch.set_num_threads(1)
    silence_lightning()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")


def measure(measurement: Measurement, root: Path, sizes: dict[str, Any], seed: int) -> Figures:
    """Run a measurement in a worker process, and add the date and its seconds."""
    figures, wall, cpu = with_seconds(lambda: measurement.run(root, seed, **sizes))
    return {**figures, "date": datetime.date.today().isoformat(), "wall_s": wall, "cpu_s": cpu}


def stored(results: Results, key: Figures, done: Future[Figures]) -> bool:
    """Store the figures of a measurement, or print why it failed; the others go on."""
    error = done.exception()
    if error is None:
        results.store(key, done.result())
    else:
        print(f"{key} failed:", *traceback.format_exception(error), sep="\n", flush=True)
    return error is None


def measure_all(papers: list[Paper], results: Results, args: argparse.Namespace) -> dict[str, list[Figures]]:
    """Return the figures of each measurement over seeds; what the results file lacks is measured now."""
    wanted = [
        (measurement, seed, measurement.key(quick=args.quick, seed=seed))
        for paper in papers
        for measurement in paper.measurements
        if measurement.sizes(quick=args.quick) is not None
        for seed in range(args.seeds)
    ]
    missing = [each for each in wanted if results.find(each[2]) is None and not args.measured_only]
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=start_worker) as pool:
            keys: dict[Future[Figures], Figures] = {}
            for measurement, seed, key in missing:
                sizes = measurement.sizes(quick=args.quick) or {}
                keys[pool.submit(measure, measurement, args.data_root, sizes, seed)] = key
            try:
                failed = [keys[done] for done in as_completed(keys) if not stored(results, keys[done], done)]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if failed:
            raise SystemExit(f"{len(failed)} of {len(missing)} measurements failed; the others are stored: {failed}")
    found: dict[str, list[Figures]] = {}
    for measurement, _, key in wanted:
        figures = results.find(key)
        if figures is not None:
            found.setdefault(measurement.name, []).append(figures)
    return found


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.set_defaults(seeds=None)
    parser.add_argument("--quick", action="store_true", help="small sizes and, by default, one seed")
    parser.add_argument("--papers", nargs="+", choices=list(PAPERS), default=list(PAPERS), help="default: all")
    parser.add_argument(
        "--jobs", type=int, default=2, help="measurements at the same time, one thread each; default: 2"
    )
    parser.add_argument("--measured-only", action="store_true", help="show stored results, and measure nothing")
    parser.add_argument("--write", type=Path, help="Markdown page to write, such as docs/papers.md")
    args = parser.parse_args()
    if args.seeds is None:
        args.seeds = QUICK_SEEDS if args.quick else FULL_SEEDS
    papers = [PAPERS[number] for number in args.papers]
    found = measure_all(papers, Results(args.results), args)
    run = Run.of(found, quick=args.quick, seeds=args.seeds)
    for paper in papers:
        print("\n".join(paper_lines(paper, found)))
    print("\n".join(summary_lines(papers, found)))
    print(f"{run}.", flush=True)
    if args.write is not None:
        with atomic_path(args.write) as partial_file:
            partial_file.write_text(page(papers, found, run))


if __name__ == "__main__":
    main()
