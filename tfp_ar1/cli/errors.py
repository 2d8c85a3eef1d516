"""What the command line reports in one line."""

import click


class UserError(click.ClickException):
    """Something in what the user asked for or gave is wrong; nothing was written."""

    exit_code = 2


class Interrupted(click.ClickException):
    """The user pressed Ctrl-C."""

    exit_code = 130
