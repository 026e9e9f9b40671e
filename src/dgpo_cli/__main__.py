"""`python -m dgpo_cli`, so that launchers such as `accelerate launch -m dgpo_cli ...` work."""

from dgpo_cli.cli import main

if __name__ == "__main__":  # a process that is started beside this one imports it
    main()
