"""Prepared data sets give the corpora of the folders that they are made of."""

import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.proto import feature_pb2

from i3d_jax.audio.integrity import DamagedAudio
from i3d_jax.cli import prepare
from i3d_jax.data import corpora, folder, tfds_source
from i3d_jax.data.batching import BatchingConfig, BatchPlanner
from i3d_jax.data.corpora import DataConfig, load_corpus
from i3d_jax.data.loader import iterate_batches
from i3d_jax.data.tfds_builders import SpeechBuilder
from tests.data.tiny_librispeech import flac, subset_files, write_archive, write_folder

SUBSETS = ("dev-clean", "train-clean-100", "train-clean-360")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same subsets as a folder and as prepared archives."""
    root = tmp_path_factory.mktemp("librispeech")
    for subset in SUBSETS:
        write_archive(root / "archives" / f"{subset}.tar.gz", subset_files(subset))
        write_folder(root / "folder", subset_files(subset))
    prepare.main([str(root / "archives"), str(root / "data")])
    return root


@pytest.fixture
def config(places, tmp_path):
    return DataConfig(source=f"tfds:{places}/data", train="train-clean-100", cache_dir=str(tmp_path / "cache"))


def load(places, tmp_path, split, source="tfds:librispeech", **fields):
    fields = {"tfds_dir": str(places / "data"), "cache_dir": str(tmp_path / "cache"), **fields}
    return load_corpus(DataConfig(source=source, **fields), split)


def contents(corpus):
    return [(u.id, u.text, u.num_samples, u.speaker) for u in corpus.utterances]


def assert_equal(corpus, expected):
    assert contents(corpus) == contents(expected)
    assert corpus.rejected == expected.rejected
    for i in range(len(corpus)):
        np.testing.assert_array_equal(corpus.load_audio(i), expected.load_audio(i))


@pytest.mark.parametrize("split", ["dev-clean", "train-clean-100+train-clean-360"])
@pytest.mark.parametrize("sample_rate", [16000, 8000])
def test_equals_the_folder(places, tmp_path, split, sample_rate):
    expected = load(places, tmp_path, split, str(places / "folder"), sample_rate=sample_rate)
    corpus = load(places, tmp_path, split, sample_rate=sample_rate)
    assert corpus.name == f"librispeech/{split}"
    assert_equal(corpus, expected)
    if split == "dev-clean":
        assert_equal(pickle.loads(pickle.dumps(corpus)), expected)


@pytest.mark.parametrize("source", ["tfds:{}/data", "tfds:{}/data/librispeech", "tfds:${{WHERE}}/data/librispeech"])
def test_ways_to_name_it(places, tmp_path, monkeypatch, source):
    monkeypatch.setenv("WHERE", str(places))
    expected = contents(load(places, tmp_path, "dev-clean"))
    assert contents(load(places, tmp_path, "dev-clean", source.format(places), tfds_dir="")) == expected
    monkeypatch.setenv("TFDS_DATA_DIR", str(places / "data"))
    assert contents(load(places, tmp_path, "dev-clean", tfds_dir="")) == expected
    one = f"tfds:{places}/data/librispeech/dev_clean/1.0.0"
    assert contents(load(places, tmp_path, "dev-clean", one)) == expected


@pytest.mark.parametrize("split", ["train_clean_100", "train_clean100", "splits/train-clean-100.txt"])
def test_spellings_of_a_split(places, tmp_path, split):
    assert contents(load(places, tmp_path, split)) == contents(load(places, tmp_path, "train-clean-100"))


def test_slices(places, tmp_path):
    whole = load(places, tmp_path, "dev-clean")
    halves = load(places, tmp_path, "dev-clean[:50%]"), load(places, tmp_path, "dev-clean[50%:]")
    assert sorted(contents(halves[0]) + contents(halves[1])) == sorted(contents(whole))
    assert len(halves[0]) == 3
    audio = {u.id: whole.load_audio(i) for i, u in enumerate(whole.utterances)}
    for i, utterance in enumerate(halves[1].utterances):
        np.testing.assert_array_equal(halves[1].load_audio(i), audio[utterance.id])
    joined = load(places, tmp_path, "dev_clean[:1]+train_clean100[-2:]")
    assert len(joined) == 3 and joined.utterances[0].text.startswith("DEV")
    for split in ("dev-clean[:x%]", "dev-clean[:100]", "dev-clean[:0]", "dev-clean["):
        with pytest.raises(ValueError, match=r"dev[-_]clean\[") as error:
            load(places, tmp_path, split)
        assert "\n" not in str(error.value)


def test_the_index_is_read_once(config, places, monkeypatch):
    before = load_corpus(config, "train")
    read = []
    monkeypatch.setattr(tfds_source.TfdsRecords, "examples", lambda self, indices: read.append(indices))
    assert contents(load_corpus(config, "train")) == contents(before) and not read
    (cache,) = (epath.Path(config.cache_dir) / "tfds").iterdir()
    cache.write_text("{")
    with pytest.raises(TypeError):  # of the None that `examples` now returns
        load_corpus(config, "train")
    assert read


def test_batches_equal_those_of_the_folder(places, tmp_path):
    split = "train-clean-100+train-clean-360"
    batching = BatchingConfig(seconds_per_batch=4.0, batch_multiple=1)
    runs = []
    for source in ("tfds:librispeech", str(places / "folder")):
        corpus = load(places, tmp_path, split, source, train=split)
        labels = [[len(word) for word in u.text.split()] for u in corpus.utterances]
        planner = BatchPlanner(
            np.array([u.num_samples for u in corpus.utterances]),
            np.array([len(ids) for ids in labels]),
            batching,
            speeds=(0.9, 1.0, 1.1),
            seed=3,
            sample_rate=16000,
        )
        runs.append(list(iterate_batches(corpus, labels, planner, range(planner.steps_before(2)))))
    assert len(runs[0]) == len(runs[1]) > 4
    for (step, planned, batch), (other_step, other_planned, other) in zip(*runs, strict=True):
        assert step == other_step and planned.bucket == other_planned.bucket
        for one, two in zip(batch, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_filters_and_rejections_hold(places, tmp_path):
    files = subset_files("dev-other")
    lost = files[0][0].split("/")[-1][:-5]
    files[0] = (files[0][0], files[0][1][:-3000])
    write_archive(tmp_path / "archives/dev-other.tar.gz", files)
    prepare.main([str(tmp_path / "archives"), str(tmp_path / "data")])
    source = f"tfds:{tmp_path}/data"
    corpus = load(places, tmp_path, "train", source, train="dev-other", min_seconds=0.6, max_seconds=1.2)
    assert set(corpus.rejected) == {DamagedAudio.reason, corpora.TOO_SHORT, corpora.TOO_LONG}
    assert corpus.rejected[DamagedAudio.reason] == [lost]
    assert len(corpus) + sum(map(len, corpus.rejected.values())) == 6
    assert DamagedAudio.reason not in load(places, tmp_path, "dev-other[:3]", source).rejected


def test_damage_is_named(places, tmp_path):
    prepare.main([str(places / "archives"), str(tmp_path / "data"), "--splits=dev-clean"])
    source = f"tfds:{tmp_path}/data"
    corpus = load(places, tmp_path, "dev-clean", source)
    (shard,) = (tmp_path / "data").rglob("*.array_record-*")
    report = shard.parent / "prepare_report.json"
    whole = report.read_text()
    for damaged in ("{", "{}", '{"rejected": 3}'):
        report.write_text(damaged)
        with pytest.raises(ValueError, match=r"prepare_report\.json: damaged .*prepare the split again"):
            load(places, tmp_path, "dev-clean", source)
    report.write_text(whole)
    data = bytearray(shard.read_bytes())
    record = corpus.utterances[2].audio
    start = data.index(record.source.audio_bytes(record.index)[5000:5100])
    data[start] ^= 255
    shard.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"split dev_clean, utterance {corpus.utterances[2].id} \(record \d\): damaged"
    ):
        for i in range(len(corpus)):
            corpus.load_audio(i)
    with pytest.raises(ValueError, match=r"dev_clean/1\.0\.0, split dev_clean: damaged records"):
        load(places, tmp_path, "dev-clean", source, cache_dir=str(tmp_path / "another"))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"array_record-00000-of-00001: the shard is missing"):
        load(places, tmp_path, "dev-clean", source)
    (shard.parent / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"dev_clean/1\.0\.0: no readable dataset_info\.json"):
        load(places, tmp_path, "dev-clean", source)


def test_what_is_missing_is_named(places, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"'test-clean': .*data/librispeech holds dev_clean, train_clean_100, tr"
    ):
        load(places, tmp_path, "test-clean")
    with pytest.raises(
        FileNotFoundError, match=r"no prepared data set in .*data/timit; .*data holds librispeech\. Set"
    ):
        load(places, tmp_path, "train", "tfds:timit")
    with pytest.raises(FileNotFoundError, match=r"no prepared data set in .*prepare one with: python -m i3d_jax"):
        load(places, tmp_path, "train", f"tfds:{tmp_path}")
    write_folder(tmp_path / "other", subset_files("train"))
    prepare.main([str(tmp_path / "other"), str(tmp_path / "both"), f"--cache-dir={tmp_path}"])
    prepare.main([str(places / "archives/dev-clean.tar.gz"), str(tmp_path / "both")])
    with pytest.raises(
        ValueError, match=r"holds the data sets librispeech, other; choose one: tfds:.*both/librispeech"
    ):
        load(places, tmp_path, "train", f"tfds:{tmp_path}/both")
    assert len(load(places, tmp_path, "train", f"tfds:{tmp_path}/both/other")) == 6


# -- The folder of TFDS's own librispeech -----------------------------------------------------------------------------


def write_stock(data_dir, *, lazy=True, file_format="array_record"):
    """What TFDS with TensorFlow writes for ``librispeech/lazy_decode``, of one subset."""
    place = epath.Path(data_dir) / "librispeech" / ("lazy_decode" if lazy else "default") / "2.1.2"
    place.mkdir(parents=True)
    integer = tfds.features.Scalar(np.int64)
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {"speech": text, "text": text, "id": text, "speaker_id": integer, "chapter_id": integer}
    )
    proto = features.to_proto()
    proto.features_dict.features["speech"].CopyFrom(
        feature_pb2.Feature(
            python_class_name="tensorflow_datasets.core.features.audio_feature.Audio",
            audio=feature_pb2.AudioFeature(
                shape=feature_pb2.Shape(dimensions=[-1]),
                dtype="int16",
                file_format="flac",
                sample_rate=16000,
                encoding="NONE",
                lazy_decode=lazy,
            ),
        )
    )
    from google.protobuf import json_format

    (place / "features.json").write_text(json_format.MessageToJson(proto))
    files = dict(subset_files("dev-clean"))
    texts = {
        key: text
        for name, data in files.items()
        if name.endswith(".txt")
        for key, text in folder.parse_transcript(data, name)
    }
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    writer = ArrayRecordWriter(str(place / f"librispeech-dev_clean.{file_format}-00000-of-00001"), "group_size:1")
    for name, data in files.items():
        if name.endswith(".flac"):
            *_, speaker, chapter, file = name.split("/")
            example = {"speech": data, "text": texts[file[:-5]], "id": file[:-5]}
            example |= {"speaker_id": int(speaker), "chapter_id": int(chapter)}
            writer.write(serializer.serialize_example(features.encode_example(example)))
    writer.close()
    info = {
        "name": "librispeech",
        "version": "2.1.2",
        "configName": place.parent.name,
        "fileFormat": file_format,
        "moduleName": "tensorflow_datasets.datasets.librispeech.librispeech_dataset_builder",
        "splits": [
            {
                "name": "dev_clean",
                "numBytes": "1",
                "shardLengths": ["6"],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        ],
    }
    (place / "dataset_info.json").write_text(json.dumps(info))
    return place


def test_stock_folder(places, tmp_path):
    write_stock(tmp_path / "data")
    expected = load(places, tmp_path, "dev-clean", str(places / "folder"))
    for source in ("tfds:librispeech", "tfds:librispeech/lazy_decode", "tfds:librispeech/lazy_decode:2.1.2"):
        corpus = load(places, tmp_path, "dev-clean", source, tfds_dir=str(tmp_path / "data"))
        assert_equal(corpus, expected)
    assert_equal(pickle.loads(pickle.dumps(corpus)), expected)
    sliced = load(places, tmp_path, "dev_clean[2:5]", source, tfds_dir=str(tmp_path / "data"))
    assert len(sliced) == 3 and sliced.load_audio(0).size == sliced.utterances[0].num_samples
    with pytest.raises(ValueError, match=r"dev_clean\[:70\]"):
        load(places, tmp_path, "dev_clean[:70]", source, tfds_dir=str(tmp_path / "data"))


def test_stock_folders_that_need_tensorflow(places, tmp_path):
    write_stock(tmp_path / "data", lazy=False)
    with pytest.raises(ValueError, match=r"default/2\.1\.2: holds decoded audio .*i3d_jax\.cli\.prepare"):
        load(places, tmp_path, "dev-clean", tfds_dir=str(tmp_path / "data"))
    write_stock(tmp_path / "data", file_format="tfrecord")
    with pytest.raises(ValueError, match=r"lazy_decode/2\.1\.2: stored as tfrecord, .*i3d_jax\.cli\.prepare"):
        load(places, tmp_path, "dev-clean", "tfds:librispeech/lazy_decode", tfds_dir=str(tmp_path / "data"))
    # Beside it, what can be read is read; twice the same split is a question.
    prepare.main([str(places / "archives/dev-clean.tar.gz"), str(tmp_path / "data")])
    assert len(load(places, tmp_path, "dev-clean", tfds_dir=str(tmp_path / "data"))) == 6
    write_stock(tmp_path / "more")
    prepare.main([str(places / "archives/dev-clean.tar.gz"), str(tmp_path / "more")])
    with pytest.raises(
        ValueError, match=r"'dev-clean' is in .*dev_clean/1\.0\.0 and .*lazy_decode/2\.1\.2; choose one"
    ):
        load(places, tmp_path, "dev-clean", tfds_dir=str(tmp_path / "more"))


class Many(SpeechBuilder):
    """Thousands of tiny records."""

    def __init__(self, count, data_dir):
        self.count = count
        super().__init__(name="many", split="train", origin="memory", data_dir=data_dir, keeps_order=True)

    def records(self):
        from i3d_jax.data.records import SpeechRecord

        audio = flac(0, 1600)
        for i in range(self.count):
            yield SpeechRecord(f"1-1-{i:05d}", "A WORD", "1", "1", audio, 1600, 16000)


def test_an_index_of_many_records_in_batches(tmp_path):
    Many(2500, tmp_path / "data").prepare()
    config = DataConfig(source=f"tfds:{tmp_path}/data", cache_dir=str(tmp_path / "cache"))
    corpus = load_corpus(config, "train")
    assert [u.id for u in corpus.utterances] == [f"1-1-{i:05d}" for i in range(2500)]
    assert contents(load_corpus(config, "train")) == contents(corpus)
    (cache,) = (tmp_path / "cache" / "tfds").iterdir()
    for damaged in (b"\xff\xfe{}", b"[]", b"{"):
        cache.write_bytes(damaged)
        assert contents(load_corpus(config, "train")) == contents(corpus)
