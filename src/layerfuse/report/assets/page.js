
// Draws the figures, and again when the theme changes; nothing on the page is fetched.
const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
const drawn = new Map();
let printing = false;

const theme = () => printing ? "light" : root.dataset.theme || (system.matches ? "dark" : "light");

async function draw(place) {
  const id = place.dataset.chart;
  const wanted = theme();
  if (place.clientWidth === 0 || drawn.get(id)?.theme === wanted) return;
  const before = drawn.get(id);
  drawn.set(id, { theme: wanted });
  before?.result?.finalize();
  const result = await window.vegaEmbed(place, figures.charts[id], {
    mode: "vega-lite",
    renderer: "svg",
    ast: true,
    actions: false,
    defaultStyle: false,
    config: figures.themes[wanted],
    tooltip: { disableDefaultStyle: true },
  });
  if (drawn.get(id)?.theme === wanted) drawn.set(id, { theme: wanted, result });
}

function drawAll() {
  const places = [...document.querySelectorAll("[data-chart]")];
  return Promise.all(places.map(draw)).then(() => { root.dataset.drawn = theme(); });
}

function name() {
  button.textContent = theme() === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${button.textContent.toLowerCase()} colors`);
}

button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = theme() === "dark" ? "light" : "dark";
  name();
  drawAll();
});
system.addEventListener("change", () => { name(); drawAll(); });
addEventListener("beforeprint", () => { printing = true; root.dataset.printing = ""; drawAll(); });
addEventListener("afterprint", () => { printing = false; delete root.dataset.printing; drawAll(); });
name();
drawAll();
