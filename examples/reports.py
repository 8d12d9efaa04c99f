"""Reports: a task can leave an HTML page behind.

With `report=True` a task writes HTML into the page's main tab and into tabs of its own naming.
The page is stored next to the outputs; the console shows it, and
`flyte.remote.Run.get(name).get_report()` downloads it.

    flyte run --follow examples/reports.py main
"""

import flyte
import flyte.report

env = flyte.TaskEnvironment("reports")


def bar(label: str, value: int) -> str:
    """One row of a bar chart, in plain HTML."""
    return (
        f"<tr><td>{label}</td><td>{value}</td>"
        f'<td><div style="background: steelblue; height: 1em; width: {value * 8}px"></div></td></tr>'
    )


@env.task(report=True)
async def main(text: str = "the quick brown fox jumps over the lazy dog") -> int:
    """Chart the letters of a text; return how many different ones there are."""
    letters = [character for character in text if character.isalpha()]
    counts = {letter: letters.count(letter) for letter in sorted(set(letters))}

    await flyte.report.log.aio(f"<h1>{len(letters)} letters</h1><p><q>{text}</q></p>")
    # Flushing publishes what is there so far, while the task goes on.
    await flyte.report.flush.aio()
    chart = "".join(bar(letter, count) for letter, count in counts.items())
    flyte.report.get_tab("By letter").log(f"<table>{chart}</table>")
    await flyte.report.flush.aio()
    return len(counts)
