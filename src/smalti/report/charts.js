"use strict";
// Charts that answer: values under the pointer, zoom by dragging. Without this script the SVG beneath stays as it is.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const short = (value) => value === null || value === undefined ? "–"
  : Number.isInteger(value) && Math.abs(value) < 1e7 ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
const steps = (value) => Math.abs(value) >= 10000 ? `${value / 1000}k` : String(value);

function made(figure) {
  const { xlabel, ylabel, lines, labels, height, percent } = JSON.parse(figure.dataset.chart);
  const data = uPlot.join(lines.map((line) => [line.x, line.y])), x = data[0];
  const svg = figure.querySelector("svg");
  const keys = [...figure.querySelectorAll(".key b")];
  const last = keys.map((key) => key.textContent);
  const place = figure.querySelector(".place");
  const back = figure.querySelector("button");
  const asked = (value) => value === null || value === undefined ? "–" : percent ? `${(100 * value).toFixed(1)} %` : short(value);
  const at = (index) => labels ? `${xlabel} ${labels[index]}` : `${xlabel} ${short(x[index])}`;
  const whole = () => plot.setScale("x", { min: x[0], max: x[x.length - 1] });

  // Lines need not have a point at every x: the nearest one is read.
  function nearest(values, index) {
    for (let far = 0; far < x.length; far++)
      for (const near of [index - far, index + far]) if (values[near] !== undefined) return near;
    return index;
  }

  function show() {
    const index = plot.cursor.idx;
    const found = index !== null && index !== undefined && plot.cursor.left >= 0;
    place.textContent = found ? at(index) : "";
    let key = 0;
    for (const [n, line] of lines.entries()) {
      if (!line.key) continue;
      keys[key].textContent = found ? asked(data[n + 1][plot.cursor.idxs[n + 1] ?? index]) : last[key];
      key += 1;
    }
  }

  const axis = {
    stroke: () => colour("--soft"), font: "11px system-ui, sans-serif", ticks: { show: false },
    grid: { stroke: () => colour("--rule"), width: 1 },
  };
  const plot = new uPlot({
    width: svg.getBoundingClientRect().width, height: height - 28,
    padding: [8, 12, 0, 0],
    legend: { show: false },
    cursor: {
      drag: { x: true, y: false, dist: 4 }, y: false,
      points: { size: (_, series) => lines[series - 1]?.key ? 7 : 0 },
      dataIdx: (self, series, index) => series === 0 ? index : nearest(self.data[series], index),
      sync: xlabel === "step" ? { key: "step", setSeries: false } : undefined,
    },
    scales: { x: { time: false, range: (_, min, max) => min === max ? [min - 1, max + 1] : [min, max] } },
    axes: [
      { ...axis, grid: { show: false }, size: 28, label: xlabel, labelSize: 18, labelFont: axis.font, labelGap: -2,
        values: (_, ticks) => ticks.map((tick) => labels ? labels[tick] ?? "" : steps(tick)),
        incrs: labels ? [1, 2, 5, 10, 20] : undefined },
      { ...axis, size: 46, values: (_, ticks) => ticks.map((tick) => tick === null ? "" : percent ? `${short(100 * tick)} %` : short(tick)) },
    ],
    series: [{}, ...lines.map((line) => ({
      label: line.name, stroke: () => line.colour ? colour(line.colour) : colour("--soft"),
      width: line.faint ? 1 : 1.8, alpha: line.faint ? 0.3 : 1, dash: line.dashed ? [5, 4] : undefined,
      points: { show: Boolean(labels) || line.y.length === 1, size: 6 },
      spanGaps: false,
    }))],
    hooks: {
      draw: [({ ctx, bbox, valToPos }) => {  // the name of a reference line, at its right end
        for (const line of lines.filter((line) => line.dashed)) {
          ctx.save();
          ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
          ctx.fillStyle = colour("--soft");
          ctx.textAlign = "right";
          const y = valToPos(line.y[0], "y", true), above = y - bbox.top > 24 * devicePixelRatio;
          ctx.textBaseline = above ? "bottom" : "top";
          if (y >= bbox.top && y <= bbox.top + bbox.height)
            ctx.fillText(`${line.name} ${short(line.y[0])}`, bbox.left + bbox.width, y + (above ? -4 : 4) * devicePixelRatio);
          ctx.restore();
        }
      }],
      setCursor: [() => show()],
      setScale: [(self, key) => { if (key === "x" && back) back.hidden = self.scales.x.min <= x[0] && self.scales.x.max >= x[x.length - 1]; }],
    },
  }, data, (self, start) => {
    const title = document.createElement("p");
    title.className = "ylabel";
    title.textContent = ylabel;
    svg.insertAdjacentElement("afterend", self.root);
    svg.insertAdjacentElement("afterend", title);
    svg.setAttribute("hidden", "");
    start();
  });

  // By keyboard: arrows move, + and - zoom, 0 shows everything again.
  const over = plot.over;
  over.tabIndex = 0;
  over.setAttribute("role", "img");
  over.setAttribute("aria-label", `${svg.getAttribute("aria-label")}: arrow keys read values, plus and minus zoom, 0 shows all`);
  place.setAttribute("aria-live", "polite");
  over.addEventListener("keydown", (event) => {
    const { min, max } = plot.scales.x;
    const index = plot.cursor.idx ?? x.findIndex((value) => value >= min);
    const go = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    const zoom = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (go) {
      const next = Math.max(0, Math.min(x.length - 1, index + go));
      plot.setCursor({ left: plot.valToPos(x[next], "x"), top: 20 });
    } else if (zoom) {
      const centre = x[index], half = zoom * (max - min) / 2;
      plot.setScale("x", { min: Math.max(x[0], centre - half), max: Math.min(x[x.length - 1], centre + half) });
    } else if (event.key === "0" || event.key === "Escape") whole();
    else return;
    event.preventDefault();
  });

  // By two fingers: the places under them stay under them. One finger scrolls the page, a tap reads values.
  const fingers = new Map();
  let held = null;
  const across = (event) => event.clientX - over.getBoundingClientRect().left;
  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    fingers.set(event.pointerId, across(event));
    held = fingers.size === 2 ? [...fingers.values()].map((left) => plot.posToVal(left, "x")) : null;
  });
  over.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, across(event));
    if (held === null) return;
    const [one, other] = fingers.values();
    const pixel = (held[1] - held[0]) / (other - one);
    if (!(pixel > 0) || !Number.isFinite(pixel)) return;
    const start = held[0] - one * pixel;
    plot.setScale("x", { min: Math.max(x[0], start), max: Math.min(x[x.length - 1], start + over.clientWidth * pixel) });
  });
  for (const end of ["pointerup", "pointercancel"])
    over.addEventListener(end, (event) => { if (fingers.delete(event.pointerId)) held = null; });
  over.addEventListener("blur", () => plot.setCursor({ left: -10, top: -10 }));
  back.addEventListener("click", whole);
  return plot;
}

const plots = [...document.querySelectorAll("figure[data-chart]")].map((figure) => [figure, made(figure)]);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(([, plot]) => plot.redraw()));
addEventListener("resize", () => {
  for (const [figure, plot] of plots) plot.setSize({ width: figure.clientWidth, height: plot.height });
});
addEventListener("beforeprint", () => plots.forEach(([figure]) => figure.querySelector("svg").removeAttribute("hidden")));
addEventListener("afterprint", () => plots.forEach(([figure]) => figure.querySelector("svg").setAttribute("hidden", "")));
document.documentElement.dataset.charts = String(plots.length);
