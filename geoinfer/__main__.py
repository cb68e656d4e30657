"""`python -m geoinfer` is the `geoinfer` command."""

from geoinfer.cli import main

main()
