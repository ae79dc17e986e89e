"""Figures as a picture."""

from typing import Any

import numpy as np

from indextts_jax.bench.report import SIZES, Curves, exponent, scaling, stages_of


def plot(result: dict[str, Any]) -> bytes:
    """A picture (.png). Needs matplotlib.

    One panel for every size that has several values, in which every stage is a curve; without such, one per setting of
    what every stage takes beside its floor.
    """
    import io

    from matplotlib.figure import Figure

    grown = scaling(result)
    panels = len(grown or result["chains"])
    figure = Figure(figsize=(9, (4.5 if grown else 3.2) * panels), layout="constrained")
    for i in range(panels):
        axes = figure.add_subplot(panels, 1, i + 1)
        _draw_curves(axes, grown[i]) if grown else _draw_bars(axes, result, result["chains"][i])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw_curves(axes: Any, curves: Curves) -> None:
    most = max(max(seconds) for seconds in curves.seconds.values())
    shown = {name: seconds for name, seconds in curves.seconds.items() if max(seconds) > 0.002 * most}
    for i, (name, seconds) in enumerate(shown.items()):
        label = f"{name}: {exponent(curves.values, seconds):.2f}"
        style = "o-" if i < 10 else "s--"  # after ten colours they come again
        axes.plot(curves.values, seconds, style, label=label, linewidth=3 if name == "whole chain" else 1.5)
    axes.set(title=curves.title, xlabel=SIZES[curves.size], ylabel="s", xscale="log", yscale="log")
    axes.set_xticks(curves.values, [f"{value:g}" for value in curves.values])
    axes.minorticks_off()
    axes.legend(title="exponent", loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_bars(axes: Any, result: dict[str, Any], chain: dict[str, Any]) -> None:
    own = stages_of(result, chain)
    own = [row for row in own if row["run_s"] > 0.002 * sum(other["run_s"] for other in own)]
    place = np.arange(len(own))
    axes.barh(place, [row["run_s"] for row in own], 0.4, label="measured")
    axes.barh(place + 0.4, [max(row["floor_s"], 1e-6) for row in own], 0.4, label="floor")
    axes.set_yticks(place + 0.2, [row["name"] for row in own])
    axes.invert_yaxis()
    title = f"{chain['dtype']}, batch {chain['batch']}, {chain['beams']} beams, {chain['codes']} codes"
    axes.set(title=title, xlabel="s", xscale="log")
    axes.legend()
