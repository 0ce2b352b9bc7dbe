"""Draw docs/diagram.svg, the picture of serving and training in README.md.

Command: python docs/make_diagram.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

WIDTH, HEIGHT = 960, 640
INK, PALE = "#2c3e50", "#7f8c8d"
EVENT, QUERY, MEMORY, PASS = "#d6e4f0", "#fdebd0", "#d5f5e3", "#f4f6f7"

STYLE = f"""
text {{ font-family: Helvetica, Arial, sans-serif; font-size: 14px; fill: {INK}; }}
.title {{ font-size: 17px; font-weight: bold; }}
.small {{ font-size: 12px; fill: {PALE}; }}
.middle {{ text-anchor: middle; }}
.arrow {{ stroke: {INK}; stroke-width: 1.6; fill: none; marker-end: url(#head); }}
.pull {{ stroke: #c0392b; stroke-width: 2; fill: none; stroke-dasharray: 5 4; }}
.loss {{ fill: #c0392b; font-weight: bold; }}
"""

HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    f'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker>'
)


def draw_text(x: float, y: float, content: str, kind: str = "") -> str:
    """Return a line of text with its baseline at y."""
    return f'<text x="{x}" y="{y}" class="{kind}">{content}</text>'


def draw_box(x: float, y: float, width: float, height: float, fill: str, label: str = "") -> str:
    """Return a rectangle with a centred label."""
    shape = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" '
        f'stroke="{INK}"/>'
    )
    return shape + draw_text(x + width / 2, y + height / 2 + 5, label, "middle")


def draw_path(points: list[tuple[float, float]], kind: str = "arrow") -> str:
    """Return straight lines through the points."""
    return f'<path class="{kind}" d="M' + " L".join(f"{x} {y}" for x, y in points) + '"/>'


def format_index(letter: str, below: str, above: str = "") -> str:
    """Return a letter with an index, and a small superscript if one is given."""
    index = f'<tspan dy="4" font-size="10">{below}</tspan>'
    raised = f'<tspan dx="-6" dy="-10" font-size="10">{above}</tspan>' if above else ""
    return f"{letter}{index}{raised}"


def draw_tokens(x: float, y: float, segment: str) -> str:
    """Return the tokens of one segment, followed by its query tokens."""
    return draw_box(x, y, 100, 26, EVENT, segment) + draw_box(x + 106, y, 44, 26, QUERY, "Q")


def draw_serving(top: float) -> Iterator[str]:
    """Yield the upper panel: memories rolled forward, then a read."""
    yield draw_text(24, top + 24, "Serving: one update per full segment, then a read", "title")
    yield draw_text(
        24, top + 43, "Each box runs the same backbone. Only the memory is stored.", "small"
    )
    memory_y, pass_y, token_y = top + 62, top + 122, top + 182
    for h, x in enumerate((40, 330)):
        yield draw_tokens(x + 62, token_y, format_index("S", str(h)))
        yield draw_path([(x + 112, token_y), (x + 112, pass_y + 32)])
        yield draw_path([(x + 190, token_y), (x + 190, pass_y + 32)])
        yield draw_box(x, pass_y, 220, 30, PASS, f"update {h}")
        yield draw_path([(x + 190, pass_y), (x + 190, memory_y + 28)])
        yield draw_box(x + 160, memory_y, 60, 26, MEMORY, format_index("M", str(h)))
        yield draw_path([(x + 220, memory_y + 13), (x + 310, memory_y + 13), (x + 310, pass_y - 2)])
    x = 620
    yield draw_box(x + 40, token_y, 120, 26, EVENT, "recent events")
    yield draw_path([(x + 100, token_y), (x + 100, pass_y + 32)])
    yield draw_box(x, pass_y, 160, 30, PASS, "read")
    yield draw_path([(x + 160, pass_y + 15), (x + 194, pass_y + 15)])
    yield draw_text(x + 200, pass_y + 12, "ranking of the")
    yield draw_text(x + 200, pass_y + 29, "whole catalogue")


def draw_training(top: float) -> Iterator[str]:
    """Yield the lower panel: the reference pass above, the update passes below."""
    yield draw_text(24, top + 24, "Training: two passes, both parallel over segments", "title")
    yield draw_text(
        24,
        top + 43,
        "Query group h of the reference pass sees every event of segments 0 to h.",
        "small",
    )
    columns = (40, 350, 660)
    token_y, bar_y, ref_y = top + 58, top + 102, top + 156
    new_y, pass_y, low_y = top + 226, top + 278, top + 334
    yield draw_box(40, bar_y, 880, 30, PASS, "reference pass: one pass over the whole window")
    for h, x in enumerate(columns):
        yield draw_tokens(x + 62, token_y, format_index("S", str(h)))
        yield draw_path([(x + 112, token_y + 26), (x + 112, bar_y - 2)])
        yield draw_path([(x + 190, token_y + 26), (x + 190, bar_y - 2)])
        yield draw_path([(x + 190, bar_y + 30), (x + 190, ref_y - 2)])
        yield draw_box(x + 160, ref_y, 60, 26, MEMORY, format_index("m", str(h), "ref"))
        yield draw_path([(x + 190, ref_y + 26), (x + 190, new_y)], "pull")
        link = draw_text(x + 198, ref_y + 53, format_index("L", "con"), "loss")
        yield link if h else draw_text(x + 198, ref_y + 53, "equal", "small")
        yield draw_box(x + 160, new_y, 60, 26, MEMORY, format_index("m", str(h), "upd"))
        yield draw_path([(x + 190, pass_y), (x + 190, new_y + 28)])
        yield draw_path([(x + 112, pass_y), (x + 112, new_y + 34)])
        yield draw_text(x + 112, new_y + 10, "next items", "middle")
        yield draw_text(x + 112, new_y + 27, format_index("L", "AR"), "middle loss")
        yield draw_box(x, pass_y, 220, 30, PASS, f"update pass, segment {h}")
        yield draw_tokens(x + 62, low_y, format_index("S", str(h)))
        yield draw_path([(x + 112, low_y), (x + 112, pass_y + 32)])
        yield draw_path([(x + 190, low_y), (x + 190, pass_y + 32)])
        if h:
            left = columns[h - 1] + 220
            yield draw_box(x, low_y, 56, 26, MEMORY, format_index("m", str(h - 1), "ref"))
            yield draw_path([(x + 28, low_y), (x + 28, pass_y + 32)])
            down = low_y + 13
            yield draw_path(
                [(left, ref_y + 13), (left + 45, ref_y + 13), (left + 45, down), (x, down)]
            )


def main() -> None:
    """Write docs/diagram.svg."""
    parts = [
        *draw_serving(0),
        draw_path([(24, 236), (WIDTH - 24, 236)], "rule"),
        *draw_training(244),
    ]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">\n'
        "<title>How Rec2PM serves a user and how it is trained</title>\n"
        f"<style>{STYLE}.rule {{ stroke: #d0d3d4; }}</style>\n<defs>{HEAD}</defs>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n'
    )
    output = Path(__file__).with_name("diagram.svg")
    output.write_text(svg + "\n".join(parts) + "\n</svg>\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
