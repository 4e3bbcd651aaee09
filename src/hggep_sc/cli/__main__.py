"""`python -m hggep_sc.cli`, where the command itself is not on the path."""

from . import hggep

hggep(prog_name="hggep")
