"""What all pages share: one HTML file that needs no network, plotly.js in it once, figures as JSON beside it."""

from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from doge_lab.report.cards import escaped
from doge_lab.report.panel import Panel


def template(name: str) -> Template:
    return Template(files("doge_lab.report").joinpath(name).read_text(encoding="utf-8"))


def framed(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML; `title` is text."""
    return template("frame.html").substitute(title=escaped(title), body=body, plotlyjs=get_plotlyjs())


def panel_html(panel: Panel) -> str:
    """A figure with its heading and caption; its data stand beside it as JSON."""
    heading = f'<figure class="panel" id="figure-{escaped(panel.name)}"><h2>{escaped(panel.title)}</h2>'
    caption = f"<figcaption>{escaped(panel.caption)}</figcaption></figure>"
    if panel.figure is None:
        return heading + caption
    data = panel.figure.to_json()  # plotly writes `<` as an escape, so that no name closes the script element
    height = panel.figure.layout.height
    plot = f'<div class="plot" style="height: {height}px" role="img" aria-label="{escaped(panel.title)}"></div>'
    return f'{heading}{plot}<script type="application/json">{data}</script>{caption}'
