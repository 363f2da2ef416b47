"""Memory and time of reading the index of a corpus, and of its labels, per utterance.

Command: ``python benchmarks/corpus_at_scale.py [UTTERANCES ...] [--json FILE]``. Without numbers: 1e5. A folder in
LibriSpeech layout is made of hard links to a few short FLAC files, with transcripts of nine random words (what is said
in 3.6 s), read, prepared as ArrayRecord shards and read again. Each reading runs in a process of its own. It prints a
Markdown table:

- first, again: reading without and with the cached index; ``data.verify`` is off
- labels: tokenising; check: ``reject_infeasible``; digest: ``TrainingData.digest``; all in seconds of one processor for
  a million utterances, waiting for the disk not counted
- cache: the cached index; corpus: resident memory that it adds; labels: their arrays, and what they would take
  as lists of lists; bytes per utterance
- peak: largest resident memory of the process, bytes per utterance

Sizes below 1e5 say little: what is there before reading is part of the peak. A million utterances need 5 GB of disk.
"""

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PER_CHAPTER, PER_FILE = 100, 1000  # utterances of a folder; hard links to a file
WORDS, VOCABULARY, PIECES = 9, 3000, 500
COLUMNS = ("first_s", "again_s", "cache_bytes", "corpus_bytes", "labels_s", "labels_bytes", "lists_bytes", "check_s")
COLUMNS = (*COLUMNS, "digest_s", "peak_bytes")


def status(field: str) -> int:
    """Bytes of a field of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def make_folder(root: Path, utterances: int) -> None:
    """Writes the folder ``train`` of a corpus."""
    rng = np.random.default_rng(0)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    words = np.array(["".join(rng.choice(letters, n)) for n in rng.integers(2, 9, VOCABULARY)])
    for chapter in range(-(-utterances // PER_CHAPTER)):
        folder = root / "train" / str(1 + chapter // 10) / str(chapter)
        folder.mkdir(parents=True)
        lines = []
        for i in range(min(PER_CHAPTER, utterances - chapter * PER_CHAPTER)):
            number = chapter * PER_CHAPTER + i
            if number % PER_FILE == 0:
                original = folder / "original"
                soundfile.write(original, 0.1 * rng.standard_normal(4000), 16000, format="FLAC", subtype="PCM_16")
            name = f"{1 + chapter // 10}-{chapter}-{i:04d}"
            os.link(original, folder / f"{name}.flac")
            lines.append(f"{name} {' '.join(rng.choice(words, WORDS))}\n")
        (folder / f"{folder.parent.name}-{chapter}.trans.txt").write_text("".join(lines))


def size_of_lists(labels: Sequence[list[int]]) -> int:
    """Bytes of a list of lists of token ids; Python shares the integers up to 256."""
    lists = (sys.getsizeof(ids) + sum(sys.getsizeof(i) for i in ids if i > 256) for ids in labels)
    return 8 * len(labels) + sum(lists)


def read(source: str, cache: Path, again: bool) -> dict[str, float]:
    """Reads the corpus; what was measured, for all utterances."""
    from i3d_jax.data.corpora import DataConfig, load_corpus, reject_infeasible
    from i3d_jax.data.token_sequences import TokenSequences
    from i3d_jax.data.tokenizer import Tokenizer, TokenizerConfig
    from i3d_jax.training_data import TrainingData

    config = DataConfig(source=source, cache_dir=str(cache), verify=False)
    importlib.import_module("tensorflow_datasets")  # as reading shards would
    gc.collect()
    before, start = status("VmRSS"), time.process_time()
    corpus = load_corpus(config, "train")
    found = {"again_s" if again else "first_s": time.process_time() - start}
    if again:
        gc.collect()
        found["corpus_bytes"] = status("VmRSS") - before
        texts = [u.text for u in corpus.utterances[:2000]]
        tokenizer = Tokenizer.train(texts, TokenizerConfig(kind="bpe", vocab_size=PIECES))
        start = time.process_time()
        labels = TokenSequences(tokenizer.encode(u.text) for u in corpus.utterances)
        found["labels_s"] = time.process_time() - start
        found["labels_bytes"] = sum(x.nbytes for x in vars(labels).values())
        found["lists_bytes"] = size_of_lists(labels)
        start = time.process_time()
        corpus, labels = reject_infeasible(corpus, labels, lambda num_samples: 10**6)
        found["check_s"] = time.process_time() - start
        start = time.process_time()
        TrainingData(corpus, corpus, tokenizer, labels, None).digest()  # type: ignore[arg-type]
        found["digest_s"] = time.process_time() - start
        found["peak_bytes"] = status("VmHWM")
        found["cache_bytes"] = sum(path.stat().st_size for path in cache.rglob("*.json"))
    return found


def measure(source: str, cache: Path, utterances: int) -> dict[str, float]:
    """Times for a million utterances, bytes for one."""
    found: dict[str, float] = {}
    for again in ("", "again"):
        command = [sys.executable, __file__, f"--read={source}", f"--cache={cache}", f"--again={again}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
        found |= json.loads(done.stdout.splitlines()[-1])
    return {key: x / utterances * (1 if key.endswith("bytes") else 1e6) for key, x in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("utterances", nargs="*", type=lambda text: int(float(text)), default=(10**5,))
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("--read", help=argparse.SUPPRESS)  # a source, in the process that measures
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", type=bool, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.read, args.cache, args.again)))
        return
    rows: list[dict[str, Any]] = []
    names = ("first, s", "again, s", "cache, B", "corpus, B", "labels, s", "labels, B", "as lists, B", "check, s")
    names = (*names, "digest, s", "peak, B")
    print(f"| utterances | source | {' | '.join(names)} |")
    print("| --- " * (len(names) + 2) + "|", flush=True)
    for utterances in args.utterances:
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            make_folder(root / "made", utterances)
            prepare = [sys.executable, "-m", "i3d_jax.cli.prepare", str(root / "made"), str(root / "tfds")]
            prepare += ["--splits=train", f"--cache-dir={root / 'cache'}"]
            subprocess.run(prepare, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for kind, source in (("folder", str(root / "made")), ("ArrayRecord", f"tfds:{root / 'tfds' / 'made'}")):
                row = measure(source, root / f"cache-{kind}", utterances)
                rows.append({"utterances": utterances, "source": kind, **row})
                cells = [f"{row[key]:,.4g}" for key in COLUMNS]
                print(f"| {utterances:.0e} | {kind} | {' | '.join(cells)} |", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
