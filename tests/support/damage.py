"""One changed byte at a time, at random places of the files of a folder."""

import random
from collections.abc import Iterator
from pathlib import Path


def changed_bytes(folder: Path, count: int, seed: int = 0) -> Iterator[str]:
    """Changes a byte, yields where, and restores the folder; half of the files by their size.

    The other half any file with the same chance: a manifest is small beside vectors.
    """
    chance = random.Random(seed)
    whole = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = [path for path, data in whole.items() if data]
    sizes = [len(whole[path]) for path in paths]
    for turn in range(count):
        (path,) = chance.choices(paths, sizes) if turn % 2 else [chance.choice(paths)]
        place, change = chance.randrange(len(whole[path])), chance.randrange(1, 256)
        damaged = bytearray(whole[path])
        damaged[place] ^= change
        path.write_bytes(damaged)
        yield f"{path.relative_to(folder)} byte {place} is {damaged[place]:#x}"
        for each in [each for each in folder.rglob("*") if each.is_file() and each not in whole]:
            each.unlink()
        for each, data in whole.items():
            each.parent.mkdir(parents=True, exist_ok=True)
            if not each.is_file() or each.read_bytes() != data:
                each.write_bytes(data)
