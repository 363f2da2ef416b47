"""N-gram language models from transcripts, written as ARPA files.

Interpolated Kneser-Ney smoothing (Chen and Goodman, 1999, section 3.7) with one discount D for each order::

    p(w | h) = max(c(h, w) - D, 0) / c(h) + b(h) p(w | h without its first word),    b(h) = D n(h) / c(h)

c counts n-grams at the highest order, and at lower orders, where the n-gram does not begin a sentence, the different
words before it; n(h) is the number of words seen after h. Below the unigrams lies the uniform distribution over the
vocabulary. Probabilities of n-grams that were seen are written interpolated, so that the usual backing off gives p.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from etils import epath

from i3d_jax import files

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
MIN_ORDER, MAX_ORDER = 2, 6  # what the decoder's KenLM reads

NGram = tuple[str, ...]

_DISCOUNTS = (0.1, 0.9)
_NEVER = -99.0  # log10 of the probability that a sentence begins again


def train_ngrams(sentences: Iterable[Sequence[str]], order: int, vocabulary: Iterable[str] = ()) -> str:
    """An n-gram language model as the text of an ARPA file.

    Args:
      sentences: words, or pieces, of each.
      order: longest n-grams, 2 to 6.
      vocabulary: further words, that need not occur.

    Raises:
      ValueError: no sentences, a bad order, or a word that is a mark of the format or holds a space.
    """
    if not MIN_ORDER <= order <= MAX_ORDER:
        raise ValueError(f"order={order}: expected {MIN_ORDER} to {MAX_ORDER}")
    counts: list[Counter[NGram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        marked = (BEGIN, *sentence, END)
        for size in range(1, order + 1):
            counts[size - 1].update(marked[i : i + size] for i in range(len(marked) - size + 1))
    words = {*(word for (word,) in counts[0]), *vocabulary}
    if not counts[0]:
        raise ValueError("no transcripts to train a language model from")
    for word in words - {BEGIN, END}:
        if word == UNKNOWN or not word or word.split() != [word]:
            raise ValueError(
                f"{word!r} cannot be a word of a language model: it is a mark of ARPA files, or has spaces"
            )
    for (word,), count in counts[0].items():
        if word in (BEGIN, END) and count != counts[0][BEGIN,]:
            raise ValueError(f"{word!r} cannot be a word of a language model: it marks the ends of sentences")
    return _arpa(_probabilities(counts, sorted(words - {BEGIN, END})))


def write_ngrams(path: epath.PathLike, model: str) -> None:
    """Writes an ARPA file, atomically."""
    files.write_text(path, model)


def read_unigrams(path: epath.PathLike) -> list[str]:
    """The vocabulary of an ARPA file, marks of sentences and unknown words left out.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no ARPA file, or holds no words.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such language model; make one with python -m i3d_jax.cli.ngram")
    words: list[str] | None = None
    try:
        with file.open() as lines:
            for line in map(str.strip, lines):
                if line == "\\1-grams:":
                    words = []
                elif words is not None and line.startswith("\\"):
                    break
                elif words is not None and line:
                    words.append(line.split()[1])
    except (UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"{file} is not an ARPA file: {error}") from None
    words = [word for word in words or () if word.lower() not in (BEGIN, END, UNKNOWN)]
    if not words:
        raise ValueError(f"{file} is not an ARPA file with words; make one with python -m i3d_jax.cli.ngram")
    return words


def _probabilities(counts: list[Counter[NGram]], vocabulary: list[str]) -> list[dict[NGram, tuple[float, float]]]:
    """Of each order: n-gram to its probability, and to the backoff of the history that it is (0 if it is none)."""
    adjusted = [*(_continuations(counts, size) for size in range(1, len(counts))), counts[-1]]
    adjusted[0] = Counter({gram: count for gram, count in adjusted[0].items() if gram != (BEGIN,)})
    every = [(word,) for word in (*vocabulary, END, UNKNOWN)]
    lower: dict[NGram, float] = {(): 1 / len(every)}
    orders: list[dict[NGram, float]] = []
    backoffs: dict[NGram, float] = {}
    for size, own in enumerate(adjusted, start=1):
        discount = _discount(own)
        totals: Counter[NGram] = Counter()
        seen: Counter[NGram] = Counter()
        for gram, count in own.items():
            totals[gram[:-1]] += count
            seen[gram[:-1]] += 1
        for history, total in totals.items():
            backoffs[history] = discount * seen[history] / total
        probabilities = {}
        for gram in every if size == 1 else own:
            history = gram[:-1]
            below = lower[gram[1:]] if size > 1 else lower[()]
            probabilities[gram] = max(own[gram] - discount, 0) / totals[history] + backoffs[history] * below
        orders.append(probabilities)
        lower = probabilities
    orders[0][BEGIN,] = 0.0
    return [{gram: (p, backoffs.get(gram, 0.0)) for gram, p in own.items()} for own in orders]


def _continuations(counts: list[Counter[NGram]], size: int) -> Counter[NGram]:
    """Different words before each n-gram of this size; of one that begins a sentence how often it does."""
    before = Counter(gram[1:] for gram in counts[size])
    return before + Counter({gram: count for gram, count in counts[size - 1].items() if gram[0] == BEGIN})


def _discount(counts: Counter[NGram]) -> float:
    """n1 / (n1 + 2 n2) of the n-grams that occur once and twice, within bounds: few transcripts may have none."""
    once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
    low, high = _DISCOUNTS
    return min(max(once / (once + 2 * twice), low), high) if once else low


def _arpa(orders: list[dict[NGram, tuple[float, float]]]) -> str:
    lines = ["\\data\\", *(f"ngram {size}={len(own)}" for size, own in enumerate(orders, start=1))]
    for size, own in enumerate(orders, start=1):
        lines += ["", f"\\{size}-grams:"]
        for gram, (probability, backoff) in sorted(own.items()):
            fields = [f"{math.log10(probability) if probability else _NEVER:.7f}", " ".join(gram)]
            lines.append("\t".join([*fields, f"{math.log10(backoff):.7f}"] if backoff else fields))
    return "\n".join([*lines, "", "\\end\\", ""])
