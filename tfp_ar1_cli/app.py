"""The program: its commands, and how it turns every error into one line and an exit code."""

import contextlib
import os
import sys
from collections.abc import Sequence

import click

from tfp_ar1_cli import (
    encode,
    errors,
    evaluate,
    export,
    forecast,
    impute,
    info,
    list_runs,
    reconstruct,
    sample,
    score,
    startup,
    train,
)

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(invoke_without_command=True, context_settings=_SETTINGS)
@click.version_option(package_name="tfp_ar1", prog_name="tfp-ar1")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Variational autoencoders whose posterior is an AR(1) Gaussian (rho-VAE).

    'tfp-ar1 train' without options trains one on handwritten digits in about a minute, and says
    where its pictures, its model and its results are.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


_COMMANDS = (
    *(train, evaluate, impute, forecast, score, encode, reconstruct, sample, export),
    *(info, list_runs),
)
for _module in _COMMANDS:
    cli.add_command(_module.command)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; see `tfp_ar1_cli.main`."""
    startup.set_environment()
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Some terminals lack the letter ρ, and file names need not be valid text.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return cli.main(argv, prog_name="tfp-ar1", standalone_mode=False, obj=argv) or 0
    except click.Abort as abort:
        stopped = errors.Interrupted("interrupted.", abort.__cause__)
        return _fail(stopped.message, stopped.code, kind="")
    except errors.Interrupted as error:
        return _fail(error.message, error.code, kind="")
    except click.ClickException as error:
        message = error.format_message()
        if isinstance(error, click.UsageError) and error.ctx is not None:
            message += f" (See '{error.ctx.command_path} --help'.)"
        return _fail(message, error.exit_code)
    except BrokenPipeError:
        # The reader closed the pipe.
        _discard_stdout()
        return 1
    except OSError as error:
        return _fail(errors.describe(error), 2)
    except UnicodeEncodeError as error:
        return _fail(
            f"{error.object[:300]}: has characters that {error.encoding} cannot encode "
            f"({error.reason}); rename the file or folder, or set LC_ALL=C.UTF-8.",
            2,
        )
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except (OSError, ValueError):  # For example, the disk is full.
            _discard_stdout()


def _discard_stdout() -> None:
    """Keeps Python from reporting the error again when it flushes stdout at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, kind: str = "error: ") -> int:
    click.echo(f"tfp-ar1: {kind}{' '.join(message.split())}", err=True)
    return code
