"""`python -m dgpo_cli`, so that launchers such as `accelerate launch -m dgpo_cli ...` work."""

from dgpo_cli.cli import main

main()
