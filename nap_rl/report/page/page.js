"use strict";
const MOST_SWITCHES = 60; // drawn at once

// 0.00125, 12.5, 12.5K: three digits.
window.short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
  return Number(value.toPrecision(3)).toString();
};

// The text of the box at x: each shown arm's value at its nearest point, the largest first.
window.tip = (x, lines, what, begins, names) => {
  let task = 0;
  while (task + 1 < begins.length && begins[task + 1] < x) task++;
  const number = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const rows = [];
  for (const line of lines) {
    if (!line.visible) continue;
    const data = line.data_source.data;
    let at = -1;
    for (let i = 0; i < data.x.length; i++) {
      if (Number.isFinite(data.y[i]) && (at < 0 || Math.abs(data.x[i] - x) < Math.abs(data.x[at] - x))) at = i;
    }
    if (at < 0) continue;
    const interval = data.low === undefined ? "" : ` [${number(data.low[at])}, ${number(data.high[at])}]`;
    rows.push([data.y[at], `${line.name}: ${number(data.y[at])}${interval}`]);
  }
  rows.sort((a, b) => b[0] - a[0]);
  const place = [`${what} ${x.toLocaleString("en")}`, names[task]].filter(Boolean).join(", ");
  return [place, ...rows.map(([, text]) => text)].join("\n");
};

const models = () => Bokeh.documents.flatMap((doc) => [...doc.all_models]);
const tagged = (tag) => models().filter((model) => model.tags.includes(tag));

function showArm(button, on) {
  button.setAttribute("aria-pressed", String(on));
  const arm = Number(button.dataset.arm);
  for (const model of tagged("arm")) if (model.tags[1] === arm) model.visible = on;
}

function showLayer(layer) {
  for (const renderer of tagged("layer")) {
    const data = renderer.data_source.data;
    const y = data[layer] ?? new Float32Array(data.x.length).fill(NaN);
    renderer.data_source.data = { ...data, y };
  }
}

function showSwitches(chart) {
  const { start, end } = chart.x_range;
  for (const renderer of chart.renderers.filter((each) => each.tags.includes("switches"))) {
    const inView = renderer.data_source.data.x.filter((x) => x >= start && x <= end).length;
    renderer.visible = inView <= MOST_SWITCHES;
  }
}

function colour() {
  const style = getComputedStyle(document.documentElement);
  const [ink, faint, rule] = ["--ink", "--faint", "--rule"].map((name) => style.getPropertyValue(name).trim());
  for (const model of models()) {
    if (model.type.endsWith("Axis")) {
      model.setv({ axis_label_text_color: ink, major_label_text_color: faint });
      if (model.axis_line_color !== null) {
        model.setv({ axis_line_color: rule, major_tick_line_color: rule, minor_tick_line_color: null });
      }
    } else if (model.type === "Grid") {
      model.grid_line_color = rule;
    } else if (model.tags.includes("ink") || model.tags.includes("cursor")) {
      model.line_color = ink;
    }
  }
}

function begin() {
  const buttons = [...document.querySelectorAll("#legend button[data-arm]")];
  for (const button of buttons) {
    button.addEventListener("click", () => showArm(button, button.getAttribute("aria-pressed") !== "true"));
  }
  document.querySelector("#all")?.addEventListener("click", () => {
    const on = buttons.some((button) => button.getAttribute("aria-pressed") !== "true");
    for (const button of buttons) showArm(button, on);
  });
  for (const select of document.querySelectorAll("select.layer")) {
    select.addEventListener("change", () => showLayer(select.value));
  }
  for (const chart of tagged("chart")) {
    showSwitches(chart);
    chart.x_range.change.connect(() => showSwitches(chart));
  }
  colour();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colour);
  document.documentElement.dataset.ready = "true";
}

function whenDrawn() {
  const wanted = document.querySelectorAll(".chart").length;
  const drawn = window.Bokeh === undefined ? 0 : tagged("chart").length;
  if (wanted === drawn) begin();
  else setTimeout(whenDrawn, 50);
}
document.addEventListener("DOMContentLoaded", whenDrawn);
