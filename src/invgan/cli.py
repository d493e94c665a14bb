"""The command line: ``invgan`` and its commands.

Nothing heavy is imported before a command needs it, so that ``invgan --help`` answers at once.
"""

import importlib
import inspect
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from invgan.errors import InputError, TrainingDivergedError

if TYPE_CHECKING:
    import numpy as np

    from invgan.data import Columns, Images, Infer, Table
    from invgan.data.scores import Scores
    from invgan.detectors import InvGAN

EXPERIMENTS = {
    "figure2": "estimated against true log-likelihood on synthetic data (section 4.1)",
    "table1": "bits per dimension of every density; --data digits, mnist, cifar10 (section 4.2)",
    "figure3": "Eq. 4 and the revised metric over the latent dimension (section 4.2)",
    "figure5": "the losses over a training (section 4.2)",
    "table3": "detection on images, by all systems; --data mnist, cifar10 (section 4.3)",
    "figure4": "table 3's AUROC class by class; --data mnist, cifar10 (section 4.3)",
    "table4": "detection on Arrhythmia by eight systems (section 4.3)",
    "decisions": "whether p-values and false discovery rates hold, and what contaminated rows cost",
    "gaps": "what is learned from rows with missing values, filled in several ways",
    "explanations": "which columns of planted anomalies are named, beside SHAP",
    "estimates": "all estimates of log p(x) side by side, and beside the truth where it is known",
    "theorem1": "distance of what is learned to the noise-free distribution (section 3)",
    "densities": "density models on sets whose density is known, and on two tables",
    "detectors": "every detector on four tables and the digits, beside simple references",
    "ablation": "what each ingredient of the default detector is worth, on ADBench's tables",
    "digits": "ten runs on scikit-learn's digits, each digit abnormal in turn",
}
"""Modules of ``invgan.experiments``, each with a ``run(quick=..., out=...)``; some take more."""
BENCHMARKS = {
    "speed": "Jacobians, training steps and growth, beside the alternatives",
    "adbench": "detection on ADBench's tables, beside other libraries' detectors; --systems",
    "streams": "time and memory of fit and score on tables of up to 5 million rows",
}
"""Like those above, on an otherwise idle machine."""

# Usage errors have a class of their own that typer does not name; it is the base of one that it does.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Preset(StrEnum):
    """Named settings of InvGAN."""

    paper = "paper"


class Likelihood(StrEnum):
    """The log-likelihoods that can be scored by."""

    aggregate = "aggregate"
    joint = "joint"
    riemannian = "riemannian"
    ratio = "ratio"


class Device(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


# Whether a file can be read is said by its reader, together with what to do about it.
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", readable=False, help="Folder that 'invgan fit' wrote.")
]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        readable=False,
        help="Table (.csv, .parquet, .npz, .npy), or images: a folder, or an array.",
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Column that marks anomalies: 0 or false = normal, 1 or true = anomaly."
    ),
]
NormalOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE", help="Value of the label that is normal, in place of 0; once for each such value."
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--false-positive-rate",
        metavar="RATE",
        help="Share of normal rows that may be flagged; by default the model's, 0.05.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="The same seed gives the same result.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows ``invgan`` on the command line; by default this process's.

    Returns
    -------
    int
        The exit code: 0, 2 after a mistake of the user's, 130 after Ctrl-C. Both of these come with one line
        on standard error; 141 does not, after the reader of the output has gone, such as ``head``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every encoding has ± and ×
    try:
        # By hand, because typer's own main answers Ctrl-C and mistakes in other words and codes.
        command = typer.main.get_command(app)
        with (
            _all_shown(),
            warnings.catch_warnings(action="default" if debug else "ignore"),
            command.make_context("invgan", given or ["--help"]) as context,
        ):
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except _OutputLostError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python would still write
        if isinstance(error.__cause__, BrokenPipeError):
            return 141  # what a shell reports of a tool that SIGPIPE ended
        return _fail(
            f"the output could not be written ({error}); free some space or send it elsewhere.", code=2
        )
    except _UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "invgan"
        return _fail(f"{error.format_message().rstrip('.')}; try '{path} --help'.", code=2)
    except KeyboardInterrupt as error:
        return _fail(f"interrupted; {str(error) or 'nothing was written'}.", code=130)
    except (TrainingDivergedError, ValueError, TypeError, OSError) as error:
        if debug:
            raise
        return _fail(str(error), code=2)
    return 0


class _OutputLostError(Exception):
    """Standard output could not be written."""


class _Output:
    """Standard output, whose failures are told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _OutputLostError(error.strerror) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _OutputLostError(error.strerror) from error


@contextmanager
def _all_shown() -> Iterator[None]:
    """Write all that is printed before the end, where nobody could answer for what cannot be."""
    if sys.stdout is None:  # as it is where the process began without one
        yield
        return
    with redirect_stdout(_Output(sys.stdout)) as output:
        try:
            yield
        finally:
            output.flush()


def _fail(message: str, *, code: int) -> int:
    """Say on one line what went wrong."""
    print(f"invgan: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_version(wanted: bool) -> None:
    if wanted:
        from invgan import __version__

        print(f"invgan {__version__}")
        raise typer.Exit


@app.callback()
def invgan(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show warnings, and where in the code a mistake was found.")
    ] = False,
) -> None:
    """Find anomalies with the log-likelihoods of a generative adversarial network.

    Start with 'invgan demo', or with data of your own: fit, then score, evaluate and report.
    """


@app.command()
def demo(
    abnormal: Annotated[
        int, typer.Option(min=0, max=9, metavar="DIGIT", help="The digit that the training never sees.")
    ] = 0,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the model, the scores and the report.")
    ] = Path("demo"),
    seed: SeedOption = 0,
) -> None:
    """Learn nine handwritten digits and find the tenth, in a minute.

    The 8×8 images come with scikit-learn. Half of those of the nine normal digits train; the rest, and all
    images of the abnormal digit, are scored. What an earlier demo left in the folder is replaced.
    """
    _require_writable(_nearest_folder(out), out)
    _require_replaceable(out / "model")
    from invgan.experiments import demo as demonstration

    result = demonstration.run(abnormal=abnormal, seed=seed, out=out, verbose=sys.stderr.isatty())
    counts, expected = result["counts"], result["expected_false_positive_rate"]
    _print_results(result)
    print(
        f"Flagged: {counts['abnormal flagged']} of the {counts['abnormal']} images of a {abnormal}, and "
        f"{counts['normal flagged']} of the {counts['normal']} others:\n"
        f"{counts['normal flagged'] / counts['normal']:.1%}, where {expected['mean']:.0%} ± "
        f"{expected['standard deviation']:.0%} was to be expected. The threshold\nis by "
        f"{counts['calibration']} held-out images, and with another --seed by others.\n"
    )
    notes = {
        "report.html": "for a browser: the most anomalous images, the ROC curve",
        "scores.csv": "one line per test image",
        "model": "try 'invgan info', or 'invgan score' on images of your own",
    }
    print("Look next at")
    width = max(map(len, result["files"].values()))
    for name, path in result["files"].items():
        print(f"  {path:{width}}  {notes[name]}")


@app.command()
def fit(
    data: DataArgument,
    out: Annotated[
        Path,
        typer.Option(
            metavar="MODEL",
            help="Folder for the model; one that is there already is replaced, at the end and in one step.",
        ),
    ],
    label: LabelOption = None,
    normal: NormalOption = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column to leave out, now and of data to score; repeatable."),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Resize images to N×N pixels, now and those to score; they may differ."
        ),
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="The paper's networks, loss and log-likelihood.")
    ] = None,
    method: Annotated[
        Likelihood | None,
        typer.Option(
            help="Log-likelihood to score by; by default aggregate, or the preset's; of images also "
            "ratio, beside a smooth random field."
        ),
    ] = None,
    latent_dim: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Latent dimension; by default from the data.")
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Training steps; by default 300 to 1,500 by the number of rows, 4,000 for larger images.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Lower it if the training diverges; by default 0.003, 0.001 for images."
        ),
    ] = None,
    seed: SeedOption = 0,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Steps between two checkpoints.")
    ] = 500,
    contamination: Annotated[
        float,
        typer.Option(
            metavar="RATE", help="Share of the rows presumed anomalous, to be found and left out; below 0.5."
        ),
    ] = 0.0,
    device: Annotated[Device, typer.Option(help="Where to train; auto takes a GPU if there is one.")] = (
        Device.auto
    ),
) -> None:
    """Learn from DATA what normal rows look like.

    In a .csv or .parquet table, text becomes categories, and missing values (empty, ?, NA, NaN) may stay.
    Of a table of more than 250,000 rows as many are learned from, drawn at random, in memory that does not
    grow with the table. Of many images those in use are in memory, the others in a temporary file. With
    --label, rows marked as anomalies are kept out.

    Training is saved to MODEL.checkpoint at intervals and on Ctrl-C: after an interruption, run the same
    command again and it continues from there.
    """
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise typer.BadParameter(f"--learning-rate must be above 0 and finite, not {learning_rate:g}.")
    if not 0 <= contamination < 0.5:
        raise typer.BadParameter(f"--contamination must be at least 0 and below 0.5, not {contamination:g}.")
    _require_writable(out.parent, out)
    named = out.resolve() if out.name in ("", "..") else out  # what lies beside "." has another parent
    _require_writable(named.parent, out)
    _require_replaceable(out)
    from invgan.data import Images, Infer, Table
    from invgan.data.images import holds_images
    from invgan.detectors import InvGAN
    from invgan.estimators import MIN_ROWS
    from invgan.training import Schedule

    if resize is not None and not holds_images(data):
        raise typer.BadParameter(f"--resize is for images, and {data} is a table.")
    if method is Likelihood.ratio and not holds_images(data):
        raise typer.BadParameter(f"--method ratio is for images, and {data} is a table.")
    if drop and holds_images(data):
        raise typer.BadParameter(f"--drop is for tables, and {data} holds images.")
    columns = Infer(drop=tuple(drop or ()))
    rows, is_anomaly = _read(
        data, label=label, normal=normal, min_rows=MIN_ROWS, columns=columns, sample_seed=seed, size=resize
    )
    if is_anomaly is None:
        learned = rows.X
    else:
        learned = rows.where(~is_anomaly) if isinstance(rows, Images) else rows.X[~is_anomaly]
    if len(learned) < MIN_ROWS:
        raise InputError(f"{data}: has {_count(len(learned), 'normal row')}, expected at least {MIN_ROWS}.")

    checkpoint = Path(f"{named}.checkpoint")
    detector = InvGAN(
        latent_dim,
        preset=preset and preset.value,
        method=method and method.value,
        max_steps=max_steps,
        learning_rate=learning_rate,
        unskew=True,
        trim=contamination,
        random_state=seed,
        device=device.value,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        verbose=sys.stderr.isatty(),
    )
    try:
        detector.fit(_named(learned, rows))
    except TrainingDivergedError:
        shutil.rmtree(checkpoint, ignore_errors=True)  # continuing from it would only diverge again
        raise
    except KeyboardInterrupt:
        saved = f"run the same command again to continue from {checkpoint}" if checkpoint.exists() else ""
        raise KeyboardInterrupt(saved) from None
    if isinstance(rows, Table):
        detector.columns_ = rows.columns
    detector.image_size_ = resize
    detector.save(out)
    shutil.rmtree(checkpoint, ignore_errors=True)

    left_out = "" if is_anomaly is None else f", without the {_count(is_anomaly.sum(), 'anomaly')} among them"
    print(f"Fitted on {_count(len(learned), 'row')} of {data}{left_out}, and saved to {out}.")
    if contamination:
        print(f"Left {_count(len(detector.trimmed_), 'row')} of these out, presumed anomalous.")
    if isinstance(rows, Table) and rows.n_left_out:
        print(
            f"Kept {len(rows.X):,} of {len(rows.X) + rows.n_left_out:,} rows, drawn at random; "
            f"training sees {detector.history_.steps[-1] * Schedule.batch_size:,}."
        )
    if isinstance(rows, Table) and rows.has_row_names:
        print("Left out, as it names the rows: the column without a name of its own.")
    if isinstance(rows, Table) and not rows.has_own_names and data.suffix.lower() == ".csv":
        print(
            "The first line holds numbers only, so it counts as a row, and columns go by their place; if it "
            "has their names, give one of these a letter."
        )
    if isinstance(rows, Table) and rows.columns is not None:
        for note in rows.columns.notes(learned, n_left_out=rows.n_left_out):
            print(note)
    if label is None and rows.y is not None and set(rows.y.tolist()) <= {0, 1}:
        name = rows.label if isinstance(rows, Images) else "y"
        print(
            f"The file also holds labels {name}; --label {name} would keep the rows marked 1 out of training."
        )
    _warn_without_threshold(detector)
    print(f"Next: invgan score {out} DATA --out scores.csv")


@app.command()
def score(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="SCORES", help="File for the scores, .csv or .parquet; replaced if it exists."),
    ],
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column to leave out, as it is not a feature.")
    ] = None,
    false_positive_rate: RateOption = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Flag instead so that at most this share of the flagged rows is expected to be normal.",
        ),
    ] = None,
    explain: Annotated[
        int, typer.Option(min=0, metavar="K", help="Say of the K most anomalous rows of a table why.")
    ] = 0,
) -> None:
    """Score the rows of DATA with MODEL.

    Rows are read, scored and written block by block, in memory that does not grow with them (in an .npz
    file it does).

    \b
    The columns of the result:
      row            number of the row in DATA, from 1
      log_prob       log p(x) in nats, or the ratio's logarithm; higher = more normal
      anomaly_score  -log_prob, less what missing values have in a typical row
      p_value        share of normal rows that look at least as unusual
      is_anomaly     whether the row is flagged, at the model's threshold or as options say
      file           of a folder of images, the file's name
    """
    from invgan.data import read_blocks
    from invgan.data.scores import require_scores_type, write_scores

    require_scores_type(out)
    _require_file_target(out, data)
    if fdr is not None and false_positive_rate is not None:
        raise typer.BadParameter("--fdr and --false-positive-rate are two ways to decide; give one.")
    if fdr is not None and not 0 < fdr < 1:
        raise typer.BadParameter(f"--fdr must be above 0 and below 1, not {fdr:g}.")
    detector = _load(model, false_positive_rate, explaining="--explain" if explain else None)
    _require_form(detector, data)
    if explain and len(detector.data_shape_) > 1:
        raise typer.BadParameter("--explain is for tables; for images see 'invgan report'.")
    unknown: defaultdict[str, set[str]] = defaultdict(set)
    most: list[tuple[float, int, float, Any]] = []  # log p, number, p-value and the row itself

    def judged() -> Iterator["Scores"]:
        n_before = 0
        for rows in read_blocks(data, label=label, columns=_columns(detector), size=detector.image_size_):
            for column, values in getattr(rows, "unknown", {}).items():
                unknown[column] |= values
            scores = _judge(detector, rows, data)
            if data.is_dir():
                scores = replace(scores, files=cast("Images", rows).names)
            comparable = -scores.anomaly_score
            for i in comparable.argsort(kind="stable")[:explain]:
                most.append((comparable[i], n_before + i + 1, scores.p_value[i], rows.X[i]))
            most[:] = sorted(most, key=lambda found: found[:2])[:explain]
            n_before += len(scores.log_prob)
            yield scores

    written = write_scores(out, judged() if fdr is None else _discoveries(list(judged()), fdr))
    print(
        f"Flagged {written.anomalies:,} of {_count(written.rows, 'row')} "
        f"({written.anomalies / written.rows:.1%}) as anomalous; the scores are in {out}."
    )
    for column, values in unknown.items():
        found = ", ".join(_shortened(value) for value in sorted(values)[:5])
        found += ", …" if len(values) > 5 else ""
        print(f"Column {column!r} has values that the model does not know, all treated alike: {found}.")
    if most:
        _print_reasons(detector, most)
    if fdr is None:
        _warn_without_threshold(detector)
    elif not written.anomalies:
        print(
            f"{_count(len(detector.calibration_scores_), 'calibration row')} make no p-value smaller than "
            f"{1 / (1 + len(detector.calibration_scores_)):.2g}: with more of them, or a higher --fdr, rows "
            "might be flagged."
        )


@app.command()
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    label: Annotated[
        str,
        typer.Option(
            metavar="COLUMN", help="Column that marks anomalies: 0 or false = normal, 1 or true = anomaly."
        ),
    ],
    normal: NormalOption = None,
    false_positive_rate: RateOption = None,
) -> None:
    """Measure how well MODEL finds the known anomalies in DATA.

    AUROC and AP judge the ranking; precision, recall and F1 the decisions at the model's threshold.
    """
    from invgan.metrics import detection_metrics

    detector = _load(model, false_positive_rate)
    _require_form(detector, data)
    rows, is_anomaly = _read(
        data, label=label, normal=normal, columns=_columns(detector), size=detector.image_size_
    )
    assert is_anomaly is not None
    if is_anomaly.all() or not is_anomaly.any():
        kind = "anomalies" if is_anomaly.all() else "normal rows"
        raise InputError(f"{data}, label {label!r}: has {kind} only; to evaluate takes both kinds.")
    judged = _judge(detector, rows, data)
    found = detection_metrics(is_anomaly, -judged.anomaly_score, flagged=judged.is_anomaly)
    _print_table(["AUROC", "AP", "precision", "recall", "F1"], [list(found.values())])
    print(
        f"{_count(len(is_anomaly), 'row')}, {is_anomaly.sum():,} of them anomalous; "
        f"{judged.is_anomaly.sum():,} flagged."
    )
    _warn_without_threshold(detector)


@app.command()
def report(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[
        Path, typer.Option(metavar="REPORT", help="File for the report, .html; replaced if it exists.")
    ],
    label: LabelOption = None,
    normal: NormalOption = None,
    false_positive_rate: RateOption = None,
) -> None:
    """Write an HTML report on DATA as MODEL sees it.

    It shows the scores, the most anomalous rows and why they are, the latent space, the training and, with
    --label, how well it finds anomalies. A table is read and scored block by block.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: unknown file type {out.suffix!r}; a report goes to a .html file.")
    _require_file_target(out, data)
    from invgan.data import read_blocks
    from invgan.data.images import Images, holds_images
    from invgan.report import write_report
    from invgan.report.of_model import report_content

    detector = _load(model, false_positive_rate, explaining="report")
    _require_form(detector, data)
    if holds_images(data):
        images, is_anomaly = _read(data, label=label, normal=normal, columns=None, size=detector.image_size_)
        assert isinstance(images, Images)
        blocks: Iterable[Table | Images] = images.blocks()
        names = images.names if data.is_dir() else None
    else:
        is_anomaly = _known_anomalies(data, label, normal)
        blocks, names = read_blocks(data, label=label, columns=_columns(detector)), None
    content = report_content(
        detector,
        ((rows.X, -_judge(detector, rows, data).anomaly_score) for rows in blocks),
        title=f"Anomalies in {data.name or data.resolve().name}",
        source=str(data),
        labels=None if is_anomaly is None else is_anomaly.astype(int),
        row_names=names,
    )
    write_report(out, content)
    print(f"The report is in {out}; open it in a browser.")


@app.command()
def info(model: ModelArgument) -> None:
    """Describe MODEL: its data, size, threshold and training."""
    from invgan.report.of_model import model_card

    groups = model_card(_load(model, explaining="info"))
    size = sum(file.stat().st_size for file in model.iterdir() if file.is_file())
    groups["Model"]["size on disk"] = f"{size / 1e6:.1f} MB"
    table = RichTable(box=None, show_header=False, padding=(0, 2, 0, 0))
    for heading, values in groups.items():
        table.add_row(heading, style="bold")
        for name, value in values.items():
            table.add_row(f"  {name}", f"{value:,}" if isinstance(value, int) else str(value))
    _console().print(table)


def _listed(heading: str, modules: dict[str, str]) -> str:
    width = max(map(len, modules)) + 2
    return f"\b\n{heading}:\n" + "\n".join(f"  {name:{width}}{text}" for name, text in modules.items())


QuickOption = Annotated[
    bool,
    typer.Option(
        "--quick", help="A smoke run whose figures mean nothing; of table3 and figure4, a small one."
    ),
]
ResultsOption = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results.")]
SystemsOption = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Some systems, with commas between: table1, table3, adbench."),
]
SeedsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="How many seeds, from 0 on; by default the experiment's."),
]


@app.command(epilog=_listed("Experiments", EXPERIMENTS))
def reproduce(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help=f"{', '.join(EXPERIMENTS)}.")],
    quick: QuickOption = False,
    out: ResultsOption = Path("results"),
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set, for table1, table3, figure4.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", help="Training time of all fits together, for table1.")
    ] = None,
    systems: SystemsOption = None,
    seeds: SeedsOption = None,
) -> None:
    """Run an experiment and show its results.

    They are also written to a folder, with everything needed to repeat them. A long run that is cut off goes
    on where it was when the same command is given again.
    """
    chosen = None if systems is None else systems.split(",")
    options = {"data": data, "hours": hours, "systems": chosen}
    _run_experiment(experiment, EXPERIMENTS, quick, out, options, seeds)


@app.command(epilog=_listed("Benchmarks", BENCHMARKS))
def benchmark(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help=f"{', '.join(BENCHMARKS)}.")],
    quick: QuickOption = False,
    out: ResultsOption = Path("results"),
    systems: SystemsOption = None,
    seeds: SeedsOption = None,
) -> None:
    """Measure this library beside the alternatives and show the results.

    They are also written to a folder, with everything needed to repeat them. A long run that is cut off goes
    on where it was when the same command is given again.
    """
    chosen = None if systems is None else systems.split(",")
    _run_experiment(benchmark, BENCHMARKS, quick, out, {"systems": chosen}, seeds)


def _run_experiment(
    name: str, known: dict[str, str], quick: bool, out: Path, options: dict[str, Any], n_seeds: int | None
) -> None:
    seeds = None if n_seeds is None else tuple(range(n_seeds))
    options = {key: value for key, value in {**options, "seeds": seeds}.items() if value is not None}
    if name not in known:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}.")
    _require_writable(_nearest_folder(out), out)
    run = importlib.import_module(f"invgan.experiments.{name}").run
    for option in options:
        if option not in inspect.signature(run).parameters:
            raise typer.BadParameter(f"--{option} is not for {name}; leave it out.")
    _print_results(run(quick=quick, out=out, **options))
    print(f"The results are in {out}{os.sep}.")


# What goes in


def _load(
    model: Path, false_positive_rate: float | None = None, *, explaining: str | None = None
) -> "InvGAN":
    """Load a model; only InvGAN's can be explained, as an option or a command does by this name."""
    from invgan.detectors import InvGAN, load

    if false_positive_rate is not None and not 0 <= false_positive_rate < 1:
        raise typer.BadParameter(
            f"--false-positive-rate must be at least 0 and below 1, not {false_positive_rate:g}."
        )
    detector = cast("InvGAN", load(model))  # or another, to score and evaluate by
    if explaining is not None and not isinstance(detector, InvGAN):
        raise InputError(
            f"{model}: is a model of {type(detector).__name__}, and {explaining} takes one of InvGAN; "
            "score or evaluate by it."
        )
    return detector if false_positive_rate is None else detector.set_threshold(false_positive_rate)


def _columns(detector: "InvGAN") -> "Columns | None":
    """What the columns of a table to score must hold; None for a model of images."""
    from invgan.report.of_model import columns_of

    return None if len(detector.data_shape_) > 1 else columns_of(detector)


def _read(
    data: Path,
    *,
    label: str | None,
    normal: list[str] | None,
    columns: "Columns | Infer | None",
    min_rows: int = 1,
    sample_seed: int | None = None,
    size: int | None = None,
) -> "tuple[Table | Images, np.ndarray | None]":
    """Read the data and, where a label says so, which rows are anomalies."""
    from invgan.data import read_data

    _require_label(label, normal)
    rows = read_data(
        data, label=label, min_rows=min_rows, columns=columns, sample_seed=sample_seed, size=size
    )
    if label is None:
        return rows, None
    assert rows.y is not None
    return rows, _anomalies(rows.y, f"{data}, label {label!r}", normal)


def _known_anomalies(data: Path, label: str | None, normal: list[str] | None) -> "np.ndarray | None":
    """Which rows of a table are anomalies, where a label says so, without keeping the other columns."""
    from invgan.data import read_labels

    _require_label(label, normal)
    if label is None:
        return None
    return _anomalies(read_labels(data, label), f"{data}, label {label!r}", normal)


def _require_label(label: str | None, normal: list[str] | None) -> None:
    if normal and label is None:
        raise typer.BadParameter("--normal is for the values of --label; give both.")


def _anomalies(y: "np.ndarray", place: str, normal: list[str] | None) -> "np.ndarray":
    """Understand labels: 1 and true are anomalies, 0 and false are normal, anything else is a mistake.

    With values that are named as normal, all others are anomalies.
    """
    import numpy as np

    values, positions = np.unique(y, return_inverse=True)
    found = ", ".join(_shortened(str(value)) for value in values[:5]) + (", …" if len(values) > 5 else "")
    if normal:
        texts = [str(value) for value in values]
        for value in normal:
            if value not in texts:
                raise InputError(f"{place}: found {found}; --normal {value} is none of them.")
        return np.array([text not in normal for text in texts])[positions]
    known = {"0": False, "false": False, "1": True, "true": True}
    meanings = [known.get(str(value).lower()) for value in values]
    if None in meanings:
        raise InputError(
            f"{place}: found {found}; expected 0 (normal) and 1 (anomaly), or false and true; "
            "or say with --normal which value is normal."
        )
    return np.array(meanings, dtype=bool)[positions]


def _named(X: "np.ndarray", rows: "Table | Images") -> Any:
    """Give the rows their column names, if the data has names of its own."""
    import polars as pl

    names = _own_names(rows)
    return X if names is None else pl.DataFrame(X, schema=names)


def _own_names(rows: "Table | Images") -> list[str] | None:
    """The columns' names, unless a reader made them up."""
    from invgan.data.tables import is_made_up

    names: list[str] | None = getattr(rows, "feature_names", None)
    return None if names is None or is_made_up(names) else names


def _judge(detector: "InvGAN", rows: "Table | Images", data: Path) -> "Scores":
    from invgan.report.of_model import judge

    matched = _matched(detector, rows, data)
    return judge(detector, detector.score_samples(matched), detector.typical_of_missing(matched))


def _discoveries(blocks: "list[Scores]", rate: float) -> "Iterator[Scores]":
    """Decide anew about all rows together, as a false discovery rate takes all of their p-values."""
    import numpy as np

    from invgan.calibration import false_discovery_control

    reported = false_discovery_control(np.concatenate([block.p_value for block in blocks]), rate)
    ends = np.cumsum([len(block.p_value) for block in blocks])
    for block, flags in zip(blocks, np.split(reported, ends[:-1]), strict=True):
        yield replace(block, is_anomaly=flags)


def _require_form(detector: "InvGAN", data: Path) -> None:
    """Refuse a table for a model of images, before its text is read for numbers."""
    from invgan.data.images import holds_images

    if len(detector.data_shape_) > 1 and not holds_images(data):
        raise InputError(
            f"{data}: is a table, but the model was fitted on {_described(detector.data_shape_)}; "
            "give images."
        )


def _matched(detector: "InvGAN", rows: "Table | Images", data: Path) -> Any:
    """Bring the rows to what the model was fitted on; a table's columns are matched as it is read."""
    from invgan.report.of_model import as_fitted

    found, expected = rows.X.shape[1:], detector.data_shape_
    if found != expected:
        raise InputError(
            f"{data}: has {_described(found)}, but the model was fitted on {_described(expected)}; "
            "give data of the same form."
        )
    return as_fitted(detector, rows.X)


def _described(shape: tuple[int, ...]) -> str:
    """What one row looks like."""
    return f"{'×'.join(map(str, shape))} images" if len(shape) == 3 else _count(shape[0], "column")


# Where it goes


def _nearest_folder(path: Path) -> Path:
    """The path itself if it exists, otherwise the folder that it would be made in."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _require_writable(folder: Path, out: Path) -> None:
    """Find out before hours of work whether a file can be made there."""
    if not folder.is_dir():
        raise InputError(f"{out}: there is no folder {folder}; make it, or choose another --out.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{out}: nothing can be written to the folder {folder} ({error.strerror}); choose another --out."
        ) from error


def _require_replaceable(out: Path) -> None:
    """Refuse to train for a path that holds something other than a model."""
    from invgan import artifact

    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        artifact.read(out, kind="model")
    except InputError as error:
        raise InputError(
            f"{out}: is there already and is not an intact model, so it is left alone; choose another --out."
        ) from error


def _require_file_target(out: Path, data: Path) -> None:
    """Check a file to be written, which must not be the data."""
    _require_writable(out.parent, out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give --out the name of a file.")
    if out.exists() and not out.is_file():
        raise InputError(f"{out}: is no regular file, which it would be replaced by; choose another --out.")
    if out.exists() and data.exists() and out.samefile(data):
        raise InputError(f"{out}: is the data itself; choose another --out.")


# What is shown


def _console() -> Console:
    return Console(markup=False, highlight=False)


def _print_results(result: dict[str, Any]) -> None:
    """Show an experiment's table."""
    table = result["table"]
    _print_table(table["columns"], table["rows"], title=result["title"])


def _print_table(columns: list[str], rows: list[list[Any]], *, title: str | None = None) -> None:
    table = RichTable(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, column in enumerate(columns):
        is_text = all(isinstance(row[index], str) for row in rows) and index == 0
        # A number is never cut where there is room left in the texts.
        is_one_word = not any(" " in str(cell) for cell in (column, *(row[index] for row in rows)))
        table.add_column(column, justify="left" if is_text else "right", no_wrap=is_one_word, overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = _console()
    if not console.is_terminal:  # a file or a pipe is as wide as what is written to it
        unbounded = console.options.update(width=1000)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)


def _print_reasons(detector: "InvGAN", most: list[tuple[float, int, float, Any]]) -> None:
    """Say of each row which columns are most unlike what the others lead to expect."""
    import numpy as np

    from invgan.report.of_model import reasons_of
    from invgan.report.reasons import main_reasons

    print("The most anomalous rows, and the columns that add most to it:")
    all_reasons = reasons_of(detector, np.stack([row for *_, row in most]))
    for (_, number, p_value, _), found in zip(most, all_reasons, strict=True):
        texts = [f"{reason} ({reason.share:+.3g} nats)" for reason in main_reasons(found)]
        print(f"  row {number} (p = {p_value:.2g}): {'; '.join(texts) or 'no column stands out by itself'}")


def _warn_without_threshold(detector: "InvGAN") -> None:
    """Say so if too few rows were held out to flag anything."""
    n_calibration, rate = len(detector.calibration_scores_), detector.false_positive_rate_
    if detector.offset_ == -float("inf"):
        print(
            f"Nothing is flagged: {_count(n_calibration, 'calibration row')} cannot vouch for a "
            f"false-positive rate of {rate:g}; fit on more rows."
        )


def _shortened(text: str) -> str:
    """The beginning of a text, without the lines it may have."""
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:39]}…"


def _count(number: int, noun: str) -> str:
    from invgan.report.text import counted

    return counted(number, noun)
