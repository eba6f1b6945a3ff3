"use strict";
// Draws the plots of the report from the data in the page. With #check behind the address it says what it has drawn.
(() => {
  const errors = [];
  addEventListener("error", (event) => errors.push(event.message));

  const charts = JSON.parse(document.getElementById("data").textContent);
  const places = [...document.querySelectorAll("[data-chart]")];
  const DASHES = [[], [9, 5], [2, 4], [12, 4, 2, 4], [5, 3], [2, 2], [14, 6], [7, 3, 2, 3, 2, 3]];
  const BORDERS = ["solid", "dashed", "dotted", "dashed", "dashed", "dotted", "dashed", "dashed"];
  const PRINT_WIDTH = 310;
  let plots = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
  const withUnit = (value, unit) => (value == null ? "–" : short.format(value) + (unit === "%" ? " %" : ` ${unit}`));

  function axis(of, side, width) {
    return {
      label: of.label, side, stroke: colour("--soft"), labelSize: 22, labelGap: 2, size: side === 3 ? 52 : 34,
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif", space: side === 3 ? 32 : Math.max(44, width / 10),
      grid: { stroke: colour("--grid"), width: 1 }, ticks: { stroke: colour("--line"), width: 1, size: 5 },
      values: (plot, splits) => splits.map((split) => (split == null ? "" : short.format(split))),
    };
  }

  function scale(of, isX) {
    if (isX) return { time: false, distr: of.log ? 3 : 1, range: (plot, low, high) => [low, high] };
    if (of.log) return { distr: 3 };
    return { range: (plot, low, high) => [0, of.largest ?? Math.max(high * 1.05, 1e-9)] };
  }

  // Each line on top of those before it; what the reader sees of a value is the value itself.
  function piled(lines) {
    const sums = [];
    for (const { values } of lines) {
      const below = sums.at(-1);
      sums.push(values.map((value, i) => (value == null ? null : value + (below ? below[i] : 0))));
    }
    return sums;
  }

  function line(chart, of) {
    const stroke = colour(`--${chart.stacked ? "g" : "s"}${of.style}`);
    return {
      label: of.name, stroke, width: chart.stacked ? 1 : 2, fill: chart.stacked ? stroke : undefined,
      dash: chart.stacked ? [] : DASHES[of.style], points: { show: false },
      value: (plot, value, series, at) => withUnit(at == null ? null : of.values[at], chart.y.unit),
    };
  }

  function marked(chart) {
    return (plot) => {
      if (chart.mark == null) return;
      const { ctx, bbox } = plot, x = plot.valToPos(chart.mark, "x", true), pixels = devicePixelRatio;
      if (x < bbox.left || x > bbox.left + bbox.width) return;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = colour("--ink");
      ctx.lineWidth = pixels;
      ctx.setLineDash([3 * pixels, 3 * pixels]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.font = `${11 * pixels}px system-ui, sans-serif`;
      ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
      ctx.textBaseline = "bottom";
      ctx.fillText("last arrival", x, bbox.top - 2 * pixels);
      ctx.restore();
    };
  }

  function draw(place, width) {
    const chart = charts[place.dataset.chart];
    const values = chart.lines.map((of) => of.values);
    const shown = chart.stacked ? piled(chart.lines) : values;
    // A pile is drawn from its top, so that what is below covers it.
    const lines = chart.stacked ? [...chart.lines].reverse() : chart.lines;
    const options = {
      width, height: 290, padding: [18, 14, 0, 0],
      scales: { x: scale(chart.x, true), y: scale(chart.y, false) },
      axes: [axis(chart.x, 2, width), axis(chart.y, 3, width)],
      series: [
        { label: chart.mark == null ? "at" : "time", value: (plot, value) => withUnit(value, chart.x.unit) },
        ...lines.map((of) => line(chart, of)),
      ],
      legend: { markers: { width: 3, dash: (plot, i) => (chart.stacked || !i ? "solid" : BORDERS[lines[i - 1].style]) } },
      cursor: { drag: { x: true, y: false }, sync: chart.mark == null ? undefined : { key: "time" } },
      // Without a pointer on it the legend has names alone.
      hooks: { draw: [marked(chart)], setCursor: [(plot) => place.classList.toggle("idle", plot.cursor.idx == null)] },
    };
    place.classList.add("idle");
    return new uPlot(options, [chart.at, ...(chart.stacked ? shown.reverse() : shown)], place);
  }

  function drawAll(width) {
    for (const plot of plots) plot.destroy();
    plots = places.map((place) => draw(place, width ?? place.clientWidth));
  }

  // How many pixels of each line's colour are on its canvas.
  function drawnPixels(plot) {
    const { canvas } = plot.ctx, { data } = plot.ctx.getImageData(0, 0, canvas.width, canvas.height);
    return plot.series.slice(1).map((series) => {
      const probe = document.createElement("canvas").getContext("2d");
      probe.fillStyle = series.stroke(plot, 1);
      probe.fillRect(0, 0, 1, 1);
      const [red, green, blue] = probe.getImageData(0, 0, 1, 1).data;
      let count = 0;
      for (let i = 0; i < data.length; i += 4) {
        const away = Math.abs(data[i] - red) + Math.abs(data[i + 1] - green) + Math.abs(data[i + 2] - blue);
        if (data[i + 3] > 200 && away < 24) count += 1;
      }
      return { name: series.label, pixels: count };
    });
  }

  function check() {
    const found = document.createElement("output");
    found.id = "drawn";
    found.textContent = JSON.stringify({ errors, plots: plots.map(drawnPixels) });
    document.body.append(found);
  }

  drawAll();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => drawAll());
  new ResizeObserver(() => {
    for (const plot of plots) {
      const width = plot.root.parentElement.clientWidth;
      if (width !== plot.width && !document.documentElement.classList.contains("print")) plot.setSize({ width, height: plot.height });
    }
  }).observe(document.body);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); drawAll(PRINT_WIDTH); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); drawAll(); });
  if (location.hash === "#check") setTimeout(check, 200);
})();
