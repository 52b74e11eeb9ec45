"""What the programs in tools/ do: read a command line, call functions of the package, tell errors in one line."""
