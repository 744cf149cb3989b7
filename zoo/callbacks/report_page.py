"""The report as one HTML page: pictures inside it, no script, no link to another file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.tasks.outcomes import Interval, Outcome

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.headline { font-weight: 700; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; background: #8881; padding: 1rem; border-radius: 4px; font-size: .85rem; }
.note { opacity: .8; } .problem { color: #c62828; } .warning { color: #b26a00; }
"""
_MEANING = {
    "ECE": "expected calibration error: by how much confidence and accuracy differ, 0 is best",
    "log loss": "0 is best; being sure and wrong costs most",
    "balanced accuracy": "mean over the classes, so that frequent ones do not hide rare ones",
    "macro F1": "mean over the classes of F1",
    "AUROC": "0.5 is guessing, 1 is best",
    "mAP": "mean over the labels of the average precision; the share of positives is guessing, 1 is best",
    "mean IoU": "mean over the classes of (both / either), all pixels of all pictures together",
    "mean Dice": "mean over the classes of (2 both / (true + found)), 1 is best",
}


class Page:
    """Collects sections; `html()` gives the page."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
            + "\n".join(self.parts)
            + "\n</body>\n</html>\n"
        )

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def note(self, text: str, kind: str = "note") -> None:
        self.parts.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], strong: Sequence[int] = ()) -> None:
        """Rows of cells; numbers are set to the right, rows in `strong` in bold."""
        cells = "".join(f"<th>{html.escape(str(name))}</th>" for name in header)
        lines = [f"<tr>{cells}</tr>"] if any(header) else []
        for number, row in enumerate(rows):
            cells = "".join(
                f'<td class="number">{value}</td>'
                if isinstance(value, int | float)
                else f"<td>{html.escape(str(value))}</td>"
                for value in row
            )
            lines.append(f'<tr class="headline">{cells}</tr>' if number in strong else f"<tr>{cells}</tr>")
        self.parts.append("<table>\n" + "\n".join(lines) + "\n</table>")

    def metrics(self, outcome: Outcome, found: Mapping[str, Interval], level: float, chosen: bool = True) -> None:
        """The scores with their intervals, the headline in bold, and what they rest on.

        `chosen`: an epoch was, on these samples.
        """
        self.heading("Results")
        rows = [
            (
                name,
                f"{i.value:.4g}",
                f"{i.low:.4g}\u00a0to\u00a0{i.high:.4g}" if i.low != i.high else "",
                _MEANING.get(name, ""),
            )
            for name, i in found.items()
        ]
        strong = [n for n, name in enumerate(found) if name == outcome.headline]
        self.table(("", "value", f"{level:.0%} interval", ""), rows, strong)
        kind = "held-out " if chosen else ""
        text = f"On {outcome.count} {kind}samples. Intervals: percentile bootstrap over the samples, "
        text += "taken as independent."
        if chosen:
            text += (
                " The epoch was chosen on these same samples, so the numbers lean to the good side: keep a test set "
                "apart for the ones that you publish, or use zoo kfold."
            )
        self.note(text)
        if outcome.count < 50:
            self.note(f"{outcome.count} samples are few: trust the intervals more than the values.", "warning")

    def facts(self, title: str, facts: Mapping[str, str]) -> None:
        """A table of two columns."""
        self.heading(title)
        self.table(("", ""), list(facts.items()))

    def audit(self, audit: Any) -> None:
        """What is known of the data (`datamodules.audit.Audit`)."""
        self.facts("The data", audit.facts)
        for title, header, rows in audit.tables:
            self.note(title)
            self.table(header, rows)
        for text in audit.problems:
            self.note(text, "problem")
        for text in audit.warnings:
            self.note(text, "warning")

    def figure(self, name: str, figure: Any) -> None:
        """A matplotlib figure, closed afterwards."""
        from matplotlib import pyplot as plt

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        self._image(name, buffer.getvalue())

    def pictures(self, folder: Path) -> None:
        """The PNG files of a folder."""
        for path in sorted(folder.glob("*.png")):
            self._image(path.stem.replace("_", " "), path.read_bytes())

    def settings(self, config: Path) -> None:
        """The run's settings and the versions of the libraries."""
        import importlib.metadata
        import platform

        names = ("torch", "lightning", "timm", "torchmetrics", "transformers", "monai")
        versions = []
        for name in names:
            try:
                versions.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                continue
        self.heading("Settings")
        self.note(f"Python {platform.python_version()}, {', '.join(versions)}.")
        if config.is_file():
            text = html.escape(config.read_text(encoding="utf-8"))
            self.parts.append(f"<details><summary>config.yaml</summary>\n<pre>{text}</pre></details>")

    def _image(self, name: str, data: bytes) -> None:
        self.heading(name[:1].upper() + name[1:])
        encoded = base64.b64encode(data).decode("ascii")
        self.parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">')
