"""Entry point: `dgpo`, and `python -m dgpo_cli` for launchers such as `accelerate launch -m dgpo_cli ...`.

Interrupts and closed streams are taken care of before anything large is imported.
"""

from dgpo_cli.core import interrupts, streams

streams.open_closed()
interrupts.watch()  # also in a child process, which imports this file


def main() -> None:
    """Run the command line; Ctrl-C ends it with status 130 at any moment."""
    import sys

    try:
        from dgpo_cli import cli

        sys.excepthook = cli.show_bug
        cli.main()
    except KeyboardInterrupt:  # another one, while the first was answered
        interrupts.end()
    except SystemExit as ended:
        interrupts.leave(ended.code)
        raise


if __name__ == "__main__":
    main()
