"""Running the command line: settings files, error messages and exit codes."""

from __future__ import annotations

import _thread
import gc
import os
import shlex
import signal
import sys
import threading
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cyclopts import App, ArgumentCollection, CycloptsError, Token
from cyclopts import exceptions as faults

from layerfuse.cli.commands import app
from layerfuse.cli.console import Output, open_streams, visible
from layerfuse.cli_options import FitConfig
from layerfuse.errors import (
    FULL_DISK,
    ConfigError,
    LayerfuseError,
    NotFoundError,
    did_you_mean,
    is_out_of_memory,
)

_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
_RESUMED = {
    "fit",
    "profile",
    "compare",
    "curve",
    "demo",
    "extract",
}  # their embeddings go to the store


def main() -> int:
    """Run the command line; 0 on success, 2 on a mistake, 1 on an internal error, 130 on Ctrl-C."""
    arguments = sys.argv[1:]
    # What imports make stays: looking through it again and again takes a seventh of a cold start.
    gc.set_threshold(50_000, 20, 100)
    open_streams()
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        code = int(app(arguments, print_error=False, exit_on_error=False) or 0)
        sys.stdout.flush()
        return code
    except CycloptsError as error:
        return _fail(_explain(error))
    except LayerfuseError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        kept = "To start again:"
        if arguments[0] in _RESUMED:
            kept = "Finished embeddings are kept. To resume:"
        elif arguments[0] == "predict" and _keeps_parts(arguments):
            kept = "Finished parts are kept. To resume:"
            arguments += [] if "--resume" in arguments else ["--resume"]
        again = shlex.join(["layerfuse", *arguments])
        return _fail(f"interrupted. {kept}\n  {again}", _INTERRUPTED)
    except (BrokenPipeError, SystemExit):
        # The reader has gone (`| head`), which rich answers with SystemExit.
        _drop_output()
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK and error.filename is None:
            _drop_output()
            return _fail(
                "there is no room for what standard output should hold. What was saved is complete."
            )
        if is_out_of_memory(error):
            return _fail(
                "there is no memory left. Read fewer --layers, poolings or encoders, use part of "
                "the rows with --sample, or a machine with more memory.\n"
                "Finished embeddings are kept."
            )
        if os.environ.get("LAYERFUSE_TRACEBACK") or {"--verbose", "-v"} & set(arguments):
            raise
        return _fail(
            f"internal error, {type(error).__name__}: {error}\n"
            "This should not happen. --verbose (or LAYERFUSE_TRACEBACK=1) shows the traceback.",
            1,
        )
    finally:
        sys.unraisablehook = hook


def _keeps_parts(arguments: Sequence[str]) -> bool:
    """Whether ``predict`` writes a file, of texts that can be read again."""
    written = any(word.startswith("--out") for word in arguments)
    return written and not {"-", "--out=-"}.intersection(arguments)


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that fell into a finalizer, where Python would ignore it, comes once more."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, _interrupt).start()
    else:
        sys.__unraisablehook__(ignored)


def _interrupt() -> None:
    if hasattr(signal, "pthread_kill"):  # which ends a wait of the main thread, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _drop_output() -> None:
    """What is still buffered goes nowhere, so that Python does not complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str, code: int = 2) -> int:
    sys.stderr.write(f"layerfuse: {visible(message)}\n")
    return code


def _explain(error: CycloptsError) -> str:
    """What is wrong with the arguments, and where the right ones are listed."""
    command = shlex.join(["layerfuse", *(error.command_chain or ())])
    message = str(error)
    if isinstance(error, faults.MissingArgumentError) and error.argument is not None:
        if error.argument.tokens or error.keyword:
            message = f"{error.keyword or error.argument.name} needs a value."
        else:
            message = f"{error.argument.name.lstrip('-').upper()} is missing."
    elif isinstance(error, faults.UnusedCliTokensError) and error.unused_tokens:
        message = f"Unexpected argument {error.unused_tokens[0]!r}."
    elif isinstance(error, faults.ValidationError) and error.group:
        message = f"{error.exception_message}. Give one of them."
    elif isinstance(error, faults.CoercionError) and error.token is None and error.argument:
        message = f"Invalid value for {error.argument.tokens[0].keyword}: {message}"
    elif isinstance(error, faults.RepeatArgumentError):
        message = f"{error.token.keyword} is given more than once. Give it once."
    return f"{message}\nSee {command} --help"


_SEVERAL = ("text_column", "label_column")  # take several names in one value


def _read_settings(_: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the values of the file of ``--config`` to the options that were not given."""
    options = {argument.field_info.name: argument for argument in arguments}
    source = options.get("config")
    if source is None or not source.tokens:
        return
    path = Path(source.tokens[0].value)
    unsettable = {"config", *(field.name for field in fields(Output))}
    settings = [n for n, option in options.items() if not option.children and n not in unsettable]
    for key, value in _read_toml(path).items():
        if key not in settings:
            command = " ".join(commands)
            if key in {field.name for field in fields(FitConfig)}:
                raise ConfigError(f"{path}: {key!r} is not used by {command}. Remove it.")
            raise ConfigError(
                f"{path}: unknown setting {key!r}.{did_you_mean(key, settings)} Settings of "
                f"{command}: {', '.join(settings)}."
            )
        option = options[key]
        if not option.tokens:
            keyword = f"{key} in {path}"
            try:
                texts = _texts(value)
            except RecursionError as error:
                raise ConfigError(f"{keyword} is nested too deeply. Give a plain value.") from error
            _, takes_several = option.token_count()
            if not takes_several and isinstance(value, list | dict):
                example = f" Several columns are {','.join(texts)!r}." * (key in _SEVERAL)
                raise ConfigError(
                    f"{keyword} takes one value, not {len(texts)}. Write it as on the command "
                    f"line.{example}"
                )
            option.tokens += [Token(keyword=keyword, value=text) for text in texts]


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no settings file {path}. Correct --config.") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read as a settings file: {error.strerror}. Give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def _texts(value: object) -> list[str]:
    """A value of a settings file as it would be typed after its option."""
    if isinstance(value, dict):
        return [f"{name}={text}" for name, own in value.items() for text in _texts(own)]
    if isinstance(value, list):
        return [text for own in value for text in _texts(own)]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


app.config = (_read_settings,)
