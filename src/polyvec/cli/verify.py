"""Check a folder of vectors that `polyvec embed -o FOLDER/` wrote, against its manifest.

Exit status 2 if a shard is missing or damaged, an id occurs twice or a vector is not finite.

example: polyvec verify vectors/
"""

import argparse
from pathlib import Path

from polyvec.cli import common
from polyvec.errors import DataError

SHOWN = 20


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=common.path, help="check this folder")


def run(options: argparse.Namespace) -> None:
    from polyvec.bulk.verify import verify

    folder: Path = options.folder
    found = verify(folder)
    for line in found.problems[:SHOWN]:
        print(line)
    if found.problems:
        num = len(found.problems)
        if num > SHOWN:
            print(f"... and {num - SHOWN} more")
        raise DataError(
            f"{folder}: {num} problem{'s' if num > 1 else ''}; delete the shards that are named "
            "and run the job's command again"
        )
    print(
        f"{folder}: whole; {found.rows} x {found.dimension} in {found.shards} shards, "
        f"{found.bytes / 2**20:.1f} MiB"
    )
