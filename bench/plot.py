"""Plots of bench.json and spikes.json, as SVG, with matplotlib.

    plot.py FILE... DIR     draws them again
"""
import json
import os
import statistics
import sys

try:
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tiercel"  # the same figures make the same file
    matplotlib.rcParams["font.size"] = 9
    from matplotlib import pyplot
except ImportError:
    pyplot = None

WHY_NOT = "No plots: matplotlib is not installed (`sh deps/install.sh bench`, or the package python3-matplotlib)."
REFERENCE = "redis-server"
COLORS = ["#b0b7c3", "#2f6fde", "#7fb2f0", "#e08a3c", "#6aa84f", "#a06cd5", "#c0504d", "#8c6d31"]


def color_of(names):
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}


def finish(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return os.path.basename(path)


def plain(axes, title):
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def bars(axes, groups, series, horizontal=False):
    """series: {name: [value or None for each group]}"""
    colors, width = color_of(series), 0.8 / max(len(series), 1)
    for k, (name, values) in enumerate(series.items()):
        at = [i + (k - (len(series) - 1) / 2) * width for i in range(len(groups))]
        put = axes.barh if horizontal else axes.bar
        put(at, [v or 0 for v in values], width * 0.92, label=name, color=colors[name])
    set_ticks = axes.set_yticks if horizontal else axes.set_xticks
    set_ticks(range(len(groups)), groups)
    if horizontal:
        axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)


def draw_cpu(result, path):
    runs = result["cpu_us"]
    names = list(dict.fromkeys(name for r in runs.values() for name in r))
    series = {name: [statistics.median(a / b for a, b in zip(r[name], r[REFERENCE])) if name in r else None
                     for r in runs.values()] for name in names}
    figure, axes = pyplot.subplots(figsize=(7.5, 0.8 + 0.16 * len(runs) * (len(names) + 1)))
    bars(axes, list(runs), series, horizontal=True)
    axes.axvline(1, color="#888", linewidth=0.8)
    plain(axes, "Server CPU per request, as a ratio to redis-server (less is better)")
    return finish(figure, path)


def draw_memory(result, path):
    memory = result["memory"]
    series = {title: [memory[kind].get(name, {}).get("rss") for name in memory["plain"]]
              for kind, title in (("plain", "without TTL"), ("ttl", "with a TTL"))}
    figure, axes = pyplot.subplots(figsize=(7.5, 3))
    bars(axes, list(memory["plain"]), series)
    plain(axes, f"Bytes per key beyond key and value, {memory['keys']:,} keys (RSS)")
    return finish(figure, path)


def draw_json(result, path):
    sizes = result["json"]
    figure, axes = pyplot.subplots(figsize=(7.5, 3))
    names = list(sizes["rss"])
    axes.bar(names, list(sizes["rss"].values()), 0.6, color=[color_of(names)[n] for n in names])
    axes.axhline(sizes["raw"], color="#888", linewidth=0.8)
    axes.text(len(names) - 0.6, sizes["raw"], "key and value", va="bottom", ha="right", fontsize=8)
    plain(axes, "Bytes per key, JSON of 500 bytes to 4 KB (RSS)")
    return finish(figure, path)


def draw_latency(result, path):
    rates = list(result["latency"])
    points = ["p50", "p90", "p99", "p99_9", "p99_99"]
    figure, all_axes = pyplot.subplots(1, len(rates), figsize=(7.5, 3), sharey=True, squeeze=False)
    for axes, rate in zip(all_axes[0], rates):
        runs = result["latency"][rate]
        colors = color_of(runs)
        for name, slices in runs.items():
            axes.plot(points, [statistics.median(s["latency_us"][p] for s in slices) for p in points], marker="o",
                      markersize=3, label=name, color=colors[name])
        axes.set_yscale("log")
        axes.set_xticks(range(len(points)), [p[1:].replace("_", ".") for p in points])
        axes.set_xlabel("percentile")
        plain(axes, f"{int(rate):,} requests/s")
    all_axes[0][0].set_ylabel("latency, us, from when it was due")
    all_axes[0][0].legend(frameon=False, fontsize=8)
    return finish(figure, path)


def draw_spikes(result, path):
    rows = result["rows"]
    scenarios = list(dict.fromkeys(r["scenario"] for r in rows))
    names = list(dict.fromkeys(r["server"] for r in rows))
    series = {name: [next((r["latency_us"]["p99_9"] / 1000 for r in rows if (r["scenario"], r["server"]) == (s, name)), None)
                     for s in scenarios] for name in names}
    figure, axes = pyplot.subplots(figsize=(7.5, 0.8 + 0.25 * len(scenarios) * len(names)))
    bars(axes, scenarios, series, horizontal=True)
    axes.set_xscale("log")
    plain(axes, f"p99.9 of GETs meanwhile, ms, at {result['rate']:,} requests/s")
    return finish(figure, path)


DRAWN = {"cpu_us": ("cpu.svg", draw_cpu), "memory": ("memory.svg", draw_memory), "json": ("json.svg", draw_json),
         "latency": ("latency.svg", draw_latency), "rows": ("spikes.svg", draw_spikes)}


def draw(result, directory):
    """Draws what there is; returns the names of the files."""
    if not pyplot:
        return []
    return [f(result, os.path.join(directory, name)) for part, (name, f) in DRAWN.items() if result.get(part)]


def main():
    if not pyplot or len(sys.argv) < 3:
        print(WHY_NOT if not pyplot else __doc__, file=sys.stderr)
        return 2
    for path in sys.argv[1:-1]:
        with open(path, encoding="utf-8") as f:
            print("\n".join(draw(json.load(f), sys.argv[-1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
