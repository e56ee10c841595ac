"""Holds the style sheet of the report page."""

STYLE = """
:root { --paper: #fbfbfa; --card: #ffffff; --ink: #1c1e21; --soft: #5d6470; --line: #e2e4e8; --base: #2b63c9;
  --novel: #b4530a; --novel-wash: #fdf3e8; --bar: #cdd9f1; }
@media (prefers-color-scheme: dark) { :root { --paper: #131518; --card: #1b1e23; --ink: #e8e9eb; --soft: #9aa2ae;
  --line: #2e333b; --base: #82aaf5; --novel: #f0a25a; --novel-wash: #2b2219; --bar: #34486f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 56px 24px 96px; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 12px; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 0 0 8px; }
h3 { font-size: 0.95rem; margin: 24px 0 8px; color: var(--soft); font-weight: 600; }
p { margin: 0 0 8px; max-width: 72ch; color: var(--soft); }
.lead { font-size: 1.08rem; }
section { margin-top: 64px; }
section.opening { margin-top: 22px; }
.lesson { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px 8px; }
.row { display: grid; grid-template-columns: 92px repeat(4, minmax(0, 1fr)); gap: 0 14px; }
.row + .row { margin-top: 10px; border-top: 1px solid var(--line); padding-top: 12px; }
.row h3 { margin: 0 0 6px; color: var(--ink); font-size: 0.88rem; line-height: 1.3; }
.row + .row h3 { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.row p { font-size: 0.8rem; line-height: 1.4; margin: 6px 0 0; }
.who { display: flex; flex-direction: column; justify-content: center; line-height: 1.35; }
.who b { font-size: 1.02rem; }
.who span { font-size: 0.85rem; }
.who small { font-size: 0.78rem; color: var(--soft); }
.base .who b, .base .who span { color: var(--base); }
.novel .who b, .novel .who span { color: var(--novel); }
.frame { display: flex; gap: 6px; aspect-ratio: 3 / 2; }
.cell { flex: 1; min-width: 0; display: flex; align-items: center; justify-content: center; }
.shot { position: relative; }
.shot img { width: 100%; height: 100%; display: block; border-radius: 6px; }
.mark { position: absolute; border: 2px solid #4d86ee; outline: 1px solid rgb(0 0 0 / 55%); border-radius: 2px; }
.mark.novel { border-color: rgb(0 0 0 / 55%); outline: 0; }
.mark.novel::after { content: ""; position: absolute; inset: -2px; border: 2px dashed #ffb366; border-radius: 2px; }
.chip { position: absolute; padding: 1px 6px; border-radius: 4px; font-size: 0.78rem; line-height: 1.4;
  font-weight: 600; white-space: nowrap; background: #1f52b3; color: #fff; }
.chip.novel { background: #a34a07; }
.row ol { list-style: none; margin: 4px 0 0; padding: 0; font-size: 0.8rem; line-height: 1.35; }
.row li { display: grid; grid-template-columns: 4.6em 1fr 2.4em; gap: 6px; align-items: center; color: var(--soft); }
.row li span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.row li > i { height: 7px; border-radius: 4px; background: color-mix(in srgb, var(--line) 60%, transparent); }
.row li > i > i { display: block; height: 100%; border-radius: 4px; background: var(--bar); }
.row li.right { color: var(--ink); font-weight: 600; }
.lesson figcaption { margin-top: 10px; border-top: 1px solid var(--line); padding-top: 8px; line-height: 1.45; }
.lesson figcaption p { max-width: none; margin: 0 0 4px; }
.classes { margin-top: 16px; }
.classes summary { font-weight: 600; cursor: pointer; }
.classes h3 { margin: 12px 0 6px; }
.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: 6px 10px;
  grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); }
.cards li { display: flex; align-items: center; gap: 8px; font-size: 0.85rem; }
.cards img { width: 40px; height: 40px; border-radius: 6px; flex: none; }
b.novel { color: var(--novel); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-top: 32px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; display: flex;
  flex-direction: column; }
.tile span { font-size: 0.82rem; color: var(--soft); }
.tile strong { font-size: 1.9rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.3; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile small { font-size: 0.78rem; color: var(--soft); margin-top: auto; }
.tile.base strong { color: var(--base); }
.tile.novel strong { color: var(--novel); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px; text-align: right; white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); font-size: 0.8rem; padding-top: 8px; padding-bottom: 4px; }
thead tr:first-child th { text-align: center; font-weight: 600; }
thead tr:last-child > * { padding-bottom: 8px; }
thead th.novel { color: var(--novel); }
thead th.base { color: var(--base); }
tbody tr > * { border-top: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 600; }
.first { border-left: 1px solid var(--line); }
td.novel { background: var(--novel-wash); }
td.best { font-weight: 700; }
table.plain th, table.stages th { font-weight: 400; }
table.plain tbody tr:first-child > *, table.plain thead th { border-top: 0; }
table.plain thead tr:first-child th { text-align: right; font-weight: 600; }
table.stages tbody tr:first-child > * { border-top: 0; }
table.stages th { font-weight: 600; }
td.text { text-align: left; color: var(--soft); white-space: normal; min-width: 220px; width: 50%; }
td.bar { width: 25%; min-width: 90px; }
td.bar i { display: block; height: 8px; min-width: 2px; border-radius: 4px; background: var(--bar); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 20px;
  margin-top: 16px; }
figure { margin: 0; }
.gallery figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
.pair img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; border-radius: 6px;
  background: color-mix(in srgb, var(--line) 45%, transparent); }
.pair span { display: block; padding: 4px 2px 0; }
.pair span, figcaption { font-size: 0.8rem; color: var(--soft); }
.gallery figcaption { margin: 0 2px 6px; }
.views { display: flex; flex-direction: column; gap: 20px; margin-top: 16px; }
.views figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px; }
.view { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); }
.view div { max-width: 580px; }
.view img { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; border-radius: 6px;
  background: color-mix(in srgb, var(--line) 45%, transparent); }
.view span { display: block; padding: 4px 2px 0; font-size: 0.8rem; color: var(--soft); }
.views figcaption { margin: 0 2px 6px; color: var(--ink); font-weight: 600; }
.smells { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px; }
.smells li { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--bar);
  border-radius: 6px; padding: 9px 14px; font-size: 0.9rem; overflow-wrap: anywhere; }
.smells li.grave { border-left-color: var(--novel); background: var(--novel-wash); }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); gap: 14px; }
.crops { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; }
.shots img, .crops img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; display: block; border-radius: 6px;
  background: color-mix(in srgb, var(--line) 45%, transparent); }
.shots figcaption { padding: 4px 2px 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px 8px; }
.chart figcaption { display: flex; justify-content: space-between; gap: 12px; margin-bottom: 6px; }
.chart b { color: var(--ink); font-weight: 600; }
.chart span { font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 10px; fill: var(--soft); }
svg line { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke: var(--base); stroke-width: 1.6; stroke-linejoin: round; }
svg polygon { fill: var(--base); opacity: 0.08; }
svg circle { fill: var(--base); }
figure.bars { margin: 0 0 12px; max-width: 100%; }
.legend span { margin-left: 14px; white-space: nowrap; }
.legend span:first-child { margin-left: 0; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.bar0 { fill: var(--novel); background: var(--novel); }
.bar1 { fill: var(--bar); background: var(--bar); }
.bar2 { fill: var(--base); background: var(--base); }
.bar3 { fill: var(--soft); background: var(--soft); }
dl { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
dl div { display: flex; gap: 16px; padding: 9px 14px; }
dl div + div { border-top: 1px solid var(--line); }
dt { flex: 0 0 11em; color: var(--soft); font-size: 0.9rem; }
dd { margin: 0; overflow-wrap: anywhere; font-size: 0.9rem; }
@media (max-width: 600px) { main { padding: 32px 16px 64px; } h1 { font-size: 1.6rem; } section { margin-top: 44px; }
  dl div { flex-direction: column; gap: 0; } }
@media (max-width: 820px) { .row { grid-template-columns: 1fr 1fr; gap: 12px; } .who { grid-column: 1 / -1;
  flex-direction: row; flex-wrap: wrap; justify-content: flex-start; align-items: baseline; gap: 8px; }
  .row h3, .row + .row h3 { position: static; width: auto; height: auto; overflow: visible; clip-path: none; }
  .chip { font-size: 0.7rem; padding: 0 4px; } }
@media (max-width: 470px) { .row h3, .row + .row h3 { display: flex; align-items: end; min-height: 2.6em; } }
@media print { body { background: #fff; } figure, tr { break-inside: avoid; } }
"""
