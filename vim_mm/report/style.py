# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Style of the report page, and the colours of its heat map."""

from typing import Tuple

STYLE = '''
:root{color-scheme:light;--ink:#1c2430;--soft:#5b6675;--line:#dde3ea;
--bar:#4477aa;--best:#0b6e4f;--bad:#b3402a}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);max-width:64rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;
border-top:1px solid var(--line);padding-top:1.2rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p,figcaption,.origin{color:var(--soft);margin:.3rem 0 .8rem}
.origin{font-size:.8rem;overflow-wrap:anywhere}
.claims{background:#f5f7fa;border-radius:8px;padding:.2rem 1rem .8rem;
margin:1rem 0}
.claim{margin:.6rem 0 1rem}
.claim p{margin:.1rem 0;color:var(--ink)}
.up{color:var(--best)}.down{color:var(--bad)}
.bars{display:grid;grid-template-columns:minmax(5rem,auto) 1fr 3.2rem;
gap:.1rem .6rem;align-items:center;font-size:.85rem;max-width:40rem}
.bars b{font-weight:400;overflow-wrap:anywhere}
.bars span,.bar{display:inline-block;height:.7rem;background:var(--bar);
border-radius:2px;vertical-align:middle}
.bars span.top{background:var(--best)}
.bars i{font-style:normal;text-align:right;
font-variant-numeric:tabular-nums}
table{border-collapse:collapse;margin:.6rem 0}
.wide{overflow-x:auto}
th,td{padding:.25rem .7rem;text-align:left;border-bottom:1px solid
var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft)}td.n{text-align:right;
font-variant-numeric:tabular-nums}
tr.best td{font-weight:700;color:var(--best)}
.gates td{border:1px solid #fff;text-align:center;width:1.9rem;
min-width:1.9rem;padding:.15rem 0;font-size:.65rem;
font-variant-numeric:tabular-nums}
.gates td.none{background:#eef1f4}
.gates th{border:0;padding:.1rem .5rem;font-size:.75rem}
.gates th.slot{writing-mode:vertical-rl;transform:rotate(180deg);
padding:.3rem 0;font-weight:400}
.grid th,.grid td{border:0;padding:.2rem .3rem;vertical-align:top;
white-space:normal;font-size:.8rem}
.grid th{min-width:5rem;max-width:8rem;position:sticky;left:0;
background:#fff;overflow-wrap:anywhere}
.grid img{width:8.2rem;display:block;border-radius:4px}
.grid td{width:8.2rem;min-width:8.2rem}
.legend span{display:inline-block;margin-right:1rem;font-size:.85rem}
.legend i{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;
margin-right:.3rem;vertical-align:-.1rem;border:1px solid var(--line)}
figure{margin:.6rem 0}figure img{display:block;height:auto;max-width:100%}
figcaption{font-size:.85rem}
@media(max-width:40rem){th,td{padding:.25rem .35rem;font-size:.85rem}
table:not(.grid):not(.gates) td:first-child{white-space:normal;
min-width:6rem}.bar{display:none}}
dl{display:grid;grid-template-columns:minmax(6rem,auto) 1fr;gap:.2rem 1rem;
font-size:.9rem}dt{font-weight:600}dd{margin:0;color:var(--soft)}
'''

_POSITIVE, _NEGATIVE = (11, 110, 79), (179, 64, 42)


def shade(weight: float, largest: float) -> Tuple[str, str]:
    """Background and ink of a weight: green above zero, red below."""
    share = min(abs(weight) / largest, 1.) if largest else 0.
    tint = _POSITIVE if weight > 0 else _NEGATIVE
    mixed = [round(255 + (part - 255) * share) for part in tint]
    ink = '#fff' if share > .55 else '#1c2430'
    return f'rgb({",".join(map(str, mixed))})', ink
