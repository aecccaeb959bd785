"""One module per subcommand: a dataclass of options (its docstring is the help) and `run(options)`."""
