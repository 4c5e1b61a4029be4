"""Draw the diagram of Separable Batch Normalization: docs/figures/sepbn.svg.

    python docs/draw_sepbn.py [--out docs/figures/sepbn.svg]

One file for light and for dark pages: its colours follow the reader's setting.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.files import atomic_write, reports_user_errors  # noqa: E402

WIDTH, HEIGHT = 860, 330
SETS = ("#0072b2", "#e69f00", "#009e73")  # of Okabe and Ito, as on the page of demo.py
INKS = ("#ffffff", "#111111", "#111111")  # on them
WEIGHTS = ((0.2, 0.7, 0.1), (0.55, 0.15, 0.3))  # of the drawn example: G = 2 groups, K = 3 sets

_SMALL = "small middle"
STYLE = """
    text { font-family: system-ui, sans-serif; font-size: 14px; fill: #24292f; }
    text.head { font-weight: 600; }
    text.small { font-size: 12px; }
    text.middle { text-anchor: middle; }
    text.on { text-anchor: middle; font-size: 13px; font-weight: 600; }
    .box { fill: #f3f5f8; stroke: #57606a; stroke-width: 1.2; }
    .flow { fill: none; stroke: #57606a; stroke-width: 1.6; marker-end: url(#tip); }
    .join { fill: none; stroke: #57606a; stroke-width: 1.6; }
    .tip { fill: #57606a; }
    .channel { stroke: #57606a; stroke-width: 1; fill: #d0d7de; }
    .other { fill: #aeb9c6; }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3; }
        .box { fill: #1c2430; stroke: #9aa7b4; }
        .flow, .join { stroke: #9aa7b4; }
        .tip { fill: #9aa7b4; }
        .channel { stroke: #9aa7b4; fill: #3d4653; }
        .other { fill: #5c6878; }
    }
"""


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "figures" / "sepbn.svg",
        metavar="FILE",
        help="the SVG file (default: %(default)s)",
    )
    out = parser.parse_args(argv).out

    with atomic_write(out, "w") as file:
        file.write(draw())

    print(f"wrote {out}")

    return 0


def draw() -> str:
    """The whole diagram as SVG."""
    words = (
        "SepBN: the input is normalised once; an attention branch gives each group of channels K "
        "weights; they mix K learnt scales and shifts, which are applied to the normalised input."
    )
    parts = [
        *_features(24, 60, "input x"),
        *_box(170, 66, 150, 76, "normalise once", ["(x − μ) / √(σ² + ε)", "as BatchNorm does"]),
        *_box(
            152,
            222,
            186,
            76,
            "attention",
            ["average pool, C → h → G·K", "softmax over K sets, / τ"],
        ),
        *_sets(),
        *_weights(),
        *_box(624, 66, 96, 76, "apply", ["s · x̂ + b", "per channel"]),
        *_features(758, 60, "output y"),
        _flow("M 96 104 H 166"),
        _flow("M 120 104 V 260 H 148"),
        _flow("M 320 104 H 620"),
        _flow("M 338 260 H 362"),
        _flow("M 444 260 H 474"),
        _flow("M 584 244 H 672 V 146"),
        _flow("M 720 104 H 752"),
        _text(470, 94, "x̂", "middle"),
        _text(676, 196, "s, b", ""),
    ]
    body = "\n".join(f"  {part}" for part in parts)

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="{words}">\n  <style>{STYLE}  </style>\n'
        '  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M 0 0 L 8 4 L 0 8 z"/></marker>'
        f"</defs>\n{body}\n</svg>\n"
    )


def _features(x: float, y: float, name: str) -> list[str]:
    """A feature map as a stack of channels, those of the second group shaded otherwise."""
    sheets = [
        f'<rect class="channel{"" if i < 3 else " other"}" x="{x + 7 * (5 - i)}" '
        f'y="{y + 6 * (5 - i)}" width="36" height="50"/>'
        for i in range(6)
    ]

    rows = [
        _text(x + 36, y + 100 + 17 * i, words, _SMALL)
        for i, words in enumerate(("C channels", "in G groups"))
    ]

    return [*sheets, _text(x + 36, y - 12, name, "head middle"), *rows]


def _box(x: float, y: float, width: float, height: float, head: str, lines: list[str]) -> list[str]:
    rows = [_text(x + width / 2, y + 46 + 18 * i, line, _SMALL) for i, line in enumerate(lines)]
    frame = f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'

    return [frame, _text(x + width / 2, y + 24, head, "head middle"), *rows]


def _weights() -> list[str]:
    """The attention weights as bars: a row a group."""
    parts = [_text(400, 206, "weights p", "head middle")]
    for g, row in enumerate(WEIGHTS):
        bottom = 258 + 46 * g
        for k, weight in enumerate(row):
            high = 34 * weight
            parts.append(
                f'<rect x="{372 + 20 * k}" y="{bottom - high:.1f}" width="16" '
                f'height="{high:.1f}" fill="{SETS[k]}"/>'
            )

        parts.append(f'<path class="join" d="M 368 {bottom} H 432"/>')
        parts.append(_text(400, bottom + 13, f"group {g + 1}", _SMALL))

    return parts


def _sets() -> list[str]:
    """The K learnt maps, and their mixture."""
    parts = ['<rect class="box" x="478" y="180" width="106" height="128" rx="6"/>']
    parts.append(_text(531, 170, "K learnt maps", "head middle"))
    for k, colour in enumerate(SETS):
        y = 192 + 36 * k
        parts.append(f'<rect x="490" y="{y}" width="82" height="28" rx="4" fill="{colour}"/>')
        label = "₁₂₃"[k]
        words = f"γ{label}, β{label}"
        parts.append(
            f'<text class="on" style="fill: {INKS[k]}" x="531" y="{y + 19}">{words}</text>'
        )

    parts.append(_text(600, 268, "s = Σₖ pₖ γₖ", ""))
    parts.append(_text(600, 288, "b = Σₖ pₖ βₖ", ""))
    parts.append(_text(600, 306, "p of the channel's group", "small"))

    return parts


def _flow(path: str) -> str:
    return f'<path class="flow" d="{path}"/>'


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{words}</text>'


if __name__ == "__main__":
    sys.exit(main())
