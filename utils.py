"""What every script needs and that has nothing to do with bounds.

User errors in one line, the command-line parser, seeds, device and precision, versions and atomic
files.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import platform
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lipschitz import __version__
from lipschitz.errors import InputError, one_line, suggest

# torch and numpy take seconds to import: only what computes with them does.
if TYPE_CHECKING:
    import torch
    from torch import nn


# --- command line -------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line on stderr, without the usage text, exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation such as --data-r would silently change meaning when an option is added.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Parses the command line; an unknown option is refused with the closest known one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            hint = suggest(unknown[0].split("=")[0], self._option_string_actions)
            self.error(f"unknown argument {unknown[0]!r}{hint}; see --help")
        return parsed

    def given(self, args: Sequence[str]) -> set[str]:
        """Names of the options that stand on a command line, whatever their values."""
        defaults = {action: action.default for action in self._actions}
        try:
            for action in self._actions:
                action.default = argparse.SUPPRESS
            return set(vars(self.parse_known_args(args)[0]))
        finally:
            for action, default in defaults.items():
                action.default = default

    def error(self, message: str) -> NoReturn:
        """Prints `error: message` as one line and exits with code 2."""
        print(f"error: {one_line(message)}", file=sys.stderr)
        raise SystemExit(2)


def run_cli(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Runs a command-line entry point; expected failures become one line on stderr, no traceback.

    Programming errors are not caught: their traceback is what the maintainers need.

    Args:
        main: Entry point that takes the arguments (None: those of the process), returns a code.
        argv: Arguments without the program name.

    Returns:
        The exit code: that of `main`, 2 after an error, 130 after Ctrl-C, 141 when the reader of
        stdout has gone.
    """
    try:
        return main(argv)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:
        # What is still buffered must not raise a second time when the interpreter exits.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 141
    except MemoryError as error:
        return _fail(memory_message(error), 2)
    except OSError as error:
        return _fail(_os_message(error), 2)
    except (InputError, NotImplementedError) as error:
        return _fail(str(error) or type(error).__name__, 2)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _fail(memory_message(error), 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the CPU's or the GPU's memory is exhausted.

    Torch reports it as a RuntimeError: of a class of its own on a GPU, a plain one on the CPU.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    says = str(error)
    return isinstance(error, RuntimeError) and (
        "allocate memory" in says or "not enough memory" in says
    )


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C during the imports inside ends the process at once, in one line.

    Importing torch takes seconds. An exception in the middle of it would leave half-made modules,
    whose errors are anything but what happened.
    """

    def stop(*_: object) -> None:
        os.write(2, b"error: interrupted\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def memory_message(error: BaseException) -> str:
    """What to do about exhausted memory, in one line."""
    return f"out of memory; lower --batch-size ({one_line(str(error))[:120]})"


def _os_message(error: OSError) -> str:
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def parse_params(text: str | None, **named: Any) -> dict[str, Any]:
    """Factory arguments from the command line.

    Args:
        text: For example `width=32,depth=4`; values are read as int, float, true/false or text.
        **named: Options of their own such as `--width`; those that are None are left out.

    Returns:
        The arguments by name.

    Raises:
        InputError: An item is not `name=value`, or a name is given twice.
    """
    params = {name: value for name, value in named.items() if value is not None}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and value and name.isidentifier()):
            raise InputError(f"expected name=value,... as in width=32,depth=4, got {item!r}")
        if name in params:
            raise InputError(f"{name!r} is given twice; give it once")
        params[name] = _parse_value(value)
    return params


def numbers(option: str, text: str, kind: type) -> list[Any]:
    """Comma-separated numbers of a command-line option.

    Raises:
        InputError: Something else than numbers of this kind.
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} {text}: expected {what} separated by commas") from None


def _parse_value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


# --- numbers for people --------------------------------------------------------------------------


def significant(value: float, digits: int = 6) -> str:
    """A number with so many significant digits, whatever its size: 22.8347, 3.21e-07, 1.5e+12."""
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Seconds for a line or a table: three digits, whole from a thousand on."""
    return f"{seconds:.3g}" if seconds < 999.5 else f"{seconds:.0f}"


# --- seeds, device, precision, versions ---------------------------------------------------------


def set_seed(seed: int) -> None:
    """Seeds Python, numpy and torch (all devices).

    Raises:
        InputError: `seed` is outside 0 .. 2^32 - 1, the range that numpy takes.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}: expected 0 to {2**32 - 1}")
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(seed)


def choose_device(name: str = "auto") -> torch.device:
    """The device to compute on; `auto` is CUDA where there is one.

    Raises:
        InputError: The name is unknown, or CUDA is asked for and absent.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: expected auto, cpu or cuda")
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError("device 'cuda' asked for, but torch sees no CUDA GPU; use --device cpu")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")


def choose_dtype(name: str = "auto", model: nn.Module | None = None) -> torch.dtype:
    """The precision to compute in.

    Args:
        name: `float32`, `float64`, or `auto`: float64 if the model has float64 weights or buffers.
        model: The model that `auto` looks at; without one `auto` is float32.

    Raises:
        InputError: The name is unknown.
    """
    import torch

    named = {"float32": torch.float32, "float64": torch.float64}
    if name in named:
        return named[name]
    if name != "auto":
        raise InputError(f"unknown dtype {name!r}: expected float32, float64 or auto")
    weights = (*model.parameters(), *model.buffers()) if model is not None else ()
    is_double = any(weight.dtype == torch.float64 for weight in weights)
    return torch.float64 if is_double else torch.float32


def use_threads_that_pay(numbers_per_operation: int) -> None:
    """Keeps torch to one CPU thread where its operations are too small to share out.

    Threads that wait for each other make a tiny network many times slower as soon as another
    process wants the cores. $OMP_NUM_THREADS, if set, is left to decide.

    Args:
        numbers_per_operation: Size of the largest tensor that one operation works on.
    """
    # 100,000 numbers: a choice, no measurement is on record. Only speed depends on it.
    if numbers_per_operation < 100_000 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


@functools.lru_cache(maxsize=1)
def _tool_version() -> str:
    home = Path(__file__).resolve().parent
    if not (home / ".git").exists():
        return __version__  # installed, perhaps inside a user's own repository
    command = ["git", "-C", str(home), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__  # a copy without its history, or no git
    return f"{__version__}+{commit.stdout.strip()}"


def versions() -> dict[str, str | None]:
    """Versions that a result depends on; None for a package that is not installed."""

    def installed(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        "torch": installed("torch"),
        "auto_LiRPA": installed("auto_LiRPA"),
        "numpy": installed("numpy"),
        "tool": _tool_version(),
    }


# --- files --------------------------------------------------------------------------------------


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that a crash leaves the old one or the new one, never a part.

    Folders on the way are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def torch_save_atomic(content: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save` through `atomic_write_bytes`."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    atomic_write_bytes(path, buffer.getvalue())
