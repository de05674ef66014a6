"""What the second look at the front found: who was struck and why, and what may be taken for granted of the others."""

from doge_lab.report.cards import escaped, html_table
from doge_lab.report.labels import model_label, plural
from doge_lab.search.front import Results


def struck_section(results: Results) -> str:
    """The models that would stand on the front and may not, as HTML; empty when there are none."""
    if not results.struck:
        return ""
    rows = [
        (str(each.number), escaped(model_label(each.trials[0].config)), escaped(each.struck)) for each in results.struck
    ]
    said = (
        "Each would stand on the front by its values. Its trained model, looked at again by another process, broke a "
        "promise, so that its values count for nothing."
    )
    table = html_table(("trial", "model", "why"), rows, numeric=(0,))
    return f'<section id="struck"><h2>Struck off the front</h2><p class="small">{said}</p>{table}</section>'


def audit_line(results: Results) -> str:
    """What the reader may take for granted of the models that stand, as HTML."""
    looked = [each for each in results.front if each.audits]
    if len(looked) < len(results.front):
        missing = len(results.front) - len(looked)
        return (
            f"{missing} of {len(results.front)} {plural(len(results.front), 'model')} of the front "
            f"{'was' if missing == 1 else 'were'} not looked at again: the contract is proven for their blocks alone."
        )
    struck = f'; <a href="#struck">{len(results.struck)} struck</a>' if results.struck else ""
    return (
        "Every model of the front was looked at again, trained and whole, by another process: its score comes out of "
        f"its saved weights and, token by token, of a live cache that holds the bytes declared{struck}."
    )
