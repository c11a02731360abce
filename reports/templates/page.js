"use strict";
// Values under the pointer, and by arrow keys. Everything else on the page works without this script.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.querySelector(".tip");
  const parsed = new WeakMap();

  const values = (plot) => {
    if (!parsed.has(plot)) parsed.set(plot, JSON.parse(plot.querySelector("script").textContent));
    return parsed.get(plot);
  };

  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };

  const show = (value) => value === null ? "–" :
    Math.abs(value) >= 1e-4 || value === 0 ? value.toLocaleString("en", { maximumSignificantDigits: 7 })
      : value.toExponential(4);

  const marks = (plot, data) => {
    let group = plot.querySelector(".marks");
    if (!group) {
      group = document.createElementNS(SVG, "g");
      group.setAttribute("class", "marks");
      group.append(document.createElementNS(SVG, "path"));
      for (const series of data.s) {
        const dot = document.createElementNS(SVG, "circle");
        dot.setAttribute("class", "dot " + series.c);
        dot.setAttribute("r", "4");
        group.append(dot);
      }
      plot.querySelector("svg").append(group);
    }
    group.style.display = "";
    return group;
  };

  // Mark the values nearest to x of every curve; returns them as text.
  const read = (plot, x, at) => {
    const data = values(plot), [left, right, top, bottom, width, height] = data.p;
    const [x0, x1, y0, y1, log] = data.d;
    const px = (v) => left + (v - x0) / (x1 - x0) * (right - left);
    const py = (v) => {
      const part = log ? Math.log(v / y0) / Math.log(y1 / y0) : (v - y0) / (y1 - y0);
      return Math.min(Math.max(bottom - part * (bottom - top), top - 4), bottom + 4);
    };
    const first = data.s[0], here = first.x[at ?? nearest(first.x, x)];
    const group = marks(plot, data), rows = [];
    group.firstChild.setAttribute("d", `M${px(here)} ${top}V${bottom}`);
    data.s.forEach((series, position) => {
      const i = nearest(series.x, here), y = series.y[i], dot = group.children[position + 1];
      const visible = y !== null && (!log || y > 0);
      dot.style.display = visible ? "" : "none";
      if (visible) { dot.setAttribute("cx", px(series.x[i])); dot.setAttribute("cy", py(y)); }
      rows.push([series.n, show(y)]);
    });
    const box = plot.getBoundingClientRect();
    tip.replaceChildren();
    const title = document.createElement("b");
    title.textContent = `${data.x} ${show(here)}`;
    tip.append(title);
    for (const [name, value] of rows) {
      const row = document.createElement("span"), number = document.createElement("i");
      row.textContent = name;
      number.textContent = value;
      row.append(number);
      tip.append(row);
    }
    tip.hidden = false;
    const pointer = box.left + px(here) / width * box.width, room = document.documentElement.clientWidth;
    const over = pointer + 14 + tip.offsetWidth > room;
    tip.style.left = `${Math.max(4, over ? pointer - 14 - tip.offsetWidth : pointer + 14) + scrollX}px`;
    tip.style.top = `${box.top + top / height * box.height + scrollY}px`;
    return { here, text: `${title.textContent}: ` + rows.map((row) => row.join(" ")).join("; ") };
  };

  const hide = (plot) => {
    tip.hidden = true;
    const group = plot.querySelector(".marks");
    if (group) group.style.display = "none";
  };

  const speak = (plot, at) => {
    const { here, text } = read(plot, null, at);
    plot.at = at;
    plot.setAttribute("aria-valuenow", here);
    plot.setAttribute("aria-valuetext", text);
  };

  for (const plot of document.querySelectorAll(".plot")) {
    // a slider over the steps: arrow keys move it, a screen reader speaks the values
    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", plot.dataset.label);
    plot.setAttribute("aria-valuenow", 0);
    plot.setAttribute("aria-valuetext", plot.dataset.label);
  }

  const plotOf = (event) => event.target.closest?.(".plot");
  document.addEventListener("pointermove", (event) => {
    const plot = plotOf(event);
    if (!plot) return;
    const data = values(plot), box = plot.getBoundingClientRect(), [left, right, , , width] = data.p;
    const part = ((event.clientX - box.left) / box.width * width - left) / (right - left);
    read(plot, data.d[0] + Math.min(1, Math.max(0, part)) * (data.d[1] - data.d[0]));
  });
  document.addEventListener("pointerout", (event) => {
    const plot = plotOf(event);
    if (plot && !plot.contains(event.relatedTarget)) hide(plot);
  });
  document.addEventListener("focusin", (event) => {
    const plot = plotOf(event);
    if (!plot) return;
    const xs = values(plot).s[0].x;
    plot.setAttribute("aria-valuemin", xs[0]);
    plot.setAttribute("aria-valuemax", xs[xs.length - 1]);
    if (plot.matches(":focus-visible")) speak(plot, plot.at ?? 0);
  });
  document.addEventListener("focusout", (event) => { const plot = plotOf(event); if (plot) hide(plot); });
  document.addEventListener("keydown", (event) => {
    const plot = plotOf(event);
    if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = values(plot).s[0].x.length - 1, at = plot.at ?? 0, page = Math.max(1, Math.round(last / 10));
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: last,
      PageUp: at + page, PageDown: at - page }[event.key];
    if (event.key === "Escape") hide(plot);
    if (to === undefined) return;
    event.preventDefault();
    speak(plot, Math.min(last, Math.max(0, to)));
  });
  // a printed page shows what is folded, except the tests and pages of a tool's own output
  addEventListener("beforeprint", () => document.querySelectorAll("details:not(.tests, .raw)").forEach((d) => {
    if (!d.open) { d.open = true; d.dataset.folded = ""; }
  }));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach((d) => {
    d.open = false; delete d.dataset.folded;
  }));
})();
