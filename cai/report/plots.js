// Plots, drawn when they scroll into view, and the light and dark themes.
"use strict";

let plotly = null;

/** Load Plotly on first use: parsing it takes longer than everything else on the page. */
function loadPlotly() {
  plotly ??= new Promise((resolve, reject) => {
    const inside = byId("plotly");
    const script = document.createElement("script");
    if (inside) script.textContent = inside.textContent;
    else {
      script.src = "/assets/plotly.js";
      script.addEventListener("load", resolve);
      script.addEventListener("error", reject);
    }
    document.head.append(script);
    if (inside) resolve();
  });
  return plotly;
}

function merged(base, over) {
  const result = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const both = value && base[key] && typeof value === "object" && !Array.isArray(value);
    result[key] = both ? merged(base[key], value) : value;
  }
  return result;
}

async function draw(place, plot) {
  await loadPlotly();
  const ink = getComputedStyle(document.body).color;
  const line = getComputedStyle(document.querySelector(".plot-line")).color;
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, title: { font: { size: 13 } } };
  const base = {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", height: 260, margin: { l: 50, r: 10, t: 10, b: 40 },
    font: { color: ink, family: "system-ui, sans-serif", size: 13 }, xaxis: axis, yaxis: axis, barmode: "group",
    showlegend: plot.data.length > 1, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
  };
  const settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  await window.Plotly.react(place, structuredClone(plot.data), merged(base, plot.layout), settings);
  // what the label of the place says in words; its buttons, such as to download it, stay reachable
  for (const drawing of place.querySelectorAll(".main-svg")) drawing.setAttribute("aria-hidden", "true");
  place.dataset.drawn = "yes";
}

function setUpPlots() {
  const plots = data("plots");
  const places = document.querySelectorAll("[data-plot]");
  if (!plots || !places.length) return;
  document.body.append(make("span", { class: "plot-line", hidden: "" }));
  const drawAt = (place) => draw(place, plots[Number(place.dataset.plot)]);
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((e) => e.isIntersecting)) {
      watcher.unobserve(entry.target);
      drawAt(entry.target);
    }
  }, { rootMargin: "300px" });
  places.forEach((place) => watcher.observe(place));
  window.addEventListener("beforeprint", () => places.forEach(drawAt)); // those that were never scrolled to
  const redraw = () => document.querySelectorAll("[data-drawn]").forEach(drawAt);
  document.addEventListener("themechange", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function setUpTheme() {
  const button = byId("theme"), kinds = ["", "light", "dark"];
  const save = (theme) => { try { localStorage.setItem("cai-theme", theme); } catch { /* no storage: lasts for this page */ } };
  const saved = () => { try { return localStorage.getItem("cai-theme"); } catch { return ""; } };
  const set = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    button.textContent = `Theme: ${theme || "system"}`;
  };
  let theme = kinds.includes(saved()) ? saved() : "";
  set(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = kinds[(kinds.indexOf(theme) + 1) % kinds.length];
    set(theme);
    save(theme);
    document.dispatchEvent(new Event("themechange"));
  });
}

setUpTheme();
