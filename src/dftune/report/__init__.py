"""Reports: run folders in, one self-contained HTML file and one Markdown file out. Imports no torch."""

from dftune.report.document import Report, ReportPaths, build, read

__all__ = ["Report", "ReportPaths", "build", "read"]
