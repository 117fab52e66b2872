"""Kill a build of 96 cells on 8 GPU slots again and again, then see that it comes out whole.

    python -m tests.deploy.kill_builds [--kills 50] [--seed 1]

Too long for every test run; ``test_build.py`` does the same with three kills. The whole tree gets
kill -9 at random moments. In the end every artifact has to be what one undisturbed build makes, and
nothing half made may be left.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from pathlib import Path

from tests.deploy.matrix import Matrix, kill_tree

SHAPE = {"models": 4, "precisions": ("fp16", "fp8", "int8_wo"), "batches": 8, "tp": 1}
LONGEST_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="that each stage takes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole = Matrix(Path(folder) / "whole", **SHAPE)
        assert whole.run().returncode == 0
        killed = Matrix(Path(folder) / "killed", **SHAPE, seconds=options.seconds)
        kills, runs = torment(killed, options.kills, random.Random(options.seed))
        assert killed.run().returncode == 0
        assert killed.digests() == whole.digests(), "artifacts differ from those of one build"
        assert not killed.damaged()
        assert not killed.half_made()
        made = len(killed.digests())
        assert len(list((killed.workspace / "engines").iterdir())) == killed.cells == 96
    print(f"{kills} kills in {runs} runs; {made} files of 96 cells as one build makes them")


def torment(matrix: Matrix, kills: int, draw: random.Random) -> tuple[int, int]:
    """Start and kill; returns how often it was killed before it was done, of how many starts."""
    done = runs = 0
    began = time.monotonic()
    while done < kills:
        running = matrix.start()
        runs += 1
        try:
            running.wait(draw.uniform(0, LONGEST_S))
            print(f"whole after {done} kills, {time.monotonic() - began:.0f} s", flush=True)
            break
        except subprocess.TimeoutExpired:
            kill_tree(running.pid)
            running.wait()
            done += 1
            assert not matrix.damaged(), matrix.damaged()
            engines = len(list((matrix.workspace / "store/engine").glob("[!.]*")))
            print(f"kill {done}: {engines} engines so far", flush=True)
    return done, runs


if __name__ == "__main__":
    main()
