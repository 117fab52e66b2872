"""The one kind of error that is for people: what is wrong, where, and how to mend it.

Both commands print it as one line and exit with code 2; anything else is a bug.
"""

from __future__ import annotations

from pathlib import Path

import click

from llm_perf.screen import plain


class UserError(Exception):
    """Input that the user can mend.

    ``what`` says what is wrong, ``where`` the file, line or key, ``fix`` what to write instead.
    """

    exit_code = 2
    """What a command ends with that can't go on."""

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        line: int | None = None,
        fix: str | None = None,
    ) -> None:
        place = f"{where}:{line}" if where is not None and line is not None else where
        text = f"{place}: {what}" if place is not None else what
        super().__init__(plain(" ".join((f"{text}; {fix}" if fix else text).split())))


def exit_code(command: click.Command, name: str, interrupted: str = "interrupted") -> int:
    """Run a command line to its end; what went wrong is printed, here alone, as one line.

    The error's own where it has one, else 2 where the user can mend it, 130 for Ctrl-C, else what
    the command returned.
    """
    try:
        return command.main(standalone_mode=False) or 0
    except UserError as error:
        click.echo(f"{name}: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        click.echo(f"{name}: {plain(error.filename)}: {error.strerror}", err=True)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)  # where the error is of a command's own
        path = context.command_path if context else name
        click.echo(f"{name}: {plain(error.format_message())} (see {path} --help)", err=True)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: {interrupted}", err=True)
        return 130
    return 2
