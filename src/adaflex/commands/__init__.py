"""One module per subcommand: HELP in cli.py, configure(parser) and run(args) here."""
