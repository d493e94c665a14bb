"""The HTML report: one file that shows which rows are anomalous, and how far that can be trusted."""

from invgan.report.content import ReportContent
from invgan.report.figures import histogram_figure, roc_figure, training_figure
from invgan.report.page import write_report

__all__ = ["ReportContent", "histogram_figure", "roc_figure", "training_figure", "write_report"]
