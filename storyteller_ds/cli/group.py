"""Help of a command group, with a full sentence for each command."""

import click


class Group(click.Group):
    """A group whose help shows full descriptions; click truncates those that do not fit on one line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, wrapped."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.description(ctx, name)) for name in self.list_commands(ctx)])

    def description(self, ctx: click.Context, name: str) -> str:
        """What a command does: the first sentence of its help."""
        command = self.get_command(ctx, name)
        return first_sentence(command) if command is not None else ""


def first_sentence(command: click.Command) -> str:
    """The first sentence of a command's help."""
    return command.get_short_help_str(limit=10_000)
