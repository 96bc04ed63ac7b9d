"""Tests of annotations, their dataset and the order of its rows."""

import multiprocessing
import os
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import load_data_csv
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.data_pipeline import provides, takes

from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    UtteranceDataset,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.audio import AudioError

HEADER = "ID,duration,wav,start,stop\n"
ROWS = [
    ("a", 1.5, "$data_root/a.wav", 0, 24000),
    ('b/ü, "x"', 2.0, '$data_root/b/ü, "x".wav', 100, 32100),
    (" c$d ", 0.25, "/abs/Ke$ha.wav", 7, 4007),
]


@pytest.fixture
def path(tmp_path):
    write_annotation(tmp_path / "train.csv", ROWS)
    return str(tmp_path / "train.csv")


def written(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode())
    return path


def many(path, count):
    write_annotation(
        path,
        (
            (f"u{i}", 1 + i, f"$data_root/{i}.wav", i, 2 * i + 9)
            for i in range(count)
        ),
    )
    return read_annotation(path, data_root="/audio")


def test_rows_come_back_as_written(path):
    utterances = read_annotation(path, data_root="/audio/")
    assert len(utterances) == 3
    assert utterances.row(1) == {
        "ID": 'b/ü, "x"',
        "duration": 2.0,
        "wav": '/audio/b/ü, "x".wav',
        "start": 100,
        "stop": 32100,
    }
    assert utterances.row(-1) == utterances.row(2)
    assert utterances.row(2)["wav"] == "/abs/Ke$ha.wav"
    assert list(utterances.ids()) == [row[0] for row in ROWS]
    assert utterances.durations.tolist() == [1.5, 2.0, 0.25]
    with pytest.raises(IndexError):
        utterances.row(3)


def test_rows_of_many_chunks_stay_in_order(tmp_path):
    utterances = many(tmp_path / "train.csv", 1000)
    assert list(utterances.ids()) == [f"u{i}" for i in range(1000)]
    assert utterances.row(777) == {
        "ID": "u777",
        "duration": 778.0,
        "wav": "/audio/777.wav",
        "start": 777,
        "stop": 1563,
    }


def test_stock_speechbrain_reads_the_same(tmp_path):
    path = tmp_path / "train.csv"
    write_annotation(path, ROWS[:2] + [(" c", 1.0, "/c.wav", 0, 1)])
    stock = load_data_csv(path, {"data_root": "/audio"})
    ours = read_annotation(path, data_root="/audio")
    for index, (utterance, row) in enumerate(stock.items()):
        row = {**row, "start": int(row["start"]), "stop": int(row["stop"])}
        assert ours.row(index) == {"ID": utterance, **row}


def test_labels_are_kept_only_when_asked_for(tmp_path):
    path = tmp_path / "labels.csv"
    rows = [dict(ID="a", duration=1, wav="a", start=0, stop=9, spk_id="s1")]
    write_annotation(path, rows, extra=("spk_id",))
    assert "spk_id" not in read_annotation(path).row(0)
    utterances = read_annotation(path, extra=("spk_id",))
    assert utterances.row(0)["spk_id"] == "s1"
    write_annotation(path, rows)
    assert path.read_text() == HEADER + "a,1,a,0,9\n"


def test_spaces_after_commas_and_byte_order_mark_are_accepted(tmp_path):
    text = "\ufeffID, duration, wav, start, stop\r\na, 1.0, a.wav, 0, 9\r\n\r\n"
    row = read_annotation(written(tmp_path, text)).row(0)
    assert row["wav"] == "a.wav" and row["stop"] == 9


GOOD = "a0,1.0,a.wav,0,9\na1,1.0,a.wav,0,9\n"


@pytest.mark.parametrize(
    "line, words",
    [
        ("b,one,b.wav,0,9", ["line 4", "duration", "'one'"]),
        ("b,0.0,b.wav,0,9", ["line 4", "duration", "'0.0'"]),
        ("b,-2,b.wav,0,9", ["line 4", "duration", "'-2'"]),
        ("b,nan,b.wav,0,9", ["line 4", "duration", "'nan'"]),
        ("b,inf,b.wav,0,9", ["line 4", "duration", "'inf'"]),
        ("b,1.0,b.wav,0.5,9", ["line 4", "start", "'0.5'"]),
        ("b,1.0,b.wav,0,", ["line 4", "stop", "''"]),
        ("b,1.0,b.wav,0,99999999999999999999", ["line 4", "stop", "9999"]),
        ("b,1.0,b.wav,9,9", ["line 4", "start < stop", "start 9", "stop 9"]),
        ("b,1.0,b.wav,-1,9", ["line 4", "0 <= start", "start -1"]),
        ("b,1.0,b.wav,0", ["line 4", "expected 5 values", "found 4"]),
        ("b,1.0,b,.wav,0,9", ["line 4", "expected 5 values", "found 6"]),
        (",1.0,b.wav,0,9", ["line 4", "ID is empty"]),
        ("b,1.0,,0,9", ["line 4", "wav is empty"]),
        ("b,1.0,$root/b.wav,0,9", ["line 4", "'$root/b.wav'", "$data_root"]),
        ("b,1.0,$data_rootb.wav,0,9", ["line 4", "$data_rootb.wav"]),
        ("a0,1.0,b.wav,0,9", ["lines 2 and 4", "'a0'"]),
    ],
)
@pytest.mark.parametrize("more", ["", "z,1.0,z.wav,0,9\n"])
def test_wrong_value_is_named_with_its_line(tmp_path, line, words, more):
    path = written(tmp_path, f"{HEADER}{GOOD}{line}\n{more}")
    with pytest.raises(ValueError) as caught:
        read_annotation(path, data_root="/audio")
    for word in [*words, str(path)]:
        assert word in str(caught.value)


def test_line_is_right_beyond_the_first_chunk(tmp_path):
    good = "".join(f"a{i},1.0,a.wav,0,9\n" for i in range(3000))
    with pytest.raises(ValueError, match="line 3002: stop"):
        read_annotation(written(tmp_path, f"{HEADER}{good}b,1,b,0,x\n{good}"))
    with pytest.raises(ValueError, match="lines 2002 and 3002 .* 'a2000'"):
        read_annotation(written(tmp_path, f"{HEADER}{good}a2000,1,b,0,9\n"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is empty"),
        (HEADER, "no rows"),
        ("ID,duration,wav,begin,end\na,1,a,0,9\n", "start, stop.*begin,end"),
        ("a,1.0,a.wav,0,9\n", "no column ID, duration, wav, start, stop"),
    ],
)
def test_file_without_what_is_needed_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=f"bad.csv.*{words}"):
        read_annotation(written(tmp_path, text))


def test_missing_extra_column_is_named(path):
    with pytest.raises(ValueError, match="no column spk_id"):
        read_annotation(path, data_root="/audio", extra=("spk_id",))


def test_data_root_must_be_given_if_used(path):
    with pytest.raises(ValueError, match="line 2.*data_root was not given"):
        read_annotation(path)


def test_missing_file_is_named_with_what_it_should_hold(tmp_path):
    message = "no file .*train.csv; expected .* ID, .* stop, face.* skip_prep"
    with pytest.raises(FileNotFoundError, match=message):
        read_annotation(tmp_path / "train.csv", extra=("face",))


def test_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin1.csv"
    path.write_bytes((HEADER + "é,1,a,0,9\n").encode("latin-1"))
    with pytest.raises(ValueError, match="latin1.csv is not a UTF-8"):
        read_annotation(path)


def test_failed_write_leaves_the_old_file_and_nothing_else(path, tmp_path):
    before = open(path, encoding="utf-8").read()
    for rows in [ROWS + [("d", 1.0)], (1 / 0 for _ in "x"), [{"ID": "d"}]]:
        with pytest.raises((ValueError, ZeroDivisionError)):
            write_annotation(path, rows)
    assert open(path, encoding="utf-8").read() == before
    assert os.listdir(tmp_path) == ["train.csv"]


@takes("ID", "start", "stop", "key", "index")
@provides("sig", "where")
def signal(utterance, start, stop, key, index):
    yield torch.arange(start, stop)
    yield utterance, key, index


def dataset_of(utterances):
    return UtteranceDataset(utterances, [signal], ["id", "sig", "where"])


def test_dataset_runs_the_pipeline_on_epoch_and_row(tmp_path):
    dataset = dataset_of(many(tmp_path / "train.csv", 5))
    assert len(dataset) == 5
    assert dataset[7, 2]["where"] == ("u2", (7, 2), 2)
    assert dataset[2]["where"] == ("u2", (0, 2), 2)
    assert dataset[2]["id"] == "u2"
    assert torch.equal(dataset[2]["sig"], torch.arange(2, 13))


def with_unreadable(utterances, *unreadable, seed=5):
    """A dataset in which the audio of some rows cannot be read."""

    @takes("index", "key")
    @provides("where", "drawn")
    def draw(index, key):
        yield index
        if index in unreadable:
            raise AudioError(f"Cannot read {index}.wav")
        yield key

    return UtteranceDataset(
        utterances, [draw], ["id", "index", "where", "drawn"], seed=seed
    )


def test_an_unreadable_row_is_replaced_by_one_of_seed_epoch_and_row(tmp_path):
    utterances = many(tmp_path / "train.csv", 50)
    dataset = with_unreadable(utterances, 3, 4, *range(30, 50))
    keys = [(epoch, row) for epoch in range(3) for row in range(50)]
    found = {key: dataset[key] for key in keys}
    again = {key: dataset[key] for key in reversed(keys)}
    assert found == again
    for (epoch, row), sample in found.items():
        new = sample["index"]
        assert sample["where"] == new and sample["id"] == f"u{new}"
        if row in (3, 4) or row >= 30:
            # the draw of a row in another's place differs from its own
            assert sample["drawn"] == (epoch, row, new) and new < 30
            assert sample["unreadable"][f"u{row}"] == f"Cannot read {row}.wav"
        else:
            assert sample["drawn"] == (epoch, row)
            assert new == row and sample["unreadable"] == {}
    new = [found[epoch, 3]["index"] for epoch in range(3)]
    assert len({*new, found[0, 4]["index"]}) > 2
    other = with_unreadable(utterances, *range(30, 50), seed=6)
    assert any(other[key] != found[key] for key in keys if key[1] >= 30)


def test_unreadable_rows_end_in_an_error_that_names_one(tmp_path):
    utterances = many(tmp_path / "train.csv", 3)
    with pytest.raises(AudioError, match="11 utterances.*Cannot read ..wav"):
        with_unreadable(utterances, 0, 1, 2)[0, 1]
    with pytest.raises(AudioError, match="Cannot read 1.wav"):
        with_unreadable(utterances, 1, seed=None)[0, 1]


def test_a_carriage_return_in_a_name_survives(tmp_path):
    rows = [("a\rb", 1.0, "$data_root/a\rb.wav", 0, 10)]
    write_annotation(tmp_path / "train.csv", rows)
    row = read_annotation(tmp_path / "train.csv", "/x").row(0)
    assert row["ID"] == "a\rb" and row["wav"] == "/x/a\rb.wav"


def test_dataset_without_output_keys_reads_like_speechbrains(path):
    dataset = UtteranceDataset(read_annotation(path, "/audio"))
    dataset.set_output_keys(["ID", "duration", "wav", "start", "stop"])
    assert dataset[0]["wav"] == "/audio/a.wav"
    assert [item["ID"] for item in dataset] == [row[0] for row in ROWS]


def test_workers_see_the_same_rows(tmp_path):
    dataset = dataset_of(many(tmp_path / "train.csv", 8))
    sampler = EpochSampler(8, batch_size=4)
    sampler.set_epoch(3)
    loader = SaveableDataLoader(
        dataset,
        batch_size=4,
        sampler=sampler,
        num_workers=1,
        collate_fn=PaddedBatch,
    )
    batches = list(loader)
    assert [row for batch in batches for row in batch.id] == [
        f"u{row}" for _, row in sampler
    ]
    assert {where[1][0] for batch in batches for where in batch.where} == {3}


def overwrite(utterances):
    utterances.text[0] = ord("Z")


def test_forked_worker_shares_the_columns(tmp_path):
    utterances = many(tmp_path / "train.csv", 2)
    worker = multiprocessing.get_context("fork").Process(
        target=overwrite, args=(utterances,)
    )
    worker.start()
    worker.join()
    assert utterances.row(0)["ID"] == "Z0"


def test_spawned_worker_is_sent_handles_of_the_columns(tmp_path):
    utterances = many(tmp_path / "train.csv", 10_000)
    sent = ForkingPickler.dumps(utterances)
    assert len(sent) < 10_000
    overwrite(ForkingPickler.loads(sent))
    assert utterances.row(0)["ID"] == "Z0"


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        return [row for _, row in keys]

    assert order(1, 2) == order(1, 2)
    assert sorted(order(1, 2)) == list(range(50))
    orders = [order(0, 1), order(1, 0), order(0, 0), order(1, 1)]
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("groups", [None, np.arange(29) % 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_see_the_batches_of_one(world_size, groups):
    def batches(rank, world_size, batch_size):
        sampler = EpochSampler(
            29,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            groups=groups,
        )
        keys = list(sampler)
        assert len(keys) == len(sampler)
        return [
            keys[at : at + batch_size] for at in range(0, len(keys), batch_size)
        ]

    one = batches(0, 1, 4 * world_size)
    parts = [batches(rank, world_size, 4) for rank in range(world_size)]
    assert [sum(batch, []) for batch in zip(*parts)] == one
    assert len(one) == 29 // (4 * world_size)


def test_too_few_rows_for_a_batch_are_refused():
    with pytest.raises(
        ValueError, match="16 utterances .*2 processes.* are 15"
    ):
        EpochSampler(15, world_size=2, batch_size=8)
    assert len(EpochSampler(16, world_size=2, batch_size=8)) == 8


def test_a_batch_is_of_one_group():
    groups = np.repeat([2, 0, 1], [403, 97, 303])
    sampler = EpochSampler(803, seed=1, batch_size=8, groups=groups)
    epochs = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        epochs.append(np.array([row for _, row in sampler]))
    for rows in epochs:
        assert len(set(rows)) == 800
        mixed = [len(set(groups[batch])) > 1 for batch in rows.reshape(-1, 8)]
        assert sum(mixed) <= 3  # where one group ends and the next begins
    # rows, batches and what is left out change from epoch to epoch
    first, second = (rows.reshape(-1, 8) for rows in epochs[:2])
    assert not {*map(frozenset, first)} & {*map(frozenset, second)}
    assert len({group for rows in epochs for group in groups[rows[:8]]}) == 3
    left_out = [{*range(803)} - {*rows} for rows in epochs]
    assert len(set.union(*left_out)) > 40
    with pytest.raises(ValueError, match="channel_groups and sequential_rows"):
        EpochSampler(803, groups=groups, sequential_rows=10)


def test_sequential_rows_are_read_block_by_block():
    sampler = EpochSampler(1003, seed=3, sequential_rows=10)
    rows = [row for _, row in sampler]
    assert sorted(rows) == list(range(1003))
    place = {row: place for place, row in enumerate(rows)}
    places = [
        [place[row] for row in range(first, min(first + 10, 1003))]
        for first in range(0, 1003, 10)
    ]
    # each block from its first row to its last, 16 blocks at a time
    assert all(block == sorted(block) for block in places)
    assert all(block[-1] - block[0] < 16 * 10 for block in places)
    # blocks are mixed, and come in another order in each epoch
    assert sum(abs(a - b) == 1 for a, b in zip(rows, rows[1:])) < 200
    sampler.set_epoch(1)
    assert [row for _, row in sampler] != rows
    parts = [
        [
            row
            for _, row in EpochSampler(
                1003, 3, rank, 2, batch_size=4, sequential_rows=10
            )
        ]
        for rank in range(2)
    ]
    one = [
        row
        for at in range(0, 1000, 4)
        for part in parts
        for row in part[at : at + 4]
    ]
    assert one == rows[: len(one)]
