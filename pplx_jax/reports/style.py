"""The page's style sheet. Colours are roles, given once for light and once for dark."""

# A stage keeps its hue in every chart; precisions are ordered, hence one hue from dark to light.
_LIGHT = """
--page:#f6f6f4; --card:#ffffff; --ink:#16181d; --soft:#5b616b; --faint:#8b919b; --line:#e4e4e0;
--track:#f0f0ed; --diffusion:#2a78d6; --pair:#e2632f; --contextual:#1a9f70; --triplet:#d99400;
--merged:#c94f86; --other:#8f959e; --float:#3d3192; --int8:#7466cf; --binary:#b6aeea;
--good:#177a4d; --bad:#b3362b;
"""
_DARK = """
--page:#121316; --card:#1b1d21; --ink:#eceef1; --soft:#a9afb9; --faint:#7b818b; --line:#2e3137;
--track:#24272c; --diffusion:#4a90e6; --pair:#e0744a; --contextual:#2bab80; --triplet:#cf9420;
--merged:#d66a9a; --other:#737983; --float:#c4bdf3; --int8:#8d80de; --binary:#5a4fae;
--good:#4fbf8b; --bad:#ef7d73;
"""
_COLORS = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
"""
_RULES = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",sans-serif;-webkit-font-smoothing:antialiased}
main{max-width:1080px;margin:0 auto;padding:40px 24px 64px}
header h1{font-size:28px;line-height:1.2;letter-spacing:-.015em;margin:0 0 6px}
header p{margin:0;color:var(--soft)}
h2{font-size:19px;letter-spacing:-.01em;margin:44px 0 2px}
h2+p{margin:0 0 14px;color:var(--soft);text-wrap:pretty}
h3{font-size:14px;font-weight:600;margin:0 0 10px}
h3 small{font-weight:400;font-size:13px;color:var(--soft);margin-left:8px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:14px;margin-top:26px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:14px}
.card,.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
  min-width:0}
.tile .name{color:var(--soft);font-size:13px}
.tile .value{font-size:30px;line-height:1.25;font-weight:600;letter-spacing:-.02em;
  font-variant-numeric:tabular-nums}
.tile .note{color:var(--soft);font-size:13px}
.up{color:var(--good)}.down{color:var(--bad)}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--soft);font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
  font-variant-numeric:tabular-nums}
svg .strong{fill:var(--ink);font-weight:600}
svg .grid-line{stroke:var(--line);stroke-width:1}
svg .axis-line{stroke:var(--faint);stroke-width:1}
svg .track{fill:var(--track)}
svg .reference{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}
svg .raw{fill:none;stroke-width:1;opacity:.3}
svg .smooth{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .hit{fill:transparent}
svg .hit:hover{fill:var(--ink);fill-opacity:.05}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 10px;color:var(--soft);font-size:13px}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px;vertical-align:-1px}
.swatch.compile{background-image:repeating-linear-gradient(45deg,var(--card) 0 1.5px,transparent 1.5px 4px)}
.scroll{overflow-x:auto}
.scroll svg{min-width:640px}
.spaced{margin-top:14px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--soft);text-align:right;padding:5px 10px;font-size:13px;white-space:nowrap}
td{padding:6px 10px;border-top:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
th:last-child,td:last-child{padding-right:0}
th.group{text-align:center;border-bottom:1px solid var(--line)}
td.best{font-weight:600}
tr.baseline td{color:var(--soft)}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:0 40px;margin:0;
  font-size:14px}
.pairs div{display:flex;justify-content:space-between;gap:20px;padding:5px 0;
  border-bottom:1px solid var(--line)}
.pairs dt{color:var(--soft)}
.pairs dd{margin:0;text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
details{border-top:1px solid var(--line)}
details:first-child{border-top:0}
summary{cursor:pointer;padding:10px 0;font-weight:500}
summary span{color:var(--soft);font-weight:400;margin-left:8px;font-size:13px}
pre{margin:0 0 14px;padding:14px 16px;background:var(--track);border-radius:8px;overflow-x:auto;
  font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.config{padding:6px 20px}
.missing{color:var(--soft);font-style:italic;margin:0}
@media print{main{padding:0}.card,.tile{break-inside:avoid}}
"""

STYLE = _COLORS + _RULES
