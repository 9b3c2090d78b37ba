# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""The command `hf-mae`: help, recipes, mistakes. What the commands do is tested with the functions that do it."""

import errno
import importlib
import io
import logging
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SMALL
from safetensors import SafetensorError
from transformers.hf_argparser import HfArg

import hf_mae_command
from hf_mae.cli import CommandParser, in_flags
from hf_mae.demo import DemoArguments
from hf_mae.evaluation.evaluating import EvaluationArguments
from hf_mae.evaluation.features import ExtractionArguments
from hf_mae.evaluation.probing import ProbingArguments
from hf_mae.finetuning.classification import ClassificationArguments
from hf_mae.finetuning.detection_settings import DetectionArguments
from hf_mae.finetuning.segmentation_settings import SegmentationArguments
from hf_mae.finetuning.settings import FineTuningArguments
from hf_mae.pretraining.settings import PretrainingSettings
from hf_mae.training.arguments import RECIPES, config_changes, fit_values, load_recipe, parse_arguments, recipe_of


def hf_mae(capsys, *arguments):
    """Runs the command in this process and returns its exit status and what it printed."""
    try:
        hf_mae_command.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as error:
        status = error.code or 0
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_help__lists_the_commands_without_loading_torch():
    code = "import sys, hf_mae_command as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("pretrain", "finetune", "probe", "segment", "features", "reconstruct", "attention", "convert", "push"):
        assert f"  {name} " in done.stdout


def test_clock__of_a_module_starts_before_torch_is_loaded(tmp_path):
    """`python -m hf_mae` loads the package before it calls `main`, which takes seconds that a time budget counts."""
    (tmp_path / "transformers.py").write_text("import hf_mae_command as c\nraise SystemExit(int(c.started is None))\n")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-m", "hf_mae", "--version"], env=variables).returncode == 0


def test_clock__is_that_of_one_command(capsys, monkeypatch):
    """A program may call several, and what it did between them belongs to none."""
    seen = []
    monkeypatch.setitem(hf_mae_command.COMMANDS, "look", (f"{__name__}:look", ""))
    look = lambda arguments, prog: seen.append(hf_mae_command.started)  # noqa: E731
    monkeypatch.setattr(sys.modules[__name__], "look", look, raising=False)
    for arguments in (["look"], ["unknown"], ["look"]):
        hf_mae(capsys, *arguments)
        assert hf_mae_command.started is None
    assert None not in seen
    assert seen[0] < seen[1]


@pytest.mark.parametrize("command", hf_mae_command.COMMANDS)
def test_help__of_each_command_is_short_and_grouped(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    status, printed = hf_mae(capsys, command, "--help")
    assert status == 0
    assert f"usage: hf-mae {command}" in printed
    assert len(printed.splitlines()) < 120
    assert max(map(len, printed.splitlines())) <= 120
    assert "Nothing:" not in printed


def test_help__is_as_wide_as_the_terminal(capsys, monkeypatch):
    """Sentences are filled anew; lines of examples, which are indented, are left as they are."""
    for columns in (100, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        widths = [len(line) for line in hf_mae(capsys, "reconstruct", "--help")[1].splitlines()[1:]]
        assert columns - 10 < max(widths) <= columns
    assert (
        "  hf-mae features --model_name_or_path out --features patches --layers 6 -1 --output features.safetensors\n"
        in (hf_mae(capsys, "features", "--help")[1])
    )


def test_commands__are_functions_that_exist():
    for target, _ in hf_mae_command.COMMANDS.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def say(argv, prog):
    """A command that prints the name of a file that is not in UTF-8."""
    print(os.fsdecode(b"caf\xe9.png"))


def warn(argv, prog):
    """A command that warns of a setting of its own, through the log and by the name that it has in Python."""
    CommandParser(prog=prog).add_argument("--held_out")
    logging.getLogger("hf_mae.data.labels").warning("Change `held_out`.")
    logging.getLogger("another").warning("Change `held_out`.")


def test_log__of_a_command_names_flags_and_outside_of_it_parameters(caplog, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_mae"), "propagate", True)
    monkeypatch.setitem(hf_mae_command.COMMANDS, "warn", (f"{__name__}:warn", "Warns."))
    hf_mae(capsys, "warn")
    logging.getLogger("hf_mae.data.labels").warning("Change `held_out`.")
    assert caplog.messages == ["Change --held_out.", "Change `held_out`.", "Change `held_out`."]


def test_names__that_the_terminal_cannot_show_do_not_end_a_command(monkeypatch):
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    monkeypatch.setattr("sys.stdout", strict)
    monkeypatch.setitem(hf_mae_command.COMMANDS, "say", (f"{__name__}:say", "Prints a name."))
    hf_mae_command.main(["say"])
    assert strict.buffer.getvalue() == b"caf\\udce9.png\n"


MISTAKES = {
    "no such command": (["pretran"], "Did you mean pretrain?"),
    "no images": (["pretrain", "--data", "{tmp}"], "no images"),
    "no such data": (["pretrain", "--data", "no/such-data"], "'no/such-data'"),
    "no such flag": (["pretrain", "--max_stepps", "3"], "There is no argument --max_stepps. Did you mean --max_steps?"),
    "no flag like it": (["finetune", "--lr", "3"], "There is no argument --lr. See hf-mae finetune --help."),
    "flag of another command": (["score", "--model_name_or_path", "x"], "Did you mean --model?"),
    "flag of other commands": (["features", "--model", "x"], "Did you mean --model_name_or_path?"),
    "no number": (["pretrain", "--max_steps", "many"], "argument --max_steps"),
    "no such recipe": (["pretrain", "--recipe", "imagenet"], "neither a file nor one of"),
    "no such setting": (["pretrain", "--recipe", "{tmp}/recipe.yaml"], "There is no setting epochs"),
    "no such field": (["pretrain", "--config_overrides", "hiden_size=3"], "--config_overrides: MAEConfig has no field"),
    "out of range": (["pretrain", "--logging_steps", "0"], "--logging_steps must be at least 1, got 0."),
    "no such tracker": (["pretrain", "--report_to", "paper"], "--report_to paper: Accelerate knows no such tracker. "),
    "a tracker that is not installed": (["pretrain", "--report_to", "tensorboard"], "(pip install tensorboard)"),
    "the same in fine-tuning": (["finetune", "--report_to", "tensorboard"], "(pip install tensorboard)"),
    "no package for a tracker": (["fail"], "pip install wandb"),
    "no checkpoint": (["features", "--model_name_or_path", "{tmp}"], ""),
    "no weights": (["convert", "{tmp}/no.pth", "{tmp}/out"], "no.pth"),
    "no weights in any place": (["convert", "no/such-weights", "{tmp}/out"], "There is no folder"),
    "no model to draw with": (["reconstruct"], "the following arguments are required: model_name_or_path. See"),
    "no model in the folder": (["attention", "{tmp}"], "{tmp} holds no model: there is no config.json."),
    "nothing to push": (["push", "{tmp}"], "config.json"),
}


def fail(arguments, prog):
    raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.")  # of transformers


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes__end_in_one_line_and_status_2(capsys, tmp_path, monkeypatch, mistake):
    monkeypatch.setitem(hf_mae_command.COMMANDS, "fail", (f"{__name__}:fail", "Fails."))
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    monkeypatch.setattr("hf_mae.pretraining.settings.get_available_trackers", lambda: [])
    monkeypatch.setattr("hf_mae.finetuning.settings.is_tensorboard_available", lambda: False)
    arguments, words = MISTAKES[mistake]
    output = ["--output_dir", tmp_path / "run"] if arguments[0] == "pretrain" else []
    status, printed = hf_mae(capsys, *(argument.format(tmp=tmp_path) for argument in arguments), *output)
    assert status == 2
    assert words.format(tmp=tmp_path) in printed
    assert "Traceback" not in printed
    assert printed.strip().splitlines()[-1].startswith("hf-mae")


@pytest.mark.parametrize(
    "command", sorted({*hf_mae_command.COMMANDS} - {"pretrain", "finetune", "segment", "detect", "probe"})
)
def test_command_of_one_process__refuses_to_do_its_work_in_each_of_several(capsys, monkeypatch, command):
    """All would write the same files. The help is there for all, and a lonely `WORLD_SIZE` starts no processes."""
    monkeypatch.setitem(hf_mae_command.COMMANDS, command, (f"{__name__}:say", ""))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert hf_mae(capsys, command)[0] == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert hf_mae(capsys, command, "--help")[0] == 0
    status, printed = hf_mae(capsys, command)
    assert status == 2
    assert printed.startswith(f"hf-mae {command}: it works in one process, and WORLD_SIZE says that 2 were started.")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:9901."), 1),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_end_of_another_process__is_said_in_one_line(capsys, monkeypatch, error, status):
    """The process that ended has said why; torch's traceback in all others would only hide that."""

    def fail(argv, prog):
        raise error

    monkeypatch.setattr(sys.modules[__name__], "say", fail)
    monkeypatch.setitem(hf_mae_command.COMMANDS, "pretrain", (f"{__name__}:say", ""))
    if status is None:
        with pytest.raises(RuntimeError, match="mat1"):
            hf_mae(capsys, "pretrain")
    else:
        line = "hf-mae pretrain: Another process of this run has ended or does not answer; look for its message. "
        assert hf_mae(capsys, "pretrain") == (1, f"{line}The same command goes on from the last checkpoint.\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "features.parquet"), 1),
        (OSError(errno.EFBIG, "File too large", "features.parquet"), 1),  # for the file system, or `ulimit -f`
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 1),
        (OSError(errno.ENOENT, "No such file or directory", "images"), 2),
        (SafetensorError("Error while deserializing header: header too small"), 2),
    ],
)
def test_full_disk__is_said_in_one_line_and_is_no_mistake_of_the_arguments(capsys, monkeypatch, error, status):
    def fail(argv, prog):
        raise error

    monkeypatch.setattr(sys.modules[__name__], "say", fail)
    monkeypatch.setitem(hf_mae_command.COMMANDS, "features", (f"{__name__}:say", ""))
    assert hf_mae(capsys, "features") == (status, f"hf-mae features: {error}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["score"]])
def test_output__that_nobody_reads_any_more_ends_the_command_as_others(arguments):
    """As after `| head`: a longer table was called a mistake, and Python complained of what it could not write."""
    code = "import sys, types, hf_mae_command; sys.modules['rows'] = rows = types.ModuleType('rows'); "
    code += "rows.write = lambda argv, prog: print('row', flush=True); "
    code += f"hf_mae_command.COMMANDS['score'] = ('rows:write', ''); hf_mae_command.main({arguments})"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("flush", [False, True])
def test_output__that_finds_no_room_ends_the_command_without_a_traceback(flush):
    """As `> log.txt` on a full disk: Python's own status is 120, after two tracebacks."""
    code = "import sys, types, hf_mae_command; sys.modules['rows'] = rows = types.ModuleType('rows'); "
    code += f"rows.write = lambda argv, prog: print('row', flush={flush}); "
    code += "hf_mae_command.COMMANDS['score'] = ('rows:write', ''); hf_mae_command.main(['score'])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        streams = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, "-c", code], env=environment, **streams)
    why = "[Errno 28] No space left on device"
    said = [f"hf-mae score: {why}"] * flush + [f"hf-mae: The output of the command could not be written: {why}"]
    assert (done.returncode, done.stderr.splitlines()) == (1, said)


def test_ctrl_c__while_torch_is_loaded_does_not_load_it_again(capsys, monkeypatch):
    """What was loaded in part may not load a second time, and the error of that would hide the Ctrl-C."""

    def load(module):
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_mae_command.importlib, "import_module", load)
    monkeypatch.delitem(sys.modules, "hf_mae.cli")
    assert hf_mae(capsys, "score") == (130, "hf-mae score: KeyboardInterrupt\n")
    assert "hf_mae.cli" not in sys.modules


def test_ctrl_c__before_and_after_the_work_of_a_process_shows_no_traceback(tmp_path):
    """`python -m hf_mae` loads torch before anything could catch it, and Python takes a while to end."""
    press = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "transformers.py").write_text(press)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    after = f"import atexit, hf_mae_command; atexit.register(lambda: exec({press!r})); hf_mae_command.main()"
    options = {"env": variables, "capture_output": True, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
    for command in (["-m", "hf_mae", "--help"], ["-c", after, "--version"]):
        done = subprocess.run([sys.executable, *command], **options)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_traceback__is_shown_when_asked_for(capsys):
    with pytest.raises(OSError, match="no/such-data"):
        hf_mae(capsys, "pretrain", "--data", "no/such-data", "--traceback")


# ----------------------------------------------------------------------------------------------------------------------
# Settings


@dataclass
class Group:
    """Group of settings."""

    one: float = HfArg(default=1.0, help="First.")
    two: list[int] | None = HfArg(default=None, help="Second.")


@dataclass
class Settings(Group):
    """Settings of a test."""

    data: str | None = HfArg(default=None, help="Third.")
    flag: bool = HfArg(default=True, help="Fourth.")

    def __post_init__(self):
        fit_values(self)


def parse(*argv, **kwargs):
    return parse_arguments(Settings, argv, prog="test", description="A test.", **kwargs)


def test_arguments__flags_override_a_recipe_which_overrides_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("one: 1e-3\ntwo: [1, 2]\nflag: false\n")
    assert parse() == Settings()
    assert parse("--recipe", str(recipe)) == Settings(1e-3, [1, 2], None, False)
    assert parse("--two", "3", "--recipe", str(recipe), "--flag", "true") == Settings(1e-3, [3], None, True)


def test_arguments__whole_numbers_may_have_an_exponent_as_in_recipes():
    assert parse("--two", "1e3", "-2", "1_000").two == [1000, -2, 1000]
    for wrong in ("1.5", "1e-1", "inf", "nan", "5k", ""):
        with pytest.raises(ValueError, match=f"argument --two: invalid int value: '{wrong}'. See test --help."):
            parse("--two", wrong)


def test_arguments__of_every_command_may_begin_with_the_folder_of_the_user(monkeypatch):
    """Shells put it in for `~` in `--output ~/sheet.png`, and leave it in `--output=~/sheet.png`."""
    monkeypatch.setenv("HOME", "/home/ann")
    parser = CommandParser()
    parser.add_argument("images", nargs="*")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--notes")
    namespace = parser.parse(["~/a.png", "b~.png", "--output=~/sheet.png", "--notes", "~ 5 points"])
    assert namespace.images == ["/home/ann/a.png", "b~.png"]
    assert namespace.output == Path("/home/ann/sheet.png")
    assert namespace.notes == "~ 5 points"


def test_arguments__that_are_empty_are_refused():
    """The command would go on with the embedded images, or write into the folder in which it was started."""
    for name in ("data", "recipe"):
        with pytest.raises((ValueError, OSError), match=f"`{name}` is empty|no recipe ''"):
            parse(f"--{name}", "", sample_recipe="small")
    with pytest.raises(ValueError, match="`model_name_or_path` is empty. .* for fresh weights"):
        PretrainingSettings(model_name_or_path="")


def test_arguments__sample_recipe_is_for_the_embedded_images(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("one: 5\n")
    assert parse(sample_recipe=str(recipe)).one == 5
    assert parse("--data", "folder", sample_recipe=str(recipe)).one == 1
    assert parse("--data=folder", sample_recipe=str(recipe)).one == 1


def test_help__has_groups_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    printed = capsys.readouterr().out
    assert "Group of settings:\n  --one FLOAT" in printed
    assert "First. Default: 1." in printed
    assert "--no_flag" not in printed


def test_recipes__of_the_package_are_found_by_name():
    recipes = [path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml")]
    assert len(recipes) > 20
    settings = load_recipe("ablations/mask_90", PretrainingSettings)
    assert settings["mask_ratio"] == 0.9
    assert load_recipe("pretrain_imagenet", PretrainingSettings)["effective_batch_size"] == 4096


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (PretrainingSettings, {"adam_beta1": 1.0}, "be in [0, 1), got 1.0."),
        (PretrainingSettings, {"dataloader_num_workers": -1}, "not be negative, got -1."),
        (PretrainingSettings, {"crop_scale_min": 1.5}, "be above 0 and at most 1, got 1.5."),
        (ProbingArguments, {"crop_scale_min": 0.0}, "be above 0 and at most 1, got 0.0."),
        (DemoArguments, {"model": "x", "num_images": 0}, "be at least 1, got 0."),
        (PretrainingSettings, {"seed": 2**63}, "be in [0, 2 ** 63), got 9223372036854775808."),
        (FineTuningArguments, {"num_train_epochs": 0}, "be above 0, got 0."),
        (FineTuningArguments, {"learning_rate": math.nan}, "be above 0, got nan."),
        (FineTuningArguments, {"weight_decay": -1}, "not be negative, got -1."),
        (FineTuningArguments, {"per_device_eval_batch_size": 0}, "be at least 1, got 0."),
        (PretrainingSettings, {"image_mean": [123.7]}, "be in [0, 1], got [123.7]."),
        (PretrainingSettings, {"image_std": [math.nan]}, "be above 0, got [nan]."),
        (FineTuningArguments, {"layer_decay": 0}, "be above 0, got 0."),
        (ProbingArguments, {"base_learning_rates": [0.1, -1]}, "be above 0, got [0.1, -1]."),
        (EvaluationArguments, {"model": "x", "seed": -1}, "be in [0, 2 ** 63), got -1."),
        (EvaluationArguments, {"model": "x", "max_train_images": 0}, "be at least 20, got 0."),
    ],
)
def test_settings__that_no_run_can_use_are_refused_before_anything_is_done(arguments, settings, words):
    (name,) = {*settings} - {"model"}
    with pytest.raises(ValueError, match=re.escape(f"`{name}` must {words}")):
        arguments(**settings)


@pytest.mark.parametrize(
    ("arguments", "settings", "way_out"),
    [
        (PretrainingSettings, {"compute_statistics": True, "image_mean": [0.5]}, "leave out `image_mean`"),
        (PretrainingSettings, {"cooldown_ratio": 0.1}, "`cooldown_ratio` is for `schedule` wsd"),
        (ExtractionArguments, {"stride": 0.5, "output": "x.parquet"}, "set `in_windows`, too"),
        (ProbingArguments, {"batch_size": 8}, "`batch_size` is for `fast`"),
        (ProbingArguments, {"fast": True, "eval_strategy": "no"}, "`eval_strategy` has no effect with `fast`"),
        (SegmentationArguments, {"data": "x", "sample_side": 2}, "`sample_side` is for the sample"),
        (ClassificationArguments, {"num_pooling_queries": 8}, "`num_pooling_queries` is for `pooling` attentive"),
        (ClassificationArguments, {"eval_only": True, "from_scratch": True}, "`from_scratch` is for training, and"),
        (ClassificationArguments, {"eval_only": True, "max_train_images": 5}, "`max_train_images` is for training"),
    ],
)
def test_settings__without_effect_are_refused(arguments, settings, way_out):
    model = {} if arguments is PretrainingSettings else {"model_name_or_path": "x"}
    with pytest.raises(ValueError, match=way_out):
        arguments(**settings, **model)


@pytest.mark.parametrize(
    "arguments",
    [
        PretrainingSettings,
        ClassificationArguments,
        ProbingArguments,
        SegmentationArguments,
        DetectionArguments,
        EvaluationArguments,
    ],
)
def test_output_dir__is_a_folder_and_not_that_of_the_images(arguments, tmp_path):
    """The pictures and the model of the run would lie among the images, and be taken for some the next time."""
    model = {"model" if arguments is EvaluationArguments else "model_name_or_path": "x"}
    with pytest.raises(ValueError, match="`output_dir` is the folder of the images. Choose another"):
        arguments(**model, data=tmp_path, output_dir=f"{tmp_path}/")
    (tmp_path / "figures.txt").write_text("mine")
    with pytest.raises(ValueError, match="figures.txt is a file. Choose another `output_dir`."):
        arguments(**model, output_dir=tmp_path / "figures.txt")


def test_device__that_is_not_there_is_refused_with_the_way_out():
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"`device` {device} can't be used: .* such as cpu, cuda or cuda:1"):
            EvaluationArguments(model="x", device=device)


def test_recipe__that_is_no_yaml_or_has_a_setting_twice_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for content, words in ((b"one: 1\none: 2\n", "it has one more than once"), (b"\xff", "can't decode byte 0xff")):
        recipe.write_bytes(content)
        with pytest.raises(ValueError, match=rf"The recipe .*recipe.yaml is no YAML: .*{words}"):
            load_recipe(recipe, Settings)


def test_recipe__has_what_differs_from_the_defaults():
    settings = PretrainingSettings(config_overrides=SMALL, max_steps=3, hub_model_id="me/mine")
    recipe = recipe_of(settings, {"max_steps"})
    assert recipe == {"config_overrides": SMALL}
    assert PretrainingSettings(**load_recipe(recipe, PretrainingSettings)).config_overrides == SMALL


def test_messages__name_flags_where_there_are_some():
    parse()
    assert in_flags("`one` must be positive, see `no_such_thing` and `pip install x`.") == (
        "--one must be positive, see `no_such_thing` and `pip install x`."
    )


def test_config_overrides__as_a_text_or_a_mapping():
    expected = {"hidden_size": 128, "image_size": [98, 126], "qkv_bias": False, "layer_norm_eps": 1e-5}
    assert config_changes("hidden_size=128,image_size=[98,126],qkv_bias=false,layer_norm_eps=1e-5") == expected
    assert config_changes(expected) == expected
    assert config_changes(None) == {}
    for wrong in ("hiden_size=3", "hidden_size", "hidden_size=wide", "hidden_size=[1", "model_type=vit", "to_dict=3"):
        with pytest.raises(ValueError, match="`config_overrides`: "):
            config_changes(wrong)
