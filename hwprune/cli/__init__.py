"""The command line: one file a command; each parses, calls the library and prints.

It uses everything below and is used by nobody.

Begin with `main` (the table of commands) and `search_command`.
"""
