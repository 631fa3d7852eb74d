"""Published result tables, checked against arithmetic and against what they say of themselves. Imports no torch."""

from dftune.audit.audit import Options, audit, read
from dftune.audit.findings import Finding

__all__ = ["Finding", "Options", "audit", "read"]
