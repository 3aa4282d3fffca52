"""The command line: parse, one library call, exit code."""
