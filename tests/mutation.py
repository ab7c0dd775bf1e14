"""Do the tests notice a wrong program? A random sample of one-token changes, each run against its tests.

    pip install cosmic-ray jax torch
    python tests/mutation.py --mutants 160 --out docs/reliability/mutants.csv

Each mutant of a module is tested by that module's own test files, in the order below, until one test fails.
"""

import argparse
import csv
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

ROOT = pathlib.Path(__file__).parent.parent
# The tests of each module, those first that fail soonest.
TESTS = {
    "_cells/pure": ["cell_refusals", "any_cell", "outer_variables", "cell_rnn", "ports"],
    "_cells/weights": ["timestep_weights", "cell_rnn", "any_cell"],
    "_layers/affine": ["gated", "simple_rnn", "numpy_loop", "from_tied"],
    "_layers/dense": ["dense", "sharing", "start"],
    "_layers/gru": ["drop_in", "numpy_loop", "gated"],
    "_layers/layer": [
        "sharing",
        "structured_sharing",
        "freezing",
        "shared_weights",
        "saving",
        "start",
        "rnn",
    ],
    "_layers/lstm": ["drop_in", "numpy_loop", "gated"],
    "_layers/recurrent": ["rnn", "start", "numpy_loop", "compilation", "properties", "cell_rnn"],
    "_layers/rnn": ["cell_refusals", "cell_rnn", "any_cell", "outer_variables"],
    "_layers/shapes": ["rnn", "arguments"],
    "_layers/simple_rnn": ["drop_in", "numpy_loop", "simple_rnn"],
    "_loops/batched": ["dense", "sharing", "numpy_loop"],
    "_loops/compilation": ["compilation", "rnn"],
    "_loops/gates": ["numpy_loop", "gated", "recurrence"],
    "_loops/phase": ["start"],
    "_loops/recurrence": ["numpy_loop", "gated", "recurrence", "properties"],
    "_loops/scan": ["scan", "numpy_loop", "recurrence"],
    "_loops/tensorflow_loop": ["scan", "numpy_loop", "recurrence", "precision", "call_paths"],
    "_weights/draws": ["timestep_weights"],
    "_weights/moves": ["sharing", "structured_sharing", "shared_weights", "from_tied", "cell_rnn"],
    "_weights/per_set": ["timestep_weights", "cell_rnn"],
    "_weights/sets": ["sharing", "freezing", "dense", "start", "numpy_loop", "properties"],
    "_weights/stacks": ["sharing", "freezing", "saving", "start", "rnn"],
    "_weights/weights": ["sharing", "structured_sharing", "saving", "start", "numpy_loop"],
    "optimizers": ["optimizers", "per_timestep"],
    "regularizers": ["regularizers"],
    "sharing/_base": ["sharing_arguments", "sharing", "structured_sharing"],
    "sharing/_basis": ["structured_sharing", "sharing"],
    "sharing/_low_rank": ["structured_sharing", "sharing"],
    "sharing/_sets": ["sharing", "structured_sharing", "dense"],
}
# These have a few lines that are another backend's.
BACKENDS = {module: ["tensorflow", "jax", "torch"] for module in ("_loops/recurrence", "_loops/scan")}
LIMIT = 1800  # seconds; a mutant that loops for ever has been noticed


def possible_mutants() -> list[MutationSpec]:
    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/session.sqlite") as database:
        init([pathlib.Path("untied_rnn") / f"{module}.py" for module in TESTS], database, {})
        mutants = [mutant for item in database.work_items for mutant in item.mutations]
    # `|` stands in annotations only, where another operator is an error at import and proves nothing.
    mutants = [mutant for mutant in mutants if "BitOr" not in mutant.operator_name]
    return sorted(mutants, key=lambda m: (str(m.module_path), m.start_pos, m.operator_name, m.occurrence))


def enter_copy() -> None:
    """A worker mutates a copy of the tree that is its own."""
    copy = pathlib.Path(tempfile.mkdtemp(prefix="mutants_"))
    for name in ("untied_rnn", "tests", "examples", "docs", "pyproject.toml", "README.md"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), HYPOTHESIS_PROFILE="any failure")


def run(mutant: MutationSpec) -> dict[str, str | int]:
    module = mutant.module_path.relative_to("untied_rnn").with_suffix("").as_posix()
    files = [f"tests/test_{name}.py" for name in TESTS[module]]
    pytest = f"{sys.executable} -m pytest -x -q -m 'not slow' {' '.join(files)}"
    start = time.perf_counter()
    for backend in BACKENDS.get(module, ["tensorflow"]):
        result = mutate_and_test([mutant], f"env KERAS_BACKEND={backend} {pytest}", LIMIT)
        if result.is_killed:
            break
    outcome = result.test_outcome or result.worker_outcome
    removed, added = "", ""
    for line in (result.diff or "").splitlines():
        if line.startswith(("-", "+")) and not line.startswith(("---", "+++")):
            removed, added = (line[1:].strip(), added) if line[0] == "-" else (removed, line[1:].strip())
    return {
        "module": module,
        "line": mutant.start_pos[0],
        "outcome": "timeout" if result.output == "timeout" else outcome.value,
        "seconds": round(time.perf_counter() - start),
        "original": removed,
        "mutant": added,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mutants", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mutants.csv"))
    args = parser.parse_args()
    os.chdir(ROOT)
    mutants = possible_mutants()
    sample = random.Random(args.seed).sample(mutants, args.mutants)
    print(f"{len(sample)} of {len(mutants)} mutants")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with ProcessPoolExecutor(args.workers, initializer=enter_copy) as pool:
        for future in as_completed([pool.submit(run, mutant) for mutant in sample]):
            rows.append(future.result())
            print(len(rows), *rows[-1].values(), sep=" | ", flush=True)
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(sorted(rows, key=lambda row: (row["module"], row["line"])))
    killed = sum(row["outcome"] != "survived" for row in rows)
    print(f"{killed} of {len(rows)} mutants noticed ({100 * killed / len(rows):.1f} %)")


if __name__ == "__main__":
    main()
