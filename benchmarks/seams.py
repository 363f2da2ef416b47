"""What windows cost in words: error rates of long recordings of known text, and what is lost or doubled at the seams.

Command: ``python benchmarks/seams.py [--model=FOLDER] [--windows=5.05 8 15] [--json=FILE]``; a minute or two. The
recordings are the 150 test utterances of the demo corpus one after the other, without pauses and with pauses of 0.4 s.

    alone           WER of the utterances, each recognised by itself
    without seams   WER of the same utterances in the recording, each heard in a window that has it in its middle: what
                    the model understands of speech that begins and ends anywhere
    merged          WER of the recording in windows, merged
    at a seam       tokens in which the overlap of two windows differs from what a window with the overlap in its middle
                    hears there: merged, and the mean of the two windows, each of which hears all of the overlap. Where
                    the first is not larger, merging loses and doubles nothing.
    cost            windows x their length / length of the recording
"""

import argparse
from pathlib import Path

from measure import finish, parse

import i3d_jax
from i3d_jax.data.corpora import DataConfig, load_corpus
from i3d_jax.inference.scoring import score
from i3d_jax.inference.transcription import alone
from i3d_jax.inference.windows import default_overlap, plan_windows
from tests.seams import joined, seam_quality

ROOT = Path(__file__).parents[1]
PAUSES = (0.0, 0.4)


def flags_of(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark alone."""
    parser.add_argument("--model", default=str(ROOT / "docs" / "demo_model"), help="a run or a bundle")
    parser.add_argument("--windows", type=float, nargs="+", default=[5.05, 8.0, 15.0], help="seconds")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], help="beside the default")


def main() -> None:
    """Print the table; the last line is the difference between merged and single windows, over all seams."""
    flags = parse(__doc__ or "", 1, flags_of)
    asr = i3d_jax.load(flags.model)
    corpus = load_corpus(DataConfig(source="demo"), "test")
    heard = [asr.recognize(*alone(corpus.load_audio(i)), asr.decision(), "conditional") for i in range(len(corpus))]
    texts = [utterance.text for utterance in corpus.utterances]
    by_itself = score(texts, [asr.text(recognition) for recognition in heard]).wer
    print(
        "| pause | window | overlap | cost | alone | without seams | merged | seams | at a seam: merged | one window |"
    )
    print("| --- " * 10 + "|")
    rows, excess, seams = [], 0.0, 0
    for pause in PAUSES:
        recording = joined(corpus, pause)
        for window in flags.windows:
            for overlap in sorted({default_overlap(window), *(o for o in flags.overlaps if o <= window / 2)}):
                plan = plan_windows(window, overlap, 16_000)
                found = seam_quality(asr, recording, plan)
                cost = plan.count(len(recording.samples)) * plan.length / len(recording.samples)
                excess += found.seams * (found.merged_differs - found.window_differs)
                seams += found.seams
                row = {
                    "pause": pause,
                    "window": window,
                    "overlap": overlap,
                    "cost": cost,
                    "alone": by_itself,
                    "without_seams": found.without_seams.wer,
                    "merged": found.merged.wer,
                    "seams": found.seams,
                    "merged_differs": found.merged_differs,
                    "window_differs": found.window_differs,
                    "tokens": found.tokens,
                }
                rows.append(row)
                print(
                    f"| {pause:g} s | {window:g} s | {overlap:.2f} s | {cost:.2f} | {by_itself:.1f} | "
                    f"{found.without_seams.wer:.1f} | {found.merged.wer:.1f} | {found.seams} | "
                    f"{found.merged_differs:.2f} of {found.tokens:.1f} | {found.window_differs:.2f} |",
                    flush=True,
                )
    finish(flags, {"rows": rows}, {"tokens_changed_by_a_seam": excess / seams})


if __name__ == "__main__":
    main()
