"""Tables and plot of the study of the weight autoencoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from studies.common import shown, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = 0.98
WAYS = {"largest": "largest", "random": "random", "rescaled": "random, divided by the share"}


def tables(report: Mapping[str, Any]) -> str:
    """The tables of the document."""
    compressed = report["variants"] or report["components"]
    first = [compression_table(report)] if compressed else []
    return "\n\n".join([*first, kept_table(report), *rank_table(report)])


def compression_table(report: Mapping[str, Any]) -> str:
    """Variants and principal components."""
    rows = [
        (
            row["label"],
            f"{row['numbers']:,}",
            f"{report['parameters'] / row['numbers']:.0f}x",
            f"{row['trained']['r2']:.2f}",
            shown(row["trained"]["kept"], percent=True),
            shown(row["trained"]["kept_stronger"], percent=True),
            shown(row["trained"]["kept_fitted"], percent=True),
            f"{row['predicted']['r2']:.2f}",
            shown(row["predicted"]["kept"], percent=True),
            "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        )
        for row in (*report["variants"].values(), *report["components"].values())
    ]
    header = (
        *("autoencoder", "numbers", "smaller"),
        *("trained LoRA: R2", "gain kept", "gain kept, decoded at 1.5", "gain kept, code fitted"),
        *("predicted LoRA: R2", "gain kept", "CPU s"),
    )
    return table(header, rows)


def kept_table(report: Mapping[str, Any]) -> str:
    """The paper's Fig. 4."""
    rows = [
        (f"{float(share):.0%}", *(shown(row[way], percent=True) for way in WAYS))
        for share, row in report["kept"].items()
    ]
    return table(("numbers kept", *(f"gain kept: {way}" for way in WAYS.values())), rows)


def rank_table(report: Mapping[str, Any]) -> list[str]:
    """The paper's Fig. 2; nothing if its libraries were not there."""
    if not report["ranks"]:
        return []
    sizes = [key for key in next(iter(report["ranks"].values())) if key.isdigit()]
    rows = [
        (
            row["label"],
            f"{row['parameters']:,}",
            shown(row["gain"]),
            *(f"{row[size]['r2']:.2f}; {shown(row[size]['kept'], percent=True)}" for size in sizes),
        )
        for row in report["ranks"].values()
    ]
    return [table(("library", "numbers", "gain", *(f"{size} components: R2; kept" for size in sizes)), rows)]


def draw_plot(report: Mapping[str, Any]) -> "Figure":
    """What compression keeps, by size, as far as it is measured; and what some of the numbers keep."""
    from matplotlib.figure import Figure

    pca = report["components"].items()
    sized = {
        "LAE": [row for name, row in report["variants"].items() if name.startswith(("default", "latent_"))],
        "principal components": [row for name, row in pca if name.startswith("pca_all_")],
    }
    measured = {method: rows for method, rows in sized.items() if rows}
    figure = Figure(figsize=(11 if measured else 6, 4.4), layout="constrained")
    *left, right = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    kinds = {
        "trained LoRAs": ("trained", "kept", "-"),
        "trained LoRAs, code fitted": ("trained", "kept_fitted", ":"),
        "predicted LoRAs": ("predicted", "kept", "--"),
    }
    for colour, (method, rows) in enumerate(measured.items()):
        for label, (kind, kept, style) in kinds.items():
            values = [row[kind][kept] for row in rows]
            draw_curve(left[0], [row["numbers"] for row in rows], values, f"{method}, {label}", f"C{colour}")
            left[0].lines[-1].set(linestyle=style)
        left[0].set(xscale="log", xlabel="numbers of the latent")
        left[0].margins(y=0.25)  # room for the legend
    if measured:
        sizes = sorted({row["numbers"] for rows in measured.values() for row in rows})
        left[0].set_xticks(sizes, [f"{size:,}" for size in sizes])
        left[0].minorticks_off()
    for way, label in WAYS.items():
        shares = [float(share) for share in report["kept"]]
        values = [row[way] for row in report["kept"].values()]
        draw_curve(right, shares, values, label, f"C{len(right.lines)}")
    right.set(xscale="log", xlabel="share of a trained LoRA's numbers that is kept")
    for axes in (*left, right):
        axes.axhline(TARGET, color="grey", ls=":", lw=1)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("share of the similarity gain that is kept")
    return figure


def draw_curve(
    axes: Any,  # noqa: ANN401 (matplotlib's)
    x: list[float],
    values: list[Mapping[str, float]],
    label: str,
    colour: str,
) -> None:
    """One line with the band of its intervals."""
    axes.fill_between(x, [v["low"] for v in values], [v["high"] for v in values], alpha=0.12, color=colour)
    axes.plot(x, [v["mean"] for v in values], marker="o", label=label, color=colour)
