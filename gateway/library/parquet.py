"""`python -m gateway.library.parquet FILE`: the rows of a Parquet file as lines of JSON.

It runs in a process of its own, without the environment of the gateway.
"""

from __future__ import annotations

import resource
import sys

MEMORY_BYTES_MAX = 8 << 30
CPU_S_MAX = 120
ROWS_TOGETHER = 100


def main(path: str) -> int:
    """Write to standard output until nobody reads it any more."""
    import msgspec
    import pyarrow.parquet

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    encoder = msgspec.json.Encoder(enc_hook=str)
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS_TOGETHER, use_threads=False):
                for row in batch.to_pylist():
                    sys.stdout.buffer.write(encoder.encode(row) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        return 0
    except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        print(str(error)[:500], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
