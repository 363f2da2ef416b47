"""Tiny archives and folders in the official LibriSpeech layout."""

import io
import tarfile

import numpy as np
import soundfile

CHAPTERS = (("19", "198", 3), ("103", "1240", 2), ("19", "227", 1))


def flac(seed, samples=None, rate=16000):
    rng = np.random.default_rng([7, seed])
    buffer = io.BytesIO()
    pcm = (3000 * rng.standard_normal(samples or int(rng.integers(8000, 24000)))).astype(np.int16)
    soundfile.write(buffer, pcm, rate, format="FLAC")
    return buffer.getvalue()


def subset_files(subset, chapters=CHAPTERS, transcript_first=False):
    """(name, bytes) of every file of a subset, chapter by chapter."""
    files = []
    for speaker, chapter, count in chapters:
        place = f"LibriSpeech/{subset}/{speaker}/{chapter}"
        ids = [f"{speaker}-{chapter}-{i:04d}" for i in range(count)]
        audio = [(f"{place}/{key}.flac", flac(1000 * int(chapter) + i)) for i, key in enumerate(ids)]
        lines = "".join(f"{key} {subset.split('-')[0].upper()} WORD {chr(65 + i)}\n" for i, key in enumerate(ids))
        text = [(f"{place}/{speaker}-{chapter}.trans.txt", lines.encode())]
        files += text + audio if transcript_first else audio[::-1] + text
    return files


def write_archive(path, files, members=()):
    """Writes files, and tarfile.TarInfo members without content, beside the tables that the archives hold too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in [("LibriSpeech/SPEAKERS.TXT", b";ID |SEX\n"), *files]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in members:
            tar.addfile(member)
    return path


def write_folder(root, files):
    for name, data in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
