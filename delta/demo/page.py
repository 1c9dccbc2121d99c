"""The demonstration's page: one HTML file that opens offline and shows what stayed, what left, what it gave away."""

from __future__ import annotations

import base64
import html
import io

import torch
from PIL import Image
from torch import Tensor

from delta.demo.experiment import DemoResult, Row
from delta.demo.summary import headline, row_title, verdict
from delta.release.packing import unpack_bits

__all__ = ["render_page"]

_STYLE = """
:root{--ink:#1b1f24;--mute:#5b6570;--line:#d9dee4;--accent:#0b5cad;--warn:#9a3412;--panel:#f6f8fa}
*{box-sizing:border-box}
body{margin:0;font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:#fff}
main{max-width:1180px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .5em}
p{max-width:75ch}.mute{color:var(--mute)}
.banner{border-left:4px solid var(--warn);background:#fff7ed;padding:10px 14px;margin:14px 0;max-width:none}
.verdict{border-left:4px solid var(--accent);background:#eff6ff;padding:10px 14px;margin:14px 0;max-width:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}
thead th{background:var(--panel);vertical-align:bottom}
.gallery td,.gallery th{text-align:center!important;padding:5px 6px;font-size:.82rem}
.gallery img{width:80px;height:80px;image-rendering:pixelated;display:block;margin:0 auto}
.gallery img{border:1px solid var(--line);background:#fff}
.hit{color:var(--warn);font-weight:600}.miss{color:#166534}
.stays{background:#f0fdf4}.leaves{background:#fff7ed}.guess{background:#fef2f2}
svg text{font:13px system-ui,sans-serif;fill:var(--ink)}
"""


def render_page(result: DemoResult, *, gallery: int, show_records: bool) -> str:
    """The page as a string. With `show_records` it holds private records, and says so at its top (I6)."""
    records = (
        f'<p class="banner"><strong>This page contains private records</strong> of {_text(result.data.test.name)}.</p>'
        if show_records
        else '<p class="banner">Records are not shown; <code>--include-records</code> puts them here.</p>'
    )
    body = [
        "<h1>Delta demo: what stayed, what left, what it gave away</h1>",
        f'<p class="mute">{_text(result.data.test.name)}, {len(result.test.y):,} test records through a cloud in a '
        "second process over gRPC. TEE: simulated. Every figure was measured in this run.</p>",
        records,
        f'<p class="verdict">{_text(verdict(result))}</p>',
        *(["<h2>Records</h2>", _gallery(result, gallery)] if show_records else []),
        "<h2>Accuracy</h2>",
        _bars(result),
        "<h2>Figures</h2>",
        _figures(result),
        "<h2>What may be claimed</h2>",
        _claims(result),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Delta demo</title>'
        f"<style>{_STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _text(value: str) -> str:
    return html.escape(value)


def _figures(result: DemoResult) -> str:
    columns, rows = headline(result)
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _claims(result: DemoResult) -> str:
    parts = []
    for row in result.rows.values():
        items = "".join(f"<li>{_text(line)}</li>" for line in row.claim.lines())
        parts.append(f"<p><strong>{_text(row_title(row))}</strong></p><ul>{items}</ul>")
    return "".join(parts)


def _bars(result: DemoResult) -> str:
    """A bar chart of the accuracies, one group a row."""
    kinds = [
        ("whole model, all private", "#94a3b8"),
        ("main model alone", "#64748b"),
        ("Delta", "#0b5cad"),
        ("random bits", "#cbd5e1"),
        ("noiseless bits", "#7dd3fc"),
        ("the cloud's own guess", "#dc2626"),
    ]
    y, parts = 8, []
    for row in result.rows.values():
        c = row.controls
        values = (
            c.private_only, c.main_alone, row.delta_accuracy, c.random_bits, c.noiseless_bits,
            row.leakage.cloud_label_accuracy,
        )  # fmt: skip
        y += 18
        parts.append(f'<text x="0" y="{y}" font-weight="600">{_text(row_title(row))}</text>')
        y += 8
        for (name, colour), value in zip(kinds, values, strict=True):
            parts.append(
                f'<text x="190" y="{y + 13}" text-anchor="end">{_text(name)}</text>'
                f'<rect x="200" y="{y + 2}" width="{6.2 * value:.1f}" height="14" fill="{colour}"/>'
                f'<text x="{206 + 6.2 * value:.1f}" y="{y + 13}">{value:.1f} %</text>'
            )
            y += 19
        y += 12
    return (
        f'<div class="scroll"><svg viewBox="0 0 900 {y}" width="900" height="{y}" role="img" '
        f'aria-label="Accuracy of every control">{"".join(parts)}</svg></div>'
    )


@torch.inference_mode()
def _gallery(result: DemoResult, count: int) -> str:
    chosen = _one_a_class(result.test.y, count)
    x = result.test.x[chosen]
    private = result.private
    phi = private.backbone(x)
    decomposition = private.decomposer(phi)
    residual = private.decomposer.residual(phi, decomposition).mean(1)
    rows = list(result.rows.values())
    head = (
        '<tr><th colspan="3" class="stays">stays on the private side</th>'
        + "".join(f'<th colspan="2" class="leaves">{_text(row_title(row))}</th>' for row in rows)
        + "</tr><tr><th>image</th><th>principal part</th><th>residual</th>"
        + "".join("<th>bits that left</th><th>best reconstruction</th>" for _ in rows)
        + "</tr>"
    )
    lines = []
    for position, index in enumerate(chosen.tolist()):
        cells = [
            f"<td>{_picture(result.data.test.images[index], 'image')}"
            f"{_text(result.data.test.class_names[int(result.test.y[index])])}</td>",
            f"<td>{_picture(_tiles(decomposition.principal[position]), 'principal part')}</td>",
            f"<td>{_picture(_scaled(residual[position]), 'residual, mean over channels')}</td>",
        ]
        for row in rows:
            cells += _row_cells(row, index)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<p>The bits are what the cloud got, bit for bit. "Matched" says whether the right image scored highest '
        f"among {rows[0].leakage.match.candidates:,} candidates. The decoder is small and trains for seconds: a "
        "strong attack draws better.</p>"
        f'<div class="scroll"><table class="gallery"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _row_cells(row: Row, index: int) -> list[str]:
    bits = unpack_bits(row.payloads[index : index + 1], row.stage.release.message.shape)[0].float()
    matched = int(row.leakage.match.best[index]) == index
    mark = '<span class="hit">matched</span>' if matched else '<span class="miss">not matched</span>'
    drawing = _picture(row.leakage.drawings[index], "reconstruction")
    return [
        f"<td>{_picture(_tiles(bits), 'released bits')}</td>",
        f"<td>{drawing}SSIM {float(row.leakage.each_ssim[index]):.2f}<br>{mark}</td>",
    ]


def _one_a_class(labels: Tensor, count: int) -> Tensor:
    """The first record of each class, then the next ones: `count` indices."""
    order = []
    for turn in range(count):
        for label in torch.unique(labels):
            of_class = (labels == label).nonzero().flatten()
            if turn < len(of_class):
                order.append(int(of_class[turn]))
    return torch.tensor(order[:count])


def _scaled(x: Tensor) -> Tensor:
    """To [0, 1] over the picture."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low).clamp_min(1e-12)


def _tiles(channels: Tensor) -> Tensor:
    """Channels `[k, h, w]` side by side on a square grid, each scaled to [0, 1]."""
    side = 1
    while side * side < len(channels):
        side += 1
    _, h, w = channels.shape
    canvas = torch.ones(side * h, side * w)
    for index, channel in enumerate(channels):
        row, column = divmod(index, side)
        canvas[row * h : (row + 1) * h, column * w : (column + 1) * w] = _scaled(channel)
    return canvas


def _picture(x: Tensor, name: str) -> str:
    """An `<img>` with the picture inside: `[h, w]`, `[1, h, w]` or `[3, h, w]` in [0, 1]."""
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.dim() == 3:
        pixels = pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels[0]
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'
