"""The style sheet of the passport's page."""

STYLE = """
:root { --ink: #1b1f24; --dim: #57606a; --paper: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --reference: #8b949e; --quantized: #0b62c4; --weight: #0b7a6e; --output: #b4510b; --good: #116329; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9198a1; --paper: #0d1117; --card: #161b22; --line: #30363d;
    --reference: #7d8590; --quantized: #58a6ff; --weight: #3fb8a8; --output: #f0883e; --good: #56d364; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 760px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
small, .legend, summary, dt { color: var(--dim); }
.verdict { font-size: 1.2rem; font-weight: 600; padding: .6rem .8rem; background: var(--card);
  border-left: 5px solid var(--reference); }
.verdict.good { border-color: var(--good); color: var(--good); }
.verdict.bad { border-color: var(--bad); color: var(--bad); }
.cards { display: flex; flex-wrap: wrap; gap: 8px; padding: 0; list-style: none; }
.cards li { flex: 1 1 120px; padding: .6rem .7rem;
  background: var(--card); border-radius: 6px; font-size: .8rem; color: var(--dim); }
.cards b { display: block; font-size: 1.2rem; color: var(--ink); }
.pair { margin: .8rem 0; } .pair p { margin: 0; }
.line { display: flex; align-items: center; gap: 10px; }
.line span { width: 6em; text-align: right; font-variant-numeric: tabular-nums; font-size: .9rem; }
.bar { flex: 1; background: var(--card); height: 12px; border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; }
i.reference { background: var(--reference); } i.quantized { background: var(--quantized); }
i.weight { background: var(--weight); } i.output { background: var(--output); }
.legend span { margin-right: 1rem; }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 5px; border-radius: 2px; }
.chart, .scroll { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 560px; height: auto; }
svg text { fill: var(--dim); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .quantized { fill: var(--quantized); } svg .weight { fill: var(--weight); } svg .output { fill: var(--output); }
table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
details { margin: .6rem 0; } summary { cursor: pointer; }
dl { margin: .3rem 0 .3rem 1rem; } dd { margin: 0 0 .3rem 1rem; overflow-wrap: anywhere; }
"""
