"use strict";

const root = document.documentElement;

// ---- light and dark: as the system says, until the reader says otherwise
const theme = document.getElementById("theme");
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
systemIsDark.addEventListener("change", nameTheme);
nameTheme();
theme.hidden = false;

// ---- pointing at one chart reads all of them at that step
const points = JSON.parse(document.getElementById("points").textContent);
const charts = [...document.querySelectorAll("[data-curve]")].map((figure) => ({
  key: figure.dataset.curve,
  plot: figure.querySelector(".plot"),
  output: figure.querySelector("output"),
  resting: figure.querySelector("output").textContent,
  cursor: figure.querySelector(".cursor"),
}));
let pointed = null;

function show(index) {
  pointed = index;
  for (const chart of charts) {
    const x = points.x[index];
    chart.cursor.setAttribute("d", `M${x} 0V400`);
    chart.output.textContent = `${steps(points.spans[index])}: ${values(chart.key, index)}`;
  }
}

function rest() {
  pointed = null;
  for (const chart of charts) {
    chart.cursor.removeAttribute("d");
    chart.output.textContent = chart.resting;
  }
}

function steps([first, last]) {
  const text = (step) => step.toLocaleString("en");
  return first === last ? `step ${text(first)}` : `steps ${text(first)}\u2013${text(last)}`;
}

function values(key, index) {
  const { mean, low, high, smooth } = points.curves[key];
  if (mean[index] === null) return "no finite value";
  const words = [number(mean[index])];
  if (low) words[0] += ` (${number(low[index])} to ${number(high[index])})`;
  if (key === "loss") {
    if (smooth && smooth[index] !== null) words.push(`smoothed ${number(smooth[index])}`);
    const evaluation = points.evaluations.filter(([step]) => step <= points.spans[index][1]).pop();
    if (evaluation) words.push(`held-out ${number(evaluation[1])} at step ${evaluation[0].toLocaleString("en")}`);
  }
  return words.join(" \u00b7 ");
}

function number(value) {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e9)) return String(Number(value.toPrecision(4)).toExponential()).replace("e+", "e");
  return value.toLocaleString("en", size >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 });
}

function nearest(plot, clientX) {
  const box = plot.getBoundingClientRect();
  const x = (1000 * (clientX - box.left)) / box.width;
  let best = 0;
  points.x.forEach((at, index) => { if (Math.abs(at - x) < Math.abs(points.x[best] - x)) best = index; });
  return best;
}

function move(event) {
  const jumps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
  if (event.key === "Escape") rest();
  if (!(event.key in jumps)) return;
  event.preventDefault();
  const last = points.x.length - 1;
  show(Math.min(last, Math.max(0, (pointed ?? last) + jumps[event.key])));
}

for (const { plot } of charts) {
  plot.addEventListener("pointermove", (event) => show(nearest(plot, event.clientX)));
  plot.addEventListener("pointerdown", (event) => show(nearest(plot, event.clientX)));
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("keydown", move);
  plot.addEventListener("blur", rest);
}

root.dataset.ready = "yes";  // everything above ran
