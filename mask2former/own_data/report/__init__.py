"""One HTML page that tells how a training went."""

from mask2former.own_data.report.write import REPORT_FILE, write_report

__all__ = ["REPORT_FILE", "write_report"]
