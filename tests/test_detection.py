# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Detection: the average precision, the detector on the encoder, runs, the way to a pipeline, and what errors say."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import EvalPrediction, TrainerState, pipeline

from hf_mae import MAEBackbone, MAEConfig, MAEForPreTraining, MAEImageProcessor
from hf_mae.data.boxes import BoxedImages, Boxes
from hf_mae.evaluation.detection_metrics import BoxFigures, average_precision, detection_sheet
from hf_mae.finetuning import detection as script
from hf_mae.modeling.modeling_mae_downstream import find_backbone
from hf_mae.training.step_guard import RunStopped

pytest.importorskip("faster_coco_eval")

# A run of two steps in seconds.
TINY = ["--head_size", 16, "--num_queries", 20, "--decoder_layers", 2, "--per_device_train_batch_size", 4]
TINY += ["--max_steps", 2, "--eval_strategy", "no", "--save_strategy", "no"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Models as small as these are faster so, many times where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shapes(folder, count, seed=0, size=(160, 128), mode="RGB"):
    """Pictures of one to three bright squares (id 3) and discs (id 90) on noise, in a COCO file of all of them."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        picture = PIL.Image.fromarray(rng.integers(0, 90, (*size[::-1], 3), dtype=np.uint8))
        images.append({"id": 7 * number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
        for place in rng.permutation(4)[: rng.integers(1, 4)]:
            side, disc = int(rng.integers(30, 55)), int(rng.integers(2))
            left, top = (int(place % 2) * size[0] // 2, int(place // 2) * size[1] // 2)
            left, top = left + int(rng.integers(size[0] // 2 - side)), top + int(rng.integers(size[1] // 2 - side))
            draw = getattr(PIL.ImageDraw.Draw(picture), "ellipse" if disc else "rectangle")
            draw((left, top, left + side - 1, top + side - 1), fill=tuple(rng.integers(120, 256, 3).tolist()))
            box = {"image_id": 7 * number, "bbox": [left, top, side, side], "category_id": 90 if disc else 3}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **box})
        picture.convert(mode).save(folder / "images" / f"{number}.png")
    classes = [{"id": 90, "name": "disc"}, {"id": 3, "name": "square"}]
    content = {"images": images, "annotations": annotations, "categories": classes}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def boxed_of(*pictures, names=("a", "b")):
    """True boxes of pictures of 100 x 200 pixels, each a list of (class, left, top, right, bottom, crowd)."""
    boxes = []
    for picture in pictures:
        rows = np.array([[*box, 0][:6] for box in picture], dtype=np.float32).reshape(-1, 6)
        corners = rows[:, 1:5] / np.tile([100, 200], 2)
        boxes.append(Boxes(corners.astype(np.float32), rows[:, 0].astype(int), rows[:, 5] > 0, (100, 200)))
    return BoxedImages([], boxes, list(names), "")


def found_of(*boxes):
    """Detections (score, class, left, top, right, bottom) in pixels, as shares."""
    rows = np.array(boxes, dtype=float).reshape(-1, 6)
    return np.concatenate([rows[:, :2], rows[:, 2:] / np.tile([100, 200], 2)], axis=1)


# ----------------------------------------------------------------------------------------------------------------------
# The figures


def test_average_precision__of_cases_worked_out_by_hand():
    truth = boxed_of([(0, 0, 0, 50, 100), (1, 50, 100, 100, 200)], [])
    exact = {0: found_of((0.9, 0, 0, 0, 50, 100), (0.8, 1, 50, 100, 100, 200)), 1: found_of()}
    figures, by_class = average_precision(truth, exact)
    assert figures == pytest.approx({"map": 1, "map50": 1, "map75": 1})
    assert by_class.tolist() == pytest.approx([1, 1])
    # An overlap of 0.78 is right at the thresholds 0.5 to 0.75: six of ten.
    shifted = {0: found_of((0.9, 0, 0, 0, 39, 100), (0.8, 1, 50, 100, 100, 200))}
    figures, by_class = average_precision(truth, shifted)
    assert by_class.tolist() == pytest.approx([0.6, 1])
    assert figures == pytest.approx({"map": 0.8, "map50": 1, "map75": 1})
    # A wrong box with a higher score, on a picture without boxes: precision 1/2 at every recall.
    wrong = {**exact, 1: found_of((0.95, 0, 0, 0, 50, 100))}
    assert average_precision(truth, wrong)[1].tolist() == pytest.approx([0.5, 1])
    # Both boxes are taken for class 0: nothing of class 1 is found.
    confused = {0: found_of((0.9, 0, 0, 0, 50, 100), (0.8, 0, 50, 100, 100, 200))}
    assert average_precision(truth, confused)[1].tolist() == pytest.approx([1, 0])
    assert average_precision(truth, {0: found_of(), 1: found_of()})[0]["map"] == 0


def test_average_precision__counts_a_hundred_boxes_of_a_picture():
    boxes = [(0, left, top, left + 10, top + 10) for left in range(0, 100, 10) for top in range(0, 100, 10)]
    found = {0: found_of(*[(1 - 0.001 * number, *box) for number, box in enumerate(boxes)])}
    assert average_precision(boxed_of(boxes, names=("a",)), found)[0]["map"] == pytest.approx(1)


def test_average_precision__crowds_and_absent_classes_do_not_count():
    truth = boxed_of([(0, 0, 0, 50, 100), (0, 50, 100, 100, 200, 1)], names=("a", "b"))
    found = {0: found_of((0.95, 0, 50, 100, 100, 200), (0.9, 0, 0, 0, 50, 100))}
    figures, by_class = average_precision(truth, found)
    assert figures["map"] == pytest.approx(1)  # what is found in the crowd is not counted against it
    assert by_class[0] == pytest.approx(1)
    assert np.isnan(by_class[1])


def test_figures__are_collected_batch_by_batch():
    figures = BoxFigures(boxed_of([(0, 0, 0, 50, 100)], [(0, 0, 0, 100, 200)]))
    first = EvalPrediction(torch.tensor(found_of((0.9, 0, 0, 0, 50, 100)))[None], torch.tensor([0]))
    second = EvalPrediction(torch.tensor(found_of((0.9, 0, 0, 0, 100, 200)))[None], torch.tensor([1]))
    for _ in range(2):  # starts anew
        assert figures(first, compute_result=False) == {}
        assert figures(second, compute_result=True)["map"] == pytest.approx(1)


def test_sheet__shows_true_boxes_and_those_found():
    picture = PIL.Image.new("RGB", (64, 32), "black")
    truth, found = np.array([[0, 0.25, 0.25, 0.5, 0.75]]), np.array([[0.9, 1, 0.5, 0.25, 0.75, 0.75], [0.1] * 6])
    sheet = np.array(detection_sheet([picture] * 3, [truth] * 3, [found] * 3, ["a", "b"]))
    assert sheet.shape == (2 * 132 + 20, 4 * 256 + 28, 3)
    assert sheet[20 + 64, 64].tolist() == [255, 0, 0]  # the left side of the true box, on the left
    assert sheet[20 + 64, 256 + 4 + 128].tolist() == [0, 255, 0]  # that of the found one, on the right


def test_post_processing__takes_the_best_of_queries_and_classes():
    logits = torch.tensor([[[2.0, -2.0], [1.0, 3.0], [-9.0, -9.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0], [0.1, 0.1, 0.1, 0.1]]])
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    processor = MAEImageProcessor()
    (one,) = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(100, 200)])
    assert one["labels"].tolist() == [1, 0, 0]  # the second query counts for both classes
    assert one["scores"].tolist() == pytest.approx(torch.tensor([3.0, 2, 1]).sigmoid().tolist())
    assert one["boxes"].tolist() == [[0, 0, 100, 100], [50, 25, 150, 75], [0, 0, 100, 100]]
    assert len(processor.post_process_object_detection(outputs, threshold=-1, top_k=2)[0]["scores"]) == 2
    assert processor.post_process_object_detection(outputs)[0]["boxes"][1].tolist() == [0.25, 0.25, 0.75, 0.75]
    with pytest.raises(ValueError, match="2 target_sizes for 1 images"):
        processor.post_process_object_detection(outputs, target_sizes=[(1, 1), (1, 1)])


# ----------------------------------------------------------------------------------------------------------------------
# The model


def test_pyramid__builds_the_levels_that_are_asked_for(tiny_config):
    config = tiny_config(feature_pyramid_size=8, out_features=["p3", "p4", "p5"])
    backbone = MAEBackbone(config).train()
    maps = backbone(torch.randn(1, 3, 32, 32)).feature_maps
    assert [tuple(each.shape) for each in maps] == [(1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2)]
    sum(each.sum() for each in maps).backward()
    without = [name for name, weight in backbone.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []  # DistributedDataParallel would wait for them
    whole = MAEBackbone(tiny_config(feature_pyramid_size=8))
    assert set(backbone.state_dict()) < set(whole.state_dict())  # weights have the same names
    whole.load_state_dict(backbone.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 32, 32)
    some, all_maps = backbone.eval()(pixels).feature_maps, whole.eval()(pixels).feature_maps
    assert all(torch.equal(one, other) for one, other in zip(some, all_maps[1:], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["dfine", "deimv2"])
def test_detector__has_the_weights_of_the_encoder_and_trains_all(pretrained, head):
    args = script.DetectionArguments(
        model_name_or_path=str(pretrained), head=head, head_size=16, num_queries=20, decoder_layers=2, data="x"
    )
    config = script.build_encoder_config(args)
    model = script.build_detector(args, config, ["a", "b"], 20)
    encoder = MAEForPreTraining.from_pretrained(pretrained).mae.state_dict()
    loaded = find_backbone(model).mae.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in encoder.items() if "layernorm" not in name)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25]])
    labels = [
        {"class_labels": torch.tensor([1]), "boxes": boxes},
        {"class_labels": torch.zeros(0).long(), "boxes": boxes[:0]},
    ]
    model.train()(torch.randn(2, 3, 32, 32), labels=labels).loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    args.from_scratch = True
    fresh = find_backbone(script.build_detector(args, config, ["a", "b"], 20)).mae.state_dict()
    assert not torch.equal(fresh["layers.0.mlp.fc1.weight"], loaded["layers.0.mlp.fc1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("head", ["dfine", "deimv2"])
def test_detector__goes_on_from_a_trained_one(pretrained, head, tmp_path, capsys):
    def build(path, names, **settings):
        args = script.DetectionArguments(model_name_or_path=str(path), data="x", **settings)
        return script.build_detector(args, script.build_encoder_config(args), names, 20)

    trained = build(pretrained, ["a", "b"], head=head, head_size=16, decoder_layers=2)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(torch.randn_like(weight))
    trained.save_pretrained(tmp_path / "detector")
    weights = trained.state_dict()
    same = build(tmp_path / "detector", ["a", "b"])
    assert type(same) is type(trained)
    assert all(torch.equal(weight, weights[name]) for name, weight in same.state_dict().items())
    # Other classes change those layers alone that know classes.
    other = build(tmp_path / "detector", ["a", "c", "d"])
    assert "differ from the 2 that the model knows: they start anew" in capsys.readouterr().out
    fresh = {name for name, weight in other.state_dict().items() if not torch.equal(weight, weights[name])}
    assert all("class_embed" in name or "enc_score_head" in name for name in fresh)
    assert len(other.config.id2label) == 3
    # So does another size of the images the positions alone.
    larger = build(tmp_path / "detector", ["a", "b"], image_size=[48])
    changed = [name for name, weight in larger.state_dict().items() if not torch.equal(weight, weights[name])]
    assert find_backbone(larger).config.image_size == 48
    assert [name.rpartition(".")[2] for name in changed] == ["position_embeddings"]
    with pytest.raises(ValueError, match="other sizes than `head_size` and `decoder_layers` say"):
        build(tmp_path / "detector", ["a", "b"], head_size=24)
    with pytest.raises(ValueError, match=f"`head` is .* but .* is a {head}"):
        build(tmp_path / "detector", ["a", "b"], head="deimv2" if head == "dfine" else "dfine")


def test_splits__that_share_pictures_are_named(pretrained, tmp_path, capsys):
    """So data.yaml of many small sets has it; the figures are then those of training pictures."""
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    for name in "ab":
        PIL.Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [x]")
    args = script.DetectionArguments(
        model_name_or_path=str(pretrained), data=str(tmp_path), output_dir=str(tmp_path / "out")
    )
    script.open_boxes(args, MAEImageProcessor.from_pretrained(pretrained))
    printed = capsys.readouterr().out
    assert f"2 of 2 pictures to evaluate on are training pictures, first {tmp_path}/images/a.png" in printed


def test_evaluation__needs_a_detector_of_the_same_classes(pretrained, call, tmp_path):
    with pytest.raises(ValueError, match="pretrained does not detect"):
        call(script.detect_command, "--model_name_or_path", pretrained, "--eval_only")
    with pytest.raises(ValueError, match="`eval_only` needs `model_name_or_path`"):
        call(script.detect_command, "--preset", "tiny", "--eval_only")


def test_evaluation__takes_data_of_one_split(pretrained, call, tmp_path):
    args = script.DetectionArguments(model_name_or_path=str(pretrained), data="x", head_size=16, decoder_layers=2)
    config = script.build_encoder_config(args)
    script.build_detector(args, config, ["square", "disc"], 20).save_pretrained(tmp_path / "detector")
    script.whole_image_processor(args, config).save_pretrained(tmp_path / "detector")
    shapes(tmp_path / "data", 3)
    (tmp_path / "data" / "images").rename(tmp_path / "data" / "val")
    (tmp_path / "data" / "instances.json").rename(tmp_path / "data" / "instances_val.json")
    arguments = ["--model_name_or_path", tmp_path / "detector", "--data", tmp_path / "data", "--eval_only"]
    printed = call(script.detect_command, *arguments, "--output_dir", tmp_path / "out")
    assert "COCO (instances_val.json), val: 3 pictures" in printed
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_images"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("head", ["dfine", "deimv2"])
def test_evaluation__has_the_loss_of_each_picture_alone_whatever_its_batch_is(pretrained, head, tmp_path):
    """So it is the same in any number of processes. Boxes count alike, and a picture without any as one."""
    shapes(tmp_path / "data", 5)
    content = json.loads((tmp_path / "data" / "instances.json").read_text())
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] != 0]
    (tmp_path / "data" / "instances.json").write_text(json.dumps(content))
    settings = {"data": str(tmp_path / "data"), "use_cpu": True, "disable_tqdm": True}
    args = script.DetectionArguments(
        model_name_or_path=str(pretrained), head=head, head_size=16, decoder_layers=2, **settings
    )
    config = script.build_encoder_config(args)
    model = script.build_detector(args, config, ["square", "disc"], 20)
    processor = script.whole_image_processor(args, config)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "detector")
    args = script.DetectionArguments(model_name_or_path=str(tmp_path / "detector"), eval_only=True, **settings)
    weights, losses = [], []
    boxed = script._open_splits(args, processor, "train")["train"]
    dataset = script.DetectionDataset(boxed, processor)
    for index in range(len(dataset)):
        sample = dataset[index]
        losses.append(model.eval()(sample["pixel_values"][None], labels=[sample["labels"]]).loss.item())
        weights.append(max(len(sample["labels"]["class_labels"]), 1))
    for size in (2, 5):
        args.per_device_eval_batch_size, args.output_dir = size, str(tmp_path / str(size))
        found = script.evaluate_detector(args).metrics["eval_loss"]
        assert found == pytest.approx(np.average(losses, weights=weights), rel=1e-5)


def test_training__needs_a_split_to_train_on(pretrained, tmp_path):
    content = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(content, "PNG")
    pictures = [{"bytes": content.getvalue(), "path": None}] * 2
    table = pa.table({"image": pictures, "objects": [{"bbox": [[1.0, 1.0, 9.0, 9.0]], "category": [0]}] * 2})
    pq.write_table(table, tmp_path / "test-00000.parquet")
    args = script.DetectionArguments(model_name_or_path=str(pretrained), data=str(tmp_path))
    with pytest.raises(ValueError, match="has pictures to evaluate on alone"):
        script.open_boxes(args, MAEImageProcessor.from_pretrained(pretrained))


def test_table__of_one_split_alone_is_no_table_of_the_other(pretrained, tmp_path):
    for split in ("train", "val"):
        shapes(tmp_path / split, 2)
    objects = {"bbox": [[1, 1, 20, 20]], "category": [0]}
    rows = [{"file_name": f"images/{number}.png", "objects": objects} for number in range(2)]
    (tmp_path / "val" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split in ("train", "val"):
        (tmp_path / split / "instances.json").unlink()
    args = script.DetectionArguments(model_name_or_path=str(pretrained), data=str(tmp_path))
    with pytest.raises(ValueError, match="train, which has no table with their boxes"):
        script.open_boxes(args, MAEImageProcessor.from_pretrained(pretrained))


@pytest.mark.parametrize("settings", [{"image_size": [64]}, {"from_scratch": True}])
def test_evaluation__refuses_settings_of_training(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is for training"):
        script.DetectionArguments(model_name_or_path="model", data="x", eval_only=True, **settings)


@pytest.mark.parametrize("head", ["dfine", "deimv2"])
def test_detector__is_in_float32_whatever_its_checkpoint_is(tiny_model, tmp_path, head):
    """The encoder alone would have the type of the checkpoint, and could not be run with the head."""
    tiny_model().bfloat16().save_pretrained(tmp_path / "model")
    args = script.DetectionArguments(
        model_name_or_path=str(tmp_path / "model"), head=head, head_size=16, decoder_layers=2, data="x"
    )
    model = script.build_detector(args, script.build_encoder_config(args), ["a", "b"], 20)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_best_model__is_chosen_as_the_settings_say():
    """They were overwritten, without a word."""
    settings = {"model_name_or_path": "model", "data": "x"}
    args = script.DetectionArguments(**settings)
    assert (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better) == (True, "map", True)
    assert script.DetectionArguments(**settings, eval_strategy="no").load_best_model_at_end is False
    assert script.DetectionArguments(**settings, load_best_model_at_end=False).load_best_model_at_end is False
    args = script.DetectionArguments(**settings, metric_for_best_model="loss")
    assert (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better) == (True, "loss", False)


def test_best_model__of_equal_ones_is_the_last():
    """A run whose AP stayed at 0 ended with its first checkpoint."""
    trainer = object.__new__(script.DetectionTrainer)
    trainer.args = script.DetectionArguments(model_name_or_path="model", data="x")
    trainer.state, steps = TrainerState(), []
    for step, figure in ((3, 0.0), (6, 0.0), (9, 0.5), (12, 0.25), (15, 0.5), (18, 0.4)):
        trainer.state.global_step = step
        trainer._determine_best_metric({"eval_map": figure}, None)
        steps.append(trainer.state.best_global_step)
    assert steps == [3, 6, 9, 9, 15, 15]
    assert trainer.state.best_metric == 0.5


def test_image_size__is_rounded_up_to_twice_the_patch(pretrained, capsys):
    args = script.DetectionArguments(model_name_or_path=str(pretrained), image_size=[40, 65], data="x")
    assert tuple(script.build_encoder_config(args).image_size) == (48, 80)  # patches of 8
    assert "40 x 65 is rounded up to 48 x 80" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.mark.slow
def test_run__leaves_figures_pictures_a_card_and_a_model_for_pipelines(pretrained, call, tmp_path, log):
    shapes(tmp_path / "data", 6)
    arguments = [
        "--model_name_or_path",
        pretrained,
        "--data",
        tmp_path / "data",
        "--output_dir",
        tmp_path / "out",
        *TINY,
    ]
    printed = call(script.detect_command, *arguments, "--image_size", 32, 48, "--min_scale", 0.5, "--max_scale", 2)
    assert "COCO (instances.json), train: 6 pictures" in printed
    assert "1 of 6 images is held out" in printed
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert {"eval_map", "eval_map50", "eval_map75", "eval_map_disc", "eval_map_square", "eval_loss"} <= set(results)
    assert PIL.Image.open(tmp_path / "out" / "detections.png").width > 500
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import hf_mae" in card
    assert "pipeline_tag: object-detection" in card
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_images"] == 5
    detector = pipeline("object-detection", model=os.fspath(tmp_path / "out"))
    found = detector(os.fspath(tmp_path / "data" / "images" / "0.png"), threshold=0.0)
    assert len(found) == 40  # 20 queries for two classes
    assert {one["label"] for one in found} == {"disc", "square"}
    assert set(found[0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}
    # Evaluation alone, on all pictures, gives the figures of the same pictures and changes nothing of the detector.
    folders = ["--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "figures"]
    printed = call(script.detect_command, *folders, "--data", tmp_path / "data", "--eval_only")
    assert "COCO (instances.json), train: 6 pictures" in printed
    assert f"also those that {tmp_path / 'out'} was trained on" in log()
    evaluation = json.loads((tmp_path / "figures" / "evaluation.json").read_text())
    assert evaluation["num_images"] == 6
    assert set(evaluation["metrics"]) >= {"eval_map", "eval_map_disc", "eval_map_square"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"evaluation.json", "detections.png"}
    with pytest.raises(ValueError, match="boxes have the classes T-shirt, .* knows square, disc"):
        call(script.detect_command, *folders, "--eval_only")


@pytest.mark.slow
def test_run__stops_at_a_signal_goes_on_and_refuses_another(pretrained, call, tmp_path, monkeypatch):
    shapes(tmp_path / "data", 5)
    arguments = [
        "--model_name_or_path",
        pretrained,
        "--data",
        tmp_path / "data",
        "--output_dir",
        tmp_path / "out",
        *TINY,
    ]
    arguments += ["--save_strategy", "steps", "--held_out", 0, "--save_steps", 1, "--warmup_steps", 0]
    step, differing = script.DetectionTrainer.training_step, []

    def training_step(trainer, *args, **kwargs):
        if trainer.state.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # files of detectors have other names for some weights, which Trainer by itself would not load
            saved = type(trainer.model).from_pretrained(tmp_path / "out" / "checkpoint-1").state_dict()
            weights = trainer.model.state_dict()
            differing.append([name for name, weight in weights.items() if not torch.equal(weight, saved[name])])
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(script.DetectionTrainer, "training_step", training_step)
    with pytest.raises(RunStopped, match="step 1 of 2"):
        call(script.detect_command, *arguments)
    with pytest.raises(ValueError, match="(?s)out holds another run.*head: the default there, deimv2 now"):
        call(script.detect_command, *arguments, "--head", "deimv2")
    file = tmp_path / "data" / "instances.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    shutil.copy(file, tmp_path / "before.json")
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="(?s)out holds another run.*images and boxes: "):
        call(script.detect_command, *arguments)
    shutil.copy(tmp_path / "before.json", file)
    assert "Continues from" in call(script.detect_command, *arguments)
    assert differing == [[]]
    assert (tmp_path / "out" / "eval_results.json").exists()


@pytest.mark.slow
def test_sample__runs_without_data(tmp_path, tiny_model, call, monkeypatch):
    model = tiny_model(image_size=28, patch_size=4, num_channels=1)
    model.save_pretrained(tmp_path / "runs" / "fashion_mnist_sample")
    MAEImageProcessor.for_image_size(28, num_channels=1).save_pretrained(tmp_path / "runs" / "fashion_mnist_sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "_SAMPLE_COUNTS", {"train": 8, "val": 4})
    printed = call(script.detect_command, *TINY)
    assert "encoder of runs/fashion_mnist_sample" in printed
    assert "10: T-shirt, trouser" in printed
    assert (tmp_path / "runs" / "detector" / "detections.png").exists()


@pytest.mark.slow
@pytest.mark.long
def test_overfitting__eight_pictures(call, tmp_path):
    """Two minutes of one core: whether boxes, losses, training and figures fit together."""
    shapes(tmp_path / "data", 8)
    config = MAEConfig(
        image_size=128,
        patch_size=16,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
    )
    MAEForPreTraining(config).save_pretrained(tmp_path / "encoder")
    MAEImageProcessor.for_image_size(128).save_pretrained(tmp_path / "encoder")
    arguments = ["--model_name_or_path", tmp_path / "encoder", "--data", tmp_path / "data", "--held_out", 0]
    arguments += ["--from_scratch", "--max_steps", 150, "--eval_steps", 50, "--save_steps", 50]
    call(script.detect_command, *arguments, "--output_dir", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_map50"] > 0.9
    # In a fresh process, which knows the encoder from hf_mae alone, boxes are in pixels of the picture.
    code = "import hf_mae, json, sys; from transformers import pipeline; "
    code += "detector = pipeline('object-detection', model=sys.argv[1]); "
    code += "print(json.dumps(detector(sys.argv[2], threshold=0.5)))"
    command = [sys.executable, "-c", code, tmp_path / "out", tmp_path / "data" / "images" / "0.png"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed.splitlines()[-1])
    (first, *_) = json.loads((tmp_path / "data" / "instances.json").read_text())["annotations"]
    corners = np.array([[one["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")] for one in found])
    left, top, width, height = first["bbox"]
    assert np.abs(corners - [left, top, left + width, top + height]).max(axis=1).min() < 10


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--model_name_or_path", ""], ValueError, r"`model_name_or_path` is missing: .*`preset`"),
        (["--num_queries", "200"], ValueError, r"`num_queries` must be in \[1, 84\].*32.* got 200"),
        (["--class_names", "a", "b"], ValueError, r"`class_names` are .* but the files name them \['square', 'disc'\]"),
        (["--head_size", "12"], ValueError, r"`head_size` must be a multiple of 8, .* got 12"),
        (["--decoder_layers", "1"], ValueError, r"`decoder_layers` must be at least 2, got 1"),
        (["--min_scale", "2"], ValueError, r"`min_scale` 2.0 .* `max_scale` 1.0"),
        (["--eval_annotations", "x.json"], ValueError, r"`eval_annotations` needs `annotations`"),
        (["--image_size", "32", "64", "--rotate90"], ValueError, r"`rotate90` .*32 x 64"),
        (["--annotations", "none.json"], OSError, r"`annotations` none.json does not exist"),
        (["--held_out", "1"], ValueError, r"`held_out` must be a share"),
    ],
)
def test_mistakes__are_named(pretrained, call, tmp_path, arguments, error, message):
    shapes(tmp_path / "data", 3)
    given = ["--model_name_or_path", pretrained, "--data", tmp_path / "data", "--output_dir", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    with pytest.raises(error, match=message):
        call(script.detect_command, *given, "--overwrite_output_dir", *arguments)
    assert (tmp_path / "out" / "model.safetensors").exists()  # of an earlier run, which nothing replaces


def test_classes__without_boxes_are_named(pretrained, call, tmp_path, monkeypatch):
    shapes(tmp_path / "data", 3)
    file = tmp_path / "data" / "instances.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="no boxes to train on"):
        call(script.detect_command, "--model_name_or_path", pretrained, "--data", tmp_path / "data")


def test_missing_libraries__are_named(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r'pip install "hf-mae\[detect\]"'):
        call(script.detect_command, "--preset", "tiny")
