"""The command line of tools/bench, and the results' file that its parts share."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

import bench_ca
import bench_metadata
import bench_network

RESULTS = Path(__file__).resolve().parent.parent / "build" / "bench.json"


def merge(path: Path, results: Mapping[str, float]) -> None:
    """Add numbers to the flat JSON object in the file; what other parts wrote stays."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        kept = {}
    if not isinstance(kept, dict):
        kept = {}
    kept.update(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever reads it at the same time sees the old object or the new one.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(path)


def count(text: str) -> int:
    """A whole number of at least 1; raises argparse's error."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("is 1 or more")
    return number


def main() -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(prog="bench", description="Runs Mooring's benchmarks.")
    parser.add_argument(
        "part", nargs="?", choices=["all", "metadata", "ca", "network"], default="all"
    )
    parser.add_argument("--instances", type=count, default=1000, help="instances that boot (1000)")
    parser.add_argument(
        "--certificates",
        type=count,
        default=1000,
        help="ECDSA certificates of each side in a round (1000); RSA: a fourth",
    )
    parser.add_argument("--ports", type=count, default=1000, help="ports of a host (1000)")
    parser.add_argument("--rounds", type=count, default=3, help="rounds; medians are given (3)")
    parser.add_argument(
        "--workers",
        type=count,
        help="gunicorn's workers (as etc/gunicorn/*.py have it: two a core; ca one, two at least)",
    )
    parser.add_argument(
        "--connections",
        type=count,
        default=32,
        help="kept connections to NGINX, each with one request under way (32)",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="build/bench.json")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    if arguments.part in ("all", "metadata"):
        results = bench_metadata.run(
            instances=arguments.instances,
            rounds=arguments.rounds,
            workers=arguments.workers or 2 * cores,
            connections=arguments.connections,
        )
        merge(arguments.output, results)
    if arguments.part in ("all", "ca"):
        results = bench_ca.run_ca(
            certificates=arguments.certificates,
            rounds=arguments.rounds,
            workers=arguments.workers or max(2, cores),
        )
        merge(arguments.output, results)
    if arguments.part in ("all", "network"):
        results = bench_network.run(ports=arguments.ports, rounds=arguments.rounds)
        merge(arguments.output, results)
    print(f"\nwritten to {arguments.output}")
