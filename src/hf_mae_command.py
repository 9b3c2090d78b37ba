# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The hf_mae authors
"""Runs `hf-mae <command>`. It stands outside the package, so that `hf-mae --help` does not have to load torch."""

import difflib
import errno
import importlib
import io
import logging
import os
import signal
import sys
import time

started: float | None = None  # `time.perf_counter` when the command began that is running: a time budget asks

# What each command does, and the function that does it.
COMMANDS = {
    "pretrain": ("hf_mae.pretraining.command:pretrain_command", "Pre-train on unlabelled images."),
    "finetune": ("hf_mae.finetuning.classification:finetune_command", "Fine-tune a classifier on labelled images."),
    "segment": ("hf_mae.finetuning.segmentation:segment_command", "Train UperNet on images with masks."),
    "detect": ("hf_mae.finetuning.detection:detect_command", "Train a detector on images with boxes."),
    "probe": ("hf_mae.evaluation.probing:probe_command", "Train a linear classifier on frozen features."),
    "evaluate": ("hf_mae.evaluation.evaluating:evaluate_command", "Compare models on images, in one table."),
    "features": ("hf_mae.evaluation.features:features_command", "Write features of images to a file."),
    "score": ("hf_mae.evaluation.scoring:score_command", "Write the loss of each image to a file."),
    "reconstruct": ("hf_mae.evaluation.visualization:reconstruct_command", "Draw what a model reconstructs."),
    "attention": ("hf_mae.evaluation.visualization:attention_command", "Draw where the class token looks."),
    "demo": ("hf_mae.demo:demo_command", "Try a model on a page in the browser; write that page as a Space."),
    "convert": ("hf_mae.conversion.command:convert_command", "Convert weights from and to other implementations."),
    "push": ("hf_mae.publishing.hub:push_command", "Write the model card and push a model to the Hub."),
}

_LOST_CONNECTION = (
    "Another process of this run has ended or does not answer; look for its message. The same command goes on from the "
    "last checkpoint."
)
# Several processes share the work of these. All others would do it once in each process, over the same files.
SHARED = ("pretrain", "finetune", "segment", "detect", "probe")


def begin():
    """Starts the clock, and makes idle threads of OpenMP sleep instead of spin. To be called before torch is loaded.

    Loading torch may take twenty seconds, and it reads once how threads wait. On a shared machine spinning threads cost
    a factor of ten, on a quiet one sleeping costs little; see benchmarks/NOTES.md. What the user has set stays.
    """
    global started
    started = time.perf_counter()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's runtime, in milliseconds


def end_silently_at_ctrl_c(silently: bool):
    """Chooses whether Ctrl-C ends the process without a traceback, as long as nothing is at stake, or as usual."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # of a script, in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL if silently else signal.default_int_handler)


def main(argv: list[str] | None = None):
    """Runs one command and ends the process with its exit status.

    Args:
        argv (`list[str]`, *optional*): The command and its arguments. Default: those of the process.

    The status is 0 after success, 2 after a mistake of the user, which is described in one line, 128 + signal after a
    run that was stopped and saved, 141 where nobody reads the output any more, and 1 after any other error.
    """
    global started
    if started is None:
        begin()
    if argv is None:  # the process is ours
        end_silently_at_ctrl_c(False)
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        _flush("\n")  # fails again, unless it was another pipe
        raise
    finally:
        if argv is None:
            end_silently_at_ctrl_c(True)
        started = None
        _flush()


def _flush(text: str = ""):
    """Writes a text and what was printed. Where nobody reads any more, as after `| head`, the command ends quietly."""
    try:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        if isinstance(error, BrokenPipeError):
            raise SystemExit(141) from None
        print(f"hf-mae: The output of the command could not be written: {error}", file=sys.stderr)  # a full disk
        raise SystemExit(1) from None


def _run(argv: list[str]):
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may have bytes that it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    show_traceback = "--traceback" in argv
    argv = [argument for argument in argv if argument != "--traceback"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    command, *arguments = argv
    if command == "--version":
        from importlib.metadata import version

        print(f"hf-mae {version('hf-mae')}")
        return
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(COMMANDS)}."
        _end(f"hf-mae: there is no command {command!r}. {hint}", 2)
    count = os.environ.get("WORLD_SIZE", "1") if "LOCAL_RANK" in os.environ else "1"
    if command not in SHARED and count != "1" and not {"-h", "--help"} & set(arguments):
        way_out = "Start it without a launcher. If there was none, unset LOCAL_RANK: it is left over from another run."
        _end(f"hf-mae {command}: it works in one process, and WORLD_SIZE says that {count} were started. {way_out}", 2)
    module, function = COMMANDS[command][0].split(":")
    make_record = logging.getLogRecordFactory()
    logging.setLogRecordFactory(lambda *args, **kwargs: _with_flags(make_record(*args, **kwargs)))
    try:
        getattr(importlib.import_module(module), function)(arguments, prog=f"hf-mae {command}")
    except (Exception, KeyboardInterrupt) as error:
        status, message = _exit_status(error), str(error)
        if status is None and _is_lost_connection(error):
            status, message = 1, _LOST_CONNECTION
        if show_traceback or status is None:
            raise
        _end(f"hf-mae {command}: {_in_flags(message) or type(error).__name__}", status)
    finally:
        logging.setLogRecordFactory(make_record)


def _in_flags(message: str) -> str:
    cli = sys.modules.get("hf_mae.cli")  # not imported: if Ctrl-C came while torch was loaded, that fails
    return cli.in_flags(message) if cli else message


def _with_flags(record: logging.LogRecord) -> logging.LogRecord:
    """Lets messages of our log name flags, as errors do, where Python users read the names of parameters."""
    if record.name.startswith("hf_mae") and isinstance(record.msg, str):
        record.msg = _in_flags(record.msg)
    return record


def _exit_status(error: BaseException) -> int | None:
    """Returns the exit status for an error that one line can describe, `None` for a fault of the program."""
    if hasattr(error, "exit_status"):  # a run that was stopped
        return error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):  # that of the output is no mistake of the user, see `main`
        return None
    if isinstance(error, ArithmeticError) or _is_full_disk(error):  # a run that diverged
        return 1
    missing_extra = isinstance(error, ImportError | RuntimeError) and "pip install" in str(error)
    broken_weights = type(error).__name__ == "SafetensorError"
    return 2 if isinstance(error, ValueError | OSError) or missing_extra or broken_weights else None


def _is_full_disk(error: BaseException) -> bool:
    """Returns whether a file found no room, which safetensors says in an error of its own, without a number."""
    if type(error).__name__ == "SafetensorError":
        return "(os error " in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _is_lost_connection(error: BaseException) -> bool:
    """Returns whether torch says, in an error without a type of its own, that it no longer reaches a process."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo/transport", "ncclRemoteError"))


def _end(message: str, status: int):
    if status < 128 or os.environ.get("RANK", "0") == "0":  # all processes stop, and one says so
        print(message, file=sys.stderr, flush=True)
    raise SystemExit(status)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-mae <command> [arguments]",
            "",
            "Masked autoencoders: pre-train on your own images, look, judge, fine-tune, publish.",
            "",
            *lines,
            "",
            "hf-mae <command> --help lists the arguments of a command. --traceback shows where an error came from.",
            "hf-mae --version prints the version of hf_mae.",
            f"{', '.join(SHARED[:-1])} and {SHARED[-1]} work in several processes, too:",
            "accelerate launch -m hf_mae <command>, or torchrun -m hf_mae <command>.",
        ]
    )


if __name__ == "__main__":
    main()
