# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Which device and precision a run has, how processes share CPUs, and models that are wrapped or sharded."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import make, run_two_forks
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from hf_mae import MAEForImageClassification, MAEImageProcessor
from hf_mae.data.sampling import default_num_workers
from hf_mae.evaluation.probing import ProbingTrainer
from hf_mae.finetuning.experiment import check_experiment
from hf_mae.finetuning.settings import FineTuningArguments
from hf_mae.finetuning.trainer import FineTuningTrainer, _StopAtSignal
from hf_mae.modeling.reading_mae import ReadingSettings
from hf_mae.pretraining import images as run_images
from hf_mae.pretraining import run as pretraining_run
from hf_mae.pretraining.command import PretrainingRun, PretrainingSettings
from hf_mae.training import distributed
from hf_mae.training.distributed import (
    call_in_all_processes,
    call_in_main_process,
    chosen_precision,
    join_processes,
    joining_processes,
    shard_model,
    uses_cpu,
)
from hf_mae.training.step_guard import StepGuard

# ----------------------------------------------------------------------------------------------------------------------
# CPUs and devices


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        pytest.param([range(12 * n, 12 * n + 12) for n in range(8)], 12, id="Slurm: each process has its own"),
        pytest.param([range(96)] * 8, 12, id="torchrun: all share all"),
        pytest.param([range(64)] * 2, 16, id="at most 16"),
        pytest.param([range(2)] * 8, 1, id="at least 1"),
    ],
)
def test_default_num_workers__is_the_share_of_the_cpus_of_the_machine(usable, expected):
    assert default_num_workers(usable) == expected


def test_local_num_workers__counts_the_processes_of_this_machine_only(monkeypatch):
    def gather(mine):
        machine, _ = mine
        return [(machine, {0, 1, 2, 3}), (machine, {4, 5, 6, 7}), ("another", set(range(100)))]

    monkeypatch.setattr(distributed, "gather_from_processes", gather)
    assert distributed.local_num_workers() == 4


@pytest.fixture
def gpu_that_is_not_to_be_used(monkeypatch):
    """Makes the machine say that it has a GPU, and the user that it is not to be used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_pretraining__on_the_cpu_of_a_machine_with_a_gpu_is_in_float32(gpu_that_is_not_to_be_used, tmp_path):
    run = PretrainingRun(PretrainingSettings(output_dir=str(tmp_path)))
    run.start()
    assert run.device.type == "cpu"
    assert run.accelerator.mixed_precision == "no"


def test_fine_tuning__on_the_cpu_of_a_machine_with_a_gpu_is_in_float32(gpu_that_is_not_to_be_used, tmp_path):
    args = FineTuningArguments(str(tmp_path))
    assert args.device.type == "cpu"
    assert (args.bf16, args.dataloader_num_workers, args.dataloader_pin_memory) == (False, 0, False)


@pytest.mark.parametrize(
    ("asked", "gpu_has_bf16", "expected"),
    [("no", False, "no"), ("no", True, "bf16"), ("bf16", False, "bf16"), ("fp16", True, "fp16")],
)
def test_chosen_precision__is_the_launchers_or_else_that_of_the_gpu(monkeypatch, asked, gpu_has_bf16, expected):
    monkeypatch.setattr(distributed, "has_bf16", lambda device: gpu_has_bf16)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    assert chosen_precision(torch.device("cpu"), ("no", "bf16", "fp16")) == expected


def test_pretraining__has_the_precision_of_the_launcher_or_refuses_it(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = PretrainingRun(PretrainingSettings(output_dir=str(tmp_path)))
    run.start()
    assert run.accelerator.mixed_precision == "bf16"
    assert run.settings.bf16 is True
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="mixed_precision 'fp16'.* 'no' or 'bf16'.* `bf16`"):
        PretrainingRun(PretrainingSettings(output_dir=str(tmp_path))).start()
    run = PretrainingRun(PretrainingSettings(output_dir=str(tmp_path), bf16=False))  # a setting counts before it
    run.start()
    assert run.accelerator.mixed_precision == "no"


@pytest.mark.parametrize(
    ("launcher", "settings", "expected"),
    [
        pytest.param("bf16", {}, (True, False, "bf16"), id="the launcher's"),
        pytest.param("bf16", {"bf16": False}, (False, False, "no"), id="a setting counts before it"),
        pytest.param("fp16", {}, (False, True, "fp16"), id="fp16 of the launcher"),
        pytest.param("no", {"fp16": True}, (False, True, "fp16"), id="fp16, where the GPU has bf16, too"),
    ],
)
def test_fine_tuning__has_one_precision(monkeypatch, tmp_path, launcher, settings, expected):
    monkeypatch.setattr(distributed, "has_bf16", lambda device: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    args = FineTuningArguments(str(tmp_path), use_cpu=True, **settings)
    assert (args.bf16, args.fp16, args.mixed_precision) == expected


def test_fine_tuning__in_bfloat16_needs_no_gpu(tmp_path):
    """As in pre-training. transformers refuses it on a CPU unless it is told that there is nothing else."""
    assert FineTuningArguments(str(tmp_path), bf16=True).mixed_precision == "bf16"


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_labels_on_a_device__are_checked_without_waiting_for_it(tiny_config, labels):
    """Tensors without values raise an error when a value is asked for."""
    with torch.device("meta"):
        model = MAEForImageClassification(tiny_config(num_labels=3))
        assert model(torch.randn(2, 3, 32, 32), labels=labels.to("meta")).loss.shape == ()


# ----------------------------------------------------------------------------------------------------------------------
# Processes that find each other


@pytest.mark.parametrize(
    ("environment", "has_gpu", "expected"),
    [
        pytest.param({"LOCAL_RANK": "1"}, False, True, id="launched, without a GPU"),
        pytest.param({"LOCAL_RANK": "1"}, True, False, id="launched, with one"),
        pytest.param({}, False, False, id="not launched: Accelerate chooses"),
        pytest.param({"ACCELERATE_USE_CPU": "true"}, True, True, id="asked for"),
    ],
)
def test_launched_processes__are_on_the_cpu_where_there_is_no_gpu(monkeypatch, environment, has_gpu, expected):
    """Else Accelerate would take each of them for a run of one process, all of them in the same folder."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert uses_cpu() is expected


@pytest.mark.parametrize(
    ("variable", "engine"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config"),
    ],
)
def test_engine_of_the_launcher__that_is_not_supported_is_refused_by_name(monkeypatch, tmp_path, variable, engine):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"{engine} is not supported.*examples/accelerate"):
        PretrainingRun(PretrainingSettings(output_dir=str(tmp_path))).start()
    with pytest.raises(ValueError, match=f"{engine} is not supported.*examples/accelerate"):
        FineTuningArguments(str(tmp_path))
    monkeypatch.setenv(variable, "false")
    FineTuningArguments(str(tmp_path))


@pytest.mark.parametrize("settings", [{}, {"fsdp": "full_shard"}, {"deepspeed": "zero3.json"}])
def test_fine_tuning__refuses_to_shard_the_model_which_would_not_be_saved(monkeypatch, tmp_path, settings):
    if not settings:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as examples/accelerate/fsdp2.yaml does
    with pytest.raises(ValueError, match="sharded in pre-training only.*examples/accelerate/eight_gpus.yaml"):
        FineTuningArguments(str(tmp_path), use_cpu=True, **settings)


def test_processes_that_do_not_meet__say_which_variables_may_be_left_over(monkeypatch, capsys):
    for error in (
        dist.DistNetworkError("address already in use"),
        ValueError("MASTER_ADDR expected, but not set"),
        ValueError("invalid literal for int.. with base 10: 'abc'"),
        ValueError("port must have value from 0 to 65535 but was 99999."),
    ):
        expected = f"could not meet: {error}.*RANK, LOCAL_RANK, .* left over .* unset them"
        with pytest.raises(ValueError, match=expected), joining_processes():
            raise error
    with pytest.raises(ValueError, match="^another setting$"), joining_processes():
        raise ValueError("another setting")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(distributed, "_PATIENCE", 0.0)
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with joining_processes():
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    assert "Waiting for the other processes of 2, which meet at node7:29500" in capsys.readouterr().err


def test_signals__end_a_process_that_waits_for_others():
    """torch waits in C++, where no handler is called."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        during = signal.getsignal(signal.SIGTERM)
        with joining_processes():
            assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is during
    finally:
        signal.signal(signal.SIGTERM, before)


def run_twice(rank, port):
    """What a process does in a script with two runs. Those of the second do not meet until both look for each other."""
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings |= {"TORCHELASTIC_USE_AGENT_STORE": True, "ACCELERATE_USE_CPU": True, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in settings.items()})
    AcceleratorState._reset_state(reset_partial_state=True)
    for number in (1, 2):
        time.sleep(rank * (number - 1))
        assert join_processes().num_processes == 2
        total = torch.ones(())
        dist.all_reduce(total)
        assert total == 2
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
    os._exit(0)  # of a fork: what pytest would do at the end is not for this process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which is much faster than starting Python")
def test_second_run_of_a_script__finds_the_new_processes_in_the_store_of_torchrun():
    """The store still has the addresses of the first run, where nobody is any more."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    run_two_forks(run_twice, store.port)


# ----------------------------------------------------------------------------------------------------------------------
# Processes that agree


NAMES = [f"{number}.png" for number in range(30)]


@pytest.mark.parametrize(
    ("names", "changes", "difference"),
    [
        pytest.param(NAMES[:-1], {}, r"images to train on: 27 \(\w+\) and 26 \(\w+\)", id="one is missing"),
        pytest.param([*NAMES[:-1], "x.png"], {}, r"images to train on: 27 \((\w+)\) and 27 \((?!\1)", id="other names"),
        pytest.param(NAMES, {"learning_rate": 1e-3}, "learning_rate: None and 0.001", id="other settings"),
        pytest.param(NAMES, {"dataloader_num_workers": 3, "nodata": float("nan")}, None, id="what may differ"),
    ],
)
def test_run__whose_processes_have_other_images_or_settings_is_refused(
    tmp_path, monkeypatch, names, changes, difference
):
    """Wherever the folder lies. No process would notice by itself, and the batches would be those of no run."""
    processes = []

    def gather(mine):
        if mine is None:  # no error
            return [None]
        processes.append(mine)
        return list(processes)

    monkeypatch.setattr(distributed, "gather_from_processes", gather)
    make(tmp_path / "first", *NAMES)
    make(tmp_path / "second", *names)
    nodata = {"nodata": changes.pop("nodata")} if "nodata" in changes else {}
    run_images.open_run_images(PretrainingSettings(data=str(tmp_path / "first"), **nodata), None, ReadingSettings())
    settings = PretrainingSettings(data=str(tmp_path / "second"), **nodata, **changes)
    if difference is None:
        assert len(run_images.open_run_images(settings, None, ReadingSettings()).train) == 27
    else:
        with pytest.raises(ValueError, match=rf"(?s)Process 0 \(on .*\) and process 1 \(on .*{difference}"):
            run_images.open_run_images(settings, None, ReadingSettings())


def test_fine_tuning__whose_processes_have_other_images_is_refused_before_the_folder_is_compared(tmp_path, monkeypatch):
    args = FineTuningArguments(str(tmp_path / "out"), use_cpu=True)
    monkeypatch.setattr(
        distributed, "gather_from_processes", lambda mine: [({"images": "a", "task": "x"}, "one"), mine]
    )
    with pytest.raises(ValueError, match="(?s)process 1 .* of this run differ in.*\n  images: a and b\n"):
        check_experiment(args, "x", {"images": "b"})
    assert not (tmp_path / "out").exists()


def test_error__of_one_process_ends_all_with_its_reason(monkeypatch):
    monkeypatch.setattr(distributed, "gather_from_processes", lambda mine: [mine, None, "the disk is not there"])
    with pytest.raises(ValueError, match=r"Process 2 has ended: the disk is not there"):
        call_in_all_processes(lambda: "images")

    def fail():
        raise FileNotFoundError("not here")

    with pytest.raises(FileNotFoundError, match="not here"):
        call_in_all_processes(fail)


def agree(rank, folder):
    """What one of two processes does, each of which knows something else."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    assert call_in_main_process(lambda: f"of {rank}") == "of 0"
    with pytest.raises(ValueError, match="of 0"):
        call_in_main_process(partial(fail_with, f"of {rank}"))
    args = SimpleNamespace(world_size=2, device="cpu")
    control = SimpleNamespace(should_save=False, should_training_stop=False, should_evaluate=True)
    callback = _StopAtSignal(SimpleNamespace(number=signal.SIGUSR1 if rank else 0))
    callback.on_step_end(args, None, control)
    assert (control.should_save, control.should_training_stop, control.should_evaluate) == (True, True, False)
    assert callback.number == signal.SIGUSR1
    norms = torch.nn.BatchNorm2d(2)
    norms.running_mean.fill_(rank + 1)
    FineTuningTrainer.share_buffers(SimpleNamespace(args=args, model=norms))
    assert norms.running_mean.tolist() == [1, 1]
    norms.running_mean.fill_(rank + 1)
    trainer = object.__new__(ProbingTrainer)
    trainer.args, trainer.model = args, norms
    with mock.patch.object(Trainer, "evaluate", lambda trainer: trainer.model.running_mean.tolist()):
        assert trainer.evaluate() == [1, 1]  # as the probe is saved
    dist.barrier()
    os._exit(0)  # of a fork: what pytest would do at the end is not for this process


def fail_with(message):
    raise ValueError(message)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which is much faster than starting Python")
def test_two_processes__follow_the_first_and_stop_together(tmp_path):
    """Decisions, their errors and statistics of norms are those of the first; a signal to one of them ends both."""
    run_two_forks(agree, tmp_path)


# ----------------------------------------------------------------------------------------------------------------------
# The step of one process of several


class OneOfTwo:
    """Stands in for the Accelerator of one of two processes, and notes which batches are not exchanged."""

    num_processes = 2

    def __init__(self, process_index):
        self.process_index, self.alone = process_index, 0

    @contextmanager
    def no_sync(self, model):
        self.alone += 1
        yield


def take_step(process_index, step):
    """Takes a step of three batches. Returns what dropout would draw, and how many batches are not exchanged."""
    run = object.__new__(PretrainingRun)
    run.settings, run.step, run.device = PretrainingSettings(output_dir="x", seed=1), step, torch.device("cpu")
    run.accelerator, run.is_sharded, run.model = OneOfTwo(process_index), False, None
    run.batches, run.schedule = (
        SimpleNamespace(accumulation=3, failure=None, stop_signal=0),
        SimpleNamespace(rate_at=lambda step: 0.0),
    )
    run.optimizer = SimpleNamespace(param_groups=[], zero_grad=lambda: None)
    run.guard, run.bar = SimpleNamespace(step=lambda *args: None), SimpleNamespace(update=lambda: None)
    run.stop_signals, run._next_batch, drawn = SimpleNamespace(number=0), lambda: None, []
    run._backward = lambda batch, counts: drawn.append(torch.rand(()).item()) or torch.zeros(())
    run.take_step()
    return tuple(drawn), run.accelerator.alone


def test_step__draws_in_each_process_and_step_anew():
    drawn = [take_step(process, step)[0] for process in (0, 1) for step in (3, 4)]
    assert len({number for numbers in drawn for number in numbers}) == 12
    torch.manual_seed(5)  # whatever was before
    assert take_step(1, 3)[0] == drawn[2]


def test_step__exchanges_gradients_once_for_all_its_batches():
    assert take_step(0, 0)[1] == 2


def test_stop_signal__is_read_when_it_has_arrived_on_the_host(tiny_model):
    """Before, the memory that it is copied to holds anything, and processes would not stop together."""
    arriving = torch.zeros(())
    event = SimpleNamespace(synchronize=lambda: arriving.fill_(signal.SIGTERM))
    guard = StepGuard(torch.optim.AdamW(tiny_model().parameters(), fused=True))
    guard._stop_signals = [(arriving, event)] * 2
    assert guard.stop_signal == signal.SIGTERM


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False)])
def test_batches__for_a_gpu_lie_in_pinned_memory(monkeypatch, device, pinned):
    """Else the host waits for each copy, although it is told not to."""
    made = {}
    monkeypatch.setattr(pretraining_run, "RunBatches", lambda *args, **options: made.update(options))
    run = object.__new__(PretrainingRun)
    run.settings, run.images, run.device = None, SimpleNamespace(train=None, weights=None), torch.device(device)
    run.image_processor, run.plain_model, run.workers = None, SimpleNamespace(config=None), 0
    run._start_loader = lambda: None
    run._build_loader()
    assert made["pin_memory"] is pinned


# ----------------------------------------------------------------------------------------------------------------------
# Wrapped and sharded models


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp__holds_gradients_once(tiny_config, tmp_path):
    run = PretrainingRun(PretrainingSettings(output_dir=str(tmp_path)))
    run.start()
    args = FineTuningArguments(str(tmp_path), use_cpu=True, eval_strategy="no")
    trainer = FineTuningTrainer(MAEForImageClassification(tiny_config(num_labels=2)), args)
    for accelerator in (run.accelerator, trainer.accelerator):
        assert accelerator.ddp_handler.to_kwargs()["gradient_as_bucket_view"] is True


@pytest.mark.parametrize("options", [{}, {"mask_tokens_in_encoder": True}])
def test_ddp__trains_a_model_that_hides_nothing(one_process, tiny_model, options):
    """DDP needs a gradient of every parameter in every step, also of a mask token that stands for no patch."""
    model = DistributedDataParallel(tiny_model(mask_ratio=0.0, **options).train(), gradient_as_bucket_view=True)
    for _ in range(2):
        model(torch.randn(2, 3, 32, 32)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.filterwarnings("error")
def test_fsdp2__computes_in_bf16_what_ddp_does(one_process, tiny_model):
    """Only matrix products are bfloat16; the sums that pass from block to block and the gradients are float32."""
    results = []
    for wrap in (DistributedDataParallel, shard_model):
        torch.manual_seed(0)
        model = wrap(tiny_model(num_hidden_layers=3).train())
        with torch.autocast("cpu", torch.bfloat16):
            output = model(torch.randn(2, 3, 32, 32), noise=torch.rand(2, 16), output_hidden_states=True)
        output.loss.backward()
        gradient = getattr(model, "module", model).mae.layers[0].mlp.fc1.weight.grad
        results.append((output, gradient.full_tensor() if wrap is shard_model else gradient))
    (ddp, ddp_gradient), (sharded, sharded_gradient) = results
    assert all(state.dtype == torch.float32 for state in sharded.hidden_states)
    torch.testing.assert_close(sharded.hidden_states, ddp.hidden_states, rtol=0, atol=0)
    torch.testing.assert_close(sharded.loss, ddp.loss, rtol=0, atol=0)
    torch.testing.assert_close(sharded_gradient, ddp_gradient, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("variable", "value", "way_out"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true", "weights stay on the GPU; `gradient_checkpointing` saves memory"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "set `gradient_checkpointing` instead"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set `torch_compile` instead"),
    ],
)
def test_fsdp2__refuses_what_the_launcher_asks_for_in_vain(monkeypatch, tiny_model, variable, value, way_out):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} to {value}, which has no effect: {way_out}"):
        shard_model(tiny_model())


def test_fsdp2__a_batch_of_a_run_is_computed_in_its_precision(one_process, tiny_model):
    """Accelerate wraps the forward pass of models in autocast, but not of those that it does not shard itself."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run, seen = object.__new__(PretrainingRun), []
    run.model, run.device, run.image_processor = (
        shard_model(tiny_model().train()),
        torch.device("cpu"),
        MAEImageProcessor(),
    )
    run.accelerator, run.schedule = Accelerator(cpu=True, mixed_precision="bf16"), SimpleNamespace(batch_size=2)
    run.model.mae.layers[0].mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    run._backward({"pixel_values": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "noise": torch.rand(2, 16)})
    assert seen == [torch.bfloat16]
    AcceleratorState._reset_state(reset_partial_state=True)
