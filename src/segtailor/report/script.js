"use strict";
// Readout under the pointer, or moved with the arrow keys.
for (const plot of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(plot.dataset.chart);
  const cursor = plot.querySelector(".cursor"), readout = plot.querySelector(".readout");
  const steps = [...new Set(chart.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const nearest = (points, step) => points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
  // A point is a place and a value, or a place, a mean, and the lowest and the highest of several seeds.
  const figure = ([, value, low, high]) => low === undefined || low === high ? value : `${value} (${low} to ${high})`;
  const show = () => {
    const share = (steps[at] - chart.x[0]) / (chart.x[1] - chart.x[0] || 1);
    const front = plot.dataset.front ? JSON.parse(plot.dataset.front) : [];
    const shown = chart.lines.filter((line) => !front.length || front.includes(line.label));
    const lines = shown.map((line) => `${line.label}: ${figure(nearest(line.points, steps[at]))}`);
    const where = chart.names ? chart.names[steps[at]] : `step ${steps[at].toLocaleString("en")}`;
    readout.textContent = [where, ...lines].join("\n");
    cursor.style.left = `${100 * share}%`;
    readout.style.left = share < 0.5 ? `calc(${100 * share}% + 10px)` : "auto";
    readout.style.right = share < 0.5 ? "auto" : `calc(${100 - 100 * share}% + 10px)`;
    cursor.hidden = readout.hidden = false;
  };
  const hide = () => { cursor.hidden = readout.hidden = true; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const step = chart.x[0] + (event.clientX - box.left) / box.width * (chart.x[1] - chart.x[0]);
    at = steps.reduce((best, value, index) => Math.abs(value - step) < Math.abs(steps[best] - step) ? index : best, 0);
    show();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (move === undefined) return;
    at = Math.min(steps.length - 1, Math.max(0, at + move));
    show();
    event.preventDefault();
  });
}

// Tables that sort by a click on a column's head; the first click puts the largest first, names in order, and what
// data-first says where it is given. Cells without a figure stay last.
for (const table of document.querySelectorAll("[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first ?? (column === 0 ? "ascending" : "descending");
      const order = head.getAttribute("aria-sort") === first ? (first === "ascending" ? "descending" : "ascending") : first;
      const value = (row) => column === 0 ? row.cells[0].textContent.trim() : Number(row.cells[column].dataset.sort);
      const known = (row) => column === 0 || row.cells[column].dataset.sort !== "";
      const rows = [...body.rows].filter(known).sort((a, b) => column === 0 ? value(a).localeCompare(value(b)) : value(a) - value(b));
      const others = [...body.rows].filter((row) => !known(row));
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...(order === "ascending" ? rows : rows.reverse()), ...others);
    });
  });
}

// Pictures open large; left and right go through the pictures of the page.
const viewer = document.getElementById("viewer");
const zooms = [...document.querySelectorAll(".zoom")];
let shown = 0;
const open = (index) => {
  shown = (index + zooms.length) % zooms.length;
  const small = zooms[shown].querySelector("img"), large = viewer.querySelector("img");
  large.src = small.src;
  large.alt = small.alt;
  large.className = small.className;
  viewer.querySelector("p").textContent = small.alt;
  if (!viewer.open) viewer.showModal();
};
zooms.forEach((zoom, index) => zoom.addEventListener("click", () => open(index)));
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") open(shown - 1);
  if (event.key === "ArrowRight") open(shown + 1);
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
