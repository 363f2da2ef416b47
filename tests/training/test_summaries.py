import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

from i3d_jax import files
from i3d_jax.training.summaries import RunLogger


def read_log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def read_events(workdir):
    """All events of a run in the order in which they were written (TFRecord framing, checksums not verified)."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            size = int.from_bytes(data[position : position + 8], "little")
            events.append(event_pb2.Event.FromString(data[position + 12 : position + 12 + size]))
            position += size + 16
    return events


def train(workdir, steps, **options):
    with RunLogger(workdir, total_steps=10, start_step=steps[0], **options) as logger:
        for step in steps:
            logger.scalars(step, {"loss": 100.0 / (step + 1), "lr": 1e-3}, epoch=step / 4)


def test_jsonl_and_tensorboard(tmp_path):
    workdir = tmp_path / "run"
    with RunLogger(workdir, total_steps=4, interactive=False) as logger:
        logger.scalars(1, {"loss": jnp.float32(2.5), "bad": float("nan")}, epoch=0.25)
        logger.scalars(1, {"wer": np.float64(50)}, kind="dev")
        logger.text(2, "sample", "REF: é")
    log = read_log(workdir)
    assert [{k: v for k, v in line.items() if k != "time"} for line in log] == [
        {"step": 1, "kind": "train", "epoch": 0.25, "loss": 2.5, "bad": None},
        {"step": 1, "kind": "dev", "wer": 50.0},
        {"step": 2, "kind": "text", "name": "sample", "text": "REF: é"},
    ]
    assert all(line["time"] > 1.6e9 for line in log)
    values = {value.tag: (event.step, value) for event in read_events(workdir) for value in event.summary.value}
    assert values["train/loss"][0] == 1 and values["train/loss"][1].simple_value == 2.5
    assert values["dev/wer"][1].simple_value == 50
    assert any("sample" in tag for tag in values)


def test_pictures_and_histograms(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    with RunLogger(tmp_path, total_steps=4, interactive=False) as logger:
        logger.image(3, "dev/gates", pixels)
        logger.histogram(3, "dev/layers", np.array([1.0, 2.0, 2.0]))
        logger.text(3, "sample/a", "ref: x\nhyp: y")
        with pytest.raises(ValueError, match=r"expected uint8 pixels \[H, W, 3\], got float64"):
            logger.image(3, "dev/gates", pixels.astype(float))
    values = {value.tag: value for event in read_events(tmp_path) for value in event.summary.value}
    assert (values["dev/gates"].image.height, values["dev/gates"].image.width) == (20, 30)
    assert values["dev/gates"].image.encoded_image_string.startswith(b"\x89PNG")
    assert values["dev/layers"].histo.num == 3 and values["dev/layers"].histo.sum == 5
    (text,) = (value.tensor.string_val[0] for tag, value in values.items() if tag.startswith("sample/a"))
    assert text == b"ref: x  \nhyp: y", "two lines in Markdown"
    assert read_log(tmp_path) == [
        {"step": 3, "kind": "text", "time": read_log(tmp_path)[0]["time"], "name": "sample/a", "text": "ref: x\nhyp: y"}
    ]


def test_resume_logs_every_step_once(tmp_path):
    train(tmp_path, range(0, 7), interactive=False)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "ki')  # killed while writing
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write("я".encode()[:1])
    train(tmp_path, range(4, 10), interactive=False)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(10))
    starts = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 4], "TensorBoard forgets what lies at or beyond the step of a new process"
    train(tmp_path, range(0, 2), interactive=False)
    assert [line["step"] for line in read_log(tmp_path)] == [0, 1]


def test_log_lines_come_at_a_limited_rate(tmp_path, capsys):
    train(tmp_path, range(0, 9), interactive=False, seconds_between_lines=60)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 8/10"], "only what the rate kept back"
    train(tmp_path, range(0, 11), interactive=False, seconds_between_lines=0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[4] == "step 4/10 epoch 1.00 loss 20 lr 0.001 eta 0:00"
    assert lines[10] == "step 10/10 epoch 2.50 loss 9.091 lr 0.001"


def test_dev_lines_are_always_shown(tmp_path, capsys):
    with RunLogger(tmp_path, total_steps=10, interactive=False) as logger:
        logger.scalars(5, {"wer": 12.5}, kind="dev", epoch=1)
        logger.message("saved")
    assert capsys.readouterr().err.splitlines() == ["dev step 5/10 epoch 1.00 wer 12.5", "saved"]


def test_bar(tmp_path, capsys):
    with RunLogger(tmp_path, total_steps=10, start_step=2, interactive=True) as logger:
        logger.scalars(4, {"loss": 3.25})
        logger.scalars(4, {"wer": 12.5}, kind="dev")
        logger.advance(10)
    err = capsys.readouterr().err
    assert "2/10" in err and "10/10" in err and "loss 3.25" in err and "dev step 4/10 wer 12.5" in err


def test_misuse_is_named(tmp_path):
    logger = RunLogger(tmp_path, total_steps=1, interactive=False)
    with pytest.raises(RuntimeError, match="with RunLogger"):
        logger.scalars(0, {"loss": 1.0})
    with logger, pytest.raises(ValueError, match=r"\['epoch'\].*rename"):
        logger.scalars(0, {"epoch": 1.0})


@pytest.mark.parametrize("name", ["log.jsonl", "tensorboard"])
def test_a_full_disk_names_the_file_and_does_not_hang(tmp_path, name):
    logger = RunLogger(tmp_path, total_steps=100, interactive=False)
    with pytest.raises(OSError, match=f"No space left on device: .*{name}") as caught, logger:
        if name == "log.jsonl":
            (tmp_path / name).symlink_to("/dev/full")
        else:
            logger._writer._records.close()
            logger._writer._records = RecordWriter("/dev/full")
        for step in range(100):
            logger.scalars(step, {"loss": 1.0}, "dev")
    assert files.describe(caught.value).endswith(": No space left on device; free space and run again")
