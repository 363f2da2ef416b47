import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from i3d_jax.audio.frontend import FrontendConfig, num_frames
from i3d_jax.inference.windows import FRAME, HeardWindow, Piece, WindowPlan, cut_windows, merge, plan_windows
from i3d_jax.model.subsampling import num_subsampled_frames

# -- Planning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["kaldi", "espnet"])
def test_the_grid_is_that_of_encoder_frames(preset):
    frames = lambda samples: num_subsampled_frames(num_frames(FrontendConfig(preset), samples))  # noqa: E731
    for samples in (FRAME * 5, FRAME * 5 + 123, FRAME * 700 + 639):
        assert frames(samples + FRAME) == frames(samples) + 1


def test_a_plan_is_what_was_asked_for_on_the_grid():
    plan = plan_windows(30.0, 2.0, 16000)
    assert plan == (480000, 448000) and plan.overlap_frames == 50
    plan = plan_windows(5.05, 1.01, 16000)
    assert plan.length == 126 * FRAME and plan.overlap_frames == 25
    for seconds in (0.5, 481.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"window_seconds={seconds}: expected 1 to 480: attention"):
            plan_windows(seconds, 1.0, 16000)
    for seconds in (0.0, 5.1, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"overlap_seconds={seconds}: expected 0.4 to 5, half of window_seconds"):
            plan_windows(10.0, seconds, 16000)


def blocks_of(samples, sizes):
    """The samples in blocks of these sizes, again and again."""
    position = 0
    for size in itertools.cycle(sizes):
        if position >= len(samples):
            return
        yield samples[position : position + size]
        position += size


plans = st.tuples(st.integers(2, 12), st.integers(1, 6)).map(lambda x: WindowPlan(x[0] * FRAME, min(x) * FRAME))


@given(plan=plans, num_samples=st.integers(0, 40 * FRAME), sizes=st.lists(st.integers(1, 9000), min_size=1))
def test_windows_cover_the_recording(plan, num_samples, sizes):
    samples = np.arange(num_samples, dtype=np.float32)
    windows = list(cut_windows(blocks_of(samples, sizes), plan))
    assert len(windows) == plan.count(num_samples)
    for window in windows:
        start = window.first_frame * FRAME
        np.testing.assert_array_equal(window.samples, samples[start : start + plan.length])
    starts = [window.first_frame * FRAME for window in windows]
    assert starts[0] == 0 and starts[:-1] == [i * plan.step for i in range(len(starts) - 1)]
    assert starts[-1] + len(windows[-1].samples) == num_samples
    if len(windows) > 1:  # all of one shape, the last one but for a part of a frame
        assert all(len(window.samples) == plan.length for window in windows[:-1])
        assert plan.length - FRAME < len(windows[-1].samples) <= plan.length
        assert 0 < starts[-1] - starts[-2] <= plan.step


def test_samples_are_held_for_two_windows_at_most():
    plan, read = WindowPlan(10 * FRAME, 8 * FRAME), 0

    def blocks():
        nonlocal read
        while True:  # without an end: whoever waits for it waits for ever
            read += FRAME
            yield np.zeros(FRAME, np.float32)

    for index, window in zip(range(1000), cut_windows(blocks(), plan), strict=False):
        assert len(window.samples) == plan.length
        assert read == index * plan.step + plan.length  # nothing was read ahead
        held = window.samples if window.samples.base is None else window.samples.base
        assert held.size <= 2 * plan.length


def test_the_number_of_windows_is_linear_in_the_length():
    plan = plan_windows(30.0, 2.0, 16000)
    minutes = [plan.count(n * 60 * 16000) for n in (1, 10, 60, 600)]
    assert minutes == [3, 22, 129, 1286]


# -- Merging ----------------------------------------------------------------------------------------------------------

WINDOW, OVERLAP, SHIFT, EDGE = 60, 24, 2, 4
STEP = WINDOW - OVERLAP


def heard(first_frame, path, clear=9.0):
    path = np.asarray(path, np.int32)
    return HeardWindow(first_frame, path, np.where(path == 0, clear, -clear).astype(np.float32))


def merged(windows, overlap=OVERLAP):
    """The tokens of all pieces, which must adjoin and hold their tokens."""
    pieces = list(merge(iter(windows), overlap))
    assert len(pieces) == len(windows)
    assert pieces[0].start_frame == windows[0].first_frame
    assert pieces[-1].end_frame == windows[-1].first_frame + len(windows[-1].path)
    for before, after in itertools.pairwise(pieces):
        assert before.end_frame == after.start_frame
    for piece, window in zip(pieces, windows, strict=True):
        assert window.first_frame <= piece.start_frame <= piece.end_frame <= window.first_frame + len(window.path)
    return np.concatenate([piece.tokens for piece in pieces]).tolist()


def collapsed(path):
    return [token for token, _ in itertools.groupby(path) if token]


def window_starts(length):
    """Windows as `cut_windows` lays them, the last one shifted back."""
    starts = list(range(0, max(length - WINDOW, 0), STEP))
    return [*starts, max(length - WINDOW, 0)]


@st.composite
def recordings(draw):
    """Tokens and the frames in which each is emitted, with a pause of 6 frames within every overlap."""
    length = draw(st.integers(WINDOW + 1, 5 * WINDOW))
    pauses = np.zeros(length, bool)
    starts = window_starts(length)
    for before, start in itertools.pairwise(starts):
        end = before + WINDOW
        middle = (start + end) // 2
        low, high = max(start, middle - OVERLAP // 2) + EDGE + SHIFT, min(end, middle + OVERLAP // 2) - EDGE - SHIFT
        begin = draw(st.integers(low, high - 6))
        pauses[begin : begin + 6] = True
    events, frame = [], draw(st.integers(0, 5))
    while frame < length - 3 - SHIFT:
        run = draw(st.integers(1, 3))
        spans = range(max(frame - SHIFT, 0), min(frame + run + SHIFT, length))
        if not pauses[spans].any():
            events.append((draw(st.integers(1, 4)), frame, run))
        frame += run + draw(st.integers(1, 5))
    return length, starts, events


def hear(draw, start, events, length):
    """The path of a window: runs of tokens shifted by up to SHIFT frames, anything near edges within the recording."""
    path = np.zeros(length, np.int32)
    shifts = draw(hnp.arrays(np.int8, len(events), elements=st.integers(-SHIFT, SHIFT)))
    free = 0
    for (token, frame, run), shift in zip(events, shifts.tolist(), strict=True):
        blank = free > 0 and path[free - 1] == token  # between equal ones
        at = max(frame + shift, free + blank, 0)
        path[at : at + run] = token
        free = at + run
    path = path[start : start + WINDOW].copy()
    garbage = hnp.arrays(np.int32, EDGE, elements=st.integers(0, 4))
    if start > 0:
        path[:EDGE] = draw(garbage)
    if start + WINDOW < length:
        path[-EDGE:] = draw(garbage)
    return heard(start, path)


@settings(max_examples=300)
@given(recordings(), st.data())
def test_no_token_is_lost_or_doubled_where_overlaps_hold_a_pause(recording, data):
    length, starts, events = recording
    windows = [hear(data.draw, start, events, length) for start in starts]
    assert merged(windows) == [token for token, _, _ in events]


@settings(max_examples=300)
@given(
    path=st.lists(st.integers(0, 3), min_size=WINDOW + 1, max_size=5 * WINDOW),
    overlap=st.integers(10, WINDOW // 2),
    unheard=st.integers(0, 2),
)
def test_windows_that_agree_give_the_path_without_any_pause(path, overlap, unheard):
    starts = [*range(0, len(path) - WINDOW, WINDOW - overlap), len(path) - WINDOW]
    windows = [heard(start, path[start : start + WINDOW - unheard]) for start in starts]
    assert merged(windows, overlap) == collapsed(path[: len(path) - unheard])


def test_words_that_are_said_again_and_again_are_counted_right():
    path = [token for _ in range(60) for token in (2, 0, 2, 0, 3, 3, 0)]
    for overlap in range(10, 31):
        starts = range(0, len(path) - WINDOW + 1, WINDOW - overlap)
        windows = [heard(start, path[start : start + WINDOW - 2]) for start in starts]
        assert merged(windows, overlap) == collapsed(path[: starts[-1] + WINDOW - 2])


@given(st.lists(st.lists(st.integers(0, 3), min_size=WINDOW, max_size=WINDOW), min_size=1, max_size=4), st.data())
def test_windows_that_have_nothing_in_common_are_merged_somehow(heard_paths, data):
    starts = np.cumsum([0, *(data.draw(st.integers(1, STEP)) for _ in heard_paths[1:])])
    margins = st.floats(-30, 30, width=32)
    windows = []
    for start, path in zip(starts, heard_paths, strict=True):
        window = heard(int(start), path)
        sizes = data.draw(st.lists(margins, min_size=WINDOW, max_size=WINDOW))
        windows.append(window._replace(blank_margin=np.array(sizes, np.float32)))
    merged(windows)


def test_pieces_come_as_soon_as_the_window_after_is_there():
    def windows():
        for index in range(4):
            arrived.append(index)
            yield heard(index * STEP, np.zeros(WINDOW))

    arrived = []
    pieces = merge(windows(), OVERLAP)
    for index in range(3):
        assert isinstance(next(pieces), Piece)
        assert arrived == list(range(index + 2))
    assert [next(pieces).end_frame, arrived] == [3 * STEP + WINDOW, [0, 1, 2, 3]]
    with pytest.raises(StopIteration):
        next(pieces)


def spikes(*events, length=WINDOW):
    path = np.zeros(length, np.int32)
    for token, frame in events:
        path[frame] = token
    return path


@pytest.mark.parametrize("shift", range(-4, 5))
def test_a_spike_in_the_middle_of_the_overlap_is_heard_once_whatever_its_shift(shift):
    middle = STEP + OVERLAP // 2
    before, after = spikes((1, 5), (2, middle)), spikes((2, middle + shift - STEP), (3, 50))
    assert merged([heard(0, before), heard(STEP, after)]) == [1, 2, 3]


def test_dense_speech_without_a_pause_that_is_shifted_is_heard_once():
    tokens = [(1 + i % 5, 2 * i) for i in range((STEP + WINDOW) // 2)]
    for shift in (-2, -1, 1, 2):
        before = [(token, frame) for token, frame in tokens if frame < WINDOW]
        after = [(token, frame + shift - STEP) for token, frame in tokens if 0 <= frame + shift - STEP < WINDOW]
        heard_all = merged([heard(0, spikes(*before)), heard(STEP, spikes(*after))])
        told = [token for token, frame in tokens if frame + shift < STEP + WINDOW]
        assert heard_all == told


def test_a_word_that_one_window_missed_at_its_edge_is_taken_from_the_other():
    end = STEP + OVERLAP
    before = heard(0, spikes((1, 10)))
    after = heard(STEP, spikes((7, end - 3 - STEP), (2, 40)))  # the first window did not hear enough of 7
    assert merged([before, after]) == [1, 7, 2]
    before = heard(0, spikes((1, 10), (7, STEP + 2)))
    after = heard(STEP, spikes((2, 40)))  # nor the second one
    assert merged([before, after]) == [1, 7, 2]


def test_no_windows_and_empty_windows():
    assert list(merge([], OVERLAP)) == []
    (piece,) = merge([heard(0, [])], OVERLAP)
    assert (piece.start_frame, piece.end_frame, piece.tokens.tolist()) == (0, 0, [])
