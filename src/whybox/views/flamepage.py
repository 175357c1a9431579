"""What a flame graph is dressed in: its style, its script and its page. Nothing is loaded."""

STYLE = """
.flame { font-family: ui-sans-serif, system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.flame .back { fill: #fbfaf8; }
.flame .title { font-size: 19px; font-weight: 600; fill: #22262b; }
.flame .sub { font-size: 12px; fill: #5d6670; white-space: pre; }
.flame .f text { font: 11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  fill: #1d2126; pointer-events: none; }
.flame .f rect { cursor: pointer; }
.flame .f:hover rect { stroke: #22262b; stroke-width: 1; }
.flame .f.parent rect { opacity: 0.55; }
.flame .f.match rect { fill: #c65bcf; }
.flame .f.match text { fill: #ffffff; }
.flame input { box-sizing: border-box; width: 240px; height: 28px; padding: 3px 9px; font: inherit;
  font-size: 13px; color: #22262b; background: #ffffff; border: 1px solid #c9ced6;
  border-radius: 6px; }
"""

SEARCH = (
    '<foreignObject x="{x}" y="14" width="240" height="30">'
    '<input xmlns="http://www.w3.org/1999/xhtml" class="search" type="search"'
    ' placeholder="search functions" aria-label="search functions"/></foreignObject>'
)

#: No ``<``, ``&`` or ``]]>`` in it, so that it reads the same in SVG and in HTML.
SCRIPT = """
(function () {
  "use strict";
  var svg = document.querySelector("svg.flame");
  var inner = Number(svg.dataset.inner), margin = Number(svg.dataset.margin);
  var frames = Array.from(svg.querySelectorAll(".f")).map(function (g) {
    return { g: g, x: Number(g.dataset.x), w: Number(g.dataset.w), d: Number(g.dataset.d),
             n: g.dataset.n, rect: g.querySelector("rect"), text: g.querySelector("text") };
  });
  var detail = svg.querySelector(".detail"), matched = svg.querySelector(".matched");
  var field = document.querySelector("input.search");
  var tiny = 1e-6, zoomed = null;

  function fitting(name, width) {
    var room = Math.floor((width - 8) / 6.7);
    if (3 > room) { return ""; }
    return room >= name.length ? name : name.slice(0, room - 1) + "\\u2026";
  }
  function place(f, x, w) {
    f.g.style.display = "";
    f.rect.setAttribute("x", margin + x * inner);
    f.rect.setAttribute("width", Math.max(w * inner - 0.6, 0.3));
    f.text.setAttribute("x", margin + x * inner + 4);
    f.text.textContent = fitting(f.n, w * inner);
  }
  function zoom(to) {
    zoomed = to;
    frames.forEach(function (f) {
      var around = to.d > f.d ? to.x + tiny >= f.x : false;
      around = around ? f.x + f.w + tiny >= to.x + to.w : false;
      var inside = f.d >= to.d ? f.x + tiny >= to.x : false;
      inside = inside ? to.x + to.w + tiny >= f.x + f.w : false;
      f.g.classList.toggle("parent", around);
      if (around) { place(f, 0, 1); }
      else if (inside) { place(f, (f.x - to.x) / to.w, f.w / to.w); }
      else { f.g.style.display = "none"; }
    });
  }
  function search() {
    var word = field.value.trim().toLowerCase(), found = [];
    frames.forEach(function (f) {
      var hit = word ? f.n.toLowerCase().includes(word) : false;
      f.g.classList.toggle("match", hit);
      if (hit) { found.push(f); }
    });
    var end = 0, sum = 0;
    found.sort(function (a, b) { return a.x - b.x; }).forEach(function (f) {
      sum += Math.max(0, f.x + f.w - Math.max(f.x, end));
      end = Math.max(end, f.x + f.w);
    });
    matched.textContent = word ? "matched: " + (100 * sum).toFixed(2) + " %" : " ";
  }
  frames.forEach(function (f) {
    f.g.addEventListener("click", function () { zoom(f === zoomed ? frames[0] : f); });
    f.g.addEventListener("mouseover", function () {
      detail.textContent = f.g.querySelector("title").textContent;
    });
    f.g.addEventListener("mouseout", function () { detail.textContent = " "; });
  });
  if (field) { field.addEventListener("input", search); }
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") {
      if (field) { field.value = ""; search(); }
      if (frames.length) { zoom(frames[0]); }
    }
  });
})();
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; background: #fbfaf8; }}
main {{ position: relative; max-width: 1600px; margin: 0 auto; }}
main svg {{ display: block; width: 100%; height: auto; }}
form {{ position: absolute; top: 14px; right: 16px; }}
input.search {{ width: 240px; height: 28px; padding: 3px 9px; font: 13px system-ui, sans-serif;
  color: #22262b; background: #ffffff; border: 1px solid #c9ced6; border-radius: 6px;
  box-sizing: border-box; }}
</style>
</head>
<body>
<main>
<form onsubmit="return false"><input class="search" type="search" placeholder="search functions"
  aria-label="search functions"></form>
{picture}</main>
<script>{script}</script>
</body>
</html>
"""
