"""The HTML report: one file that shows which rows are anomalous, and how far that can be trusted."""

from invgan.report.content import LatentMap, Pictures, ReportContent
from invgan.report.figures import histogram_figure, precision_recall_figure, roc_figure, training_figure
from invgan.report.page import write_report
from invgan.report.reasons import Reason

__all__ = [
    "LatentMap",
    "Pictures",
    "Reason",
    "ReportContent",
    "histogram_figure",
    "precision_recall_figure",
    "roc_figure",
    "training_figure",
    "write_report",
]
