// Shows the values of a chart under the pointer, or at a cross line that the arrow keys move.
// It listens on the document, so charts that are exchanged later need no further call.
(() => {
  "use strict";
  const read = new WeakMap();
  let shown = null;

  const chartOf = (plot) => {
    if (!read.has(plot)) {
      const figure = plot.closest("figure");
      const cross = document.createElement("i");
      cross.className = "cross";
      cross.hidden = true;
      plot.append(cross);
      const data = JSON.parse(figure.querySelector("script").textContent);
      read.set(plot, { ...data, cross, reading: figure.querySelector(".reading"), at: -1 });
    }
    return read.get(plot);
  };

  const write = (value) => {
    if (value === null) return "none";
    if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(4)));
  };

  const nearest = (places, place) => {
    let low = 0;
    let high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] < place) low = middle;
      else high = middle;
    }
    return place - places[low] <= places[high] - place ? low : high;
  };

  const hide = () => {
    if (!shown) return;
    const chart = chartOf(shown);
    chart.cross.hidden = true;
    chart.at = -1;
    chart.reading.textContent = "";
    shown = null;
  };

  const show = (plot, at) => {
    const chart = chartOf(plot);
    const places = chart.lines[0].x;
    const to = Math.max(0, Math.min(places.length - 1, at));
    if (shown !== plot) hide();
    shown = plot;
    if (chart.at === to) return;
    chart.at = to;
    const place = places[to];
    chart.cross.style.left = `${(100 * (place - chart.from)) / (chart.to - chart.from)}%`;
    chart.cross.hidden = false;
    const values = chart.lines.map((line) => {
      const here = nearest(line.x, place);
      const far = Math.abs(line.x[here] - place) > (chart.to - chart.from) / 50;
      return far ? "" : `${line.name} ${write(line.y[here])}`;
    });
    const word = chart.words ? chart.words[to] : write(place);
    chart.reading.textContent = [`${chart.x} ${word}`, ...values.filter(Boolean)].join(" \u00b7 ");
  };

  const plotOf = (event) =>
    event.target instanceof Element ? event.target.closest(".plot") : null;

  for (const kind of ["pointermove", "pointerdown"]) {
    document.addEventListener(kind, (event) => {
      const plot = plotOf(event);
      if (!plot) {
        if (document.activeElement !== shown) hide();
        return;
      }
      const chart = chartOf(plot);
      const box = plot.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      show(plot, nearest(chart.lines[0].x, chart.from + share * (chart.to - chart.from)));
    });
  }

  document.addEventListener("keydown", (event) => {
    const plot = plotOf(event);
    if (!plot) return;
    const chart = chartOf(plot);
    const last = chart.lines[0].x.length - 1;
    const wide = Math.max(1, Math.round(last / 10));
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -wide, PageDown: wide };
    if (event.key === "Escape") hide();
    else if (event.key === "Home") show(plot, 0);
    else if (event.key === "End") show(plot, last);
    else if (event.key in moves) show(plot, chart.at < 0 ? 0 : chart.at + moves[event.key]);
    else return;
    event.preventDefault();
  });

  document.addEventListener("focusout", (event) => {
    if (plotOf(event)) hide();
  });

  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
})();
