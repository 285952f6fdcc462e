"""Plot what was measured: latency distributions of the full path beside those without the queue."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.queue_cost import QueueCost


def plot_turns(costs: list[QueueCost], file: Path) -> None:
    """Draw one cumulative latency plot for each number of connections."""
    figure, axes = plt.subplots(1, len(costs), figsize=(5.5 * len(costs), 4), squeeze=False)
    for axis, cost in zip(axes[0], costs, strict=True):
        slowest_ms = 0.0
        for i, label in enumerate(("through the queue", "gateway alone")):
            latencies_ms = sorted(1000 * s for turn in cost.turns for s in turn[i].latencies_s)
            share = [(n + 1) / len(latencies_ms) for n in range(len(latencies_ms))]
            axis.plot(latencies_ms, share, label=label)
            slowest_ms = max(slowest_ms, latencies_ms[int(0.99 * len(latencies_ms)) - 1])
        axis.set_xlim(0, 1.3 * slowest_ms)
        axis.set_title(f"{cost.connections} connection{'s' if cost.connections > 1 else ''}")
        axis.set_xlabel("latency, ms")
        axis.set_ylabel("share of requests")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
