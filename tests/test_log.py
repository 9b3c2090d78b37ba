# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
import json
import time

from hf_mae.pretraining.log import MetricsLog, Throughput, UnreadableImages


def test_metrics__of_steps_taken_again_are_dropped(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, loss=1 / step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    log = MetricsLog(tmp_path, step=20)
    log.write(30, loss=0.5, knn_accuracy=0.25)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert log.last() == {"step": 30, "loss": 0.5, "knn_accuracy": 0.25}


def test_metrics__that_are_no_numbers_are_left_out(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    log.write(1, loss=float("nan"), grad_norm=float("inf"), skipped=1)
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "disk full")))
    log.write(2, loss=1.0)  # is no reason to end a run
    monkeypatch.undo()
    (tmp_path / "metrics.jsonl").write_bytes((tmp_path / "metrics.jsonl").read_bytes() + b"\x00\xff\n[1]\n")
    assert MetricsLog(tmp_path, 1).last() == {"step": 1, "skipped": 1}


def test_unreadable__are_counted_once_named_and_limited(tmp_path):
    log = UnreadableImages(tmp_path, 10, max_share=0.2)
    assert log.add({"a.png": "cut", "caf\udce9.png": "empty"}) == ["a.png\tcut", "caf\udce9.png\tempty"]
    assert log.add({"a.png": "cut"}) == []
    assert log.problem() is None
    log = UnreadableImages(tmp_path, 10, max_share=0.2)  # a resumed run
    assert len(log) == 2
    assert log.add({"a.png": "cut"}) == []
    log.add({"c.png": "cut"})
    assert "3 of 10 images can't be read, more than `max_unreadable` 0.2 allows" in log.problem()
    assert (tmp_path / "unreadable.txt").read_bytes().splitlines()[1] == b"caf\xe9.png\tempty"
    assert f"{tmp_path / 'unreadable.txt'}. Repair them where they are and delete that file" in log.problem()
    (tmp_path / "unreadable.txt").unlink()  # else those that are repaired would count for ever
    assert UnreadableImages(tmp_path, 10, max_share=0.2).problem() is None


def test_unreadable__names_of_several_lines_are_one_line_and_count_once_when_a_run_goes_on(tmp_path):
    found = {"two\nlines.png": "cut", "a\ttab.png": "a\r\nb", "\u2028.png": "cut", "a  b.png": "cut"}
    for _ in range(2):
        log = UnreadableImages(tmp_path, 10, max_share=0.5)
        log.add(found)
        assert len(log) == 4
        assert log.problem() is None
    lines = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert lines == ["two lines.png\tcut", "a tab.png\ta b", " .png\tcut", "a  b.png\tcut"]


def test_throughput__does_not_count_pauses_and_gives_advice_once():
    throughput = Throughput()
    with throughput.excluded():
        time.sleep(0.2)
    with throughput.waiting():
        time.sleep(0.1)
    values = throughput.read(100)
    assert 0.9 < values["data_wait"] <= 1
    assert values["images_per_second"] > 100 / 0.2  # nearly 1000, but for a busy machine
    assert throughput.advice(2, 1) is None  # the first includes the start of workers
    with throughput.waiting():
        time.sleep(0.01)
    throughput.read(1)
    assert "waiting for data. What helps: `dataloader_num_workers` above 2" in throughput.advice(2, 1)
    assert throughput.advice(2, 1) is None
