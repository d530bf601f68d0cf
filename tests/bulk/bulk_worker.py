"""A process of a job, for tests that kill some: python bulk_worker.py SOURCE FOLDER ROWS SECONDS

Its vectors are functions of the texts, so that no model has to be loaded; SECONDS a chunk.
"""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np

from polyvec.bulk.job import Job
from polyvec.bulk.plan import agreed_plan
from polyvec.interfaces import TextEncoder


class Hashes(TextEncoder):
    """Sixteen numbers of a text's hash."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def encode_iter(self, inputs, *, chunk_size=8192, options=None, report=None, **prompt):
        inputs = list(inputs)
        for start in range(0, len(inputs), 100):
            time.sleep(self.seconds)
            part = inputs[start : start + 100]
            digests = [hashlib.sha256(text.encode()).digest()[:16] for text in part]
            yield np.stack([np.frombuffer(each, np.uint8) for each in digests]).astype(np.float32)

    def similarity(self, a, b):
        raise NotImplementedError

    similarity_pairwise = similarity

    def get_embedding_dimension(self):
        return 16

    def fingerprint(self):
        return "hashes"


HOW = {"model": "hashes", "model_sha256": "0", "precision": "float32", "dimension": 16}


def main(source, folder, rows, seconds):
    plan = agreed_plan(Path(folder), Path(source), HOW, int(rows))
    made = Job(plan, Path(source), Path(folder), Hashes(float(seconds)), stale=1.5).run()
    print(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
