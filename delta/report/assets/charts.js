// Draws the charts that the page holds as JSON, in the colours of the page, and again when those change.
(() => {
  "use strict";
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const shown = specs.map(() => 0);
  const narrow = window.matchMedia("(max-width: 640px)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // "--name" anywhere in a chart is a colour of the style sheet.
  const paint = (value, css) => {
    if (typeof value === "string") return value.startsWith("--") ? css.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((one) => paint(one, css));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, paint(one, css)]));
  };

  const axis = (given) => ({
    gridcolor: "--line", linecolor: "--line", zerolinecolor: "--line", automargin: true, ...given,
    title: given && given.title ? { text: given.title, standoff: 10 } : undefined,
  });

  const layoutOf = (given) => ({
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12.5, color: "--ink" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 12, r: 14, t: 26, b: 12 },
    hovermode: "closest",
    hoverlabel: { bgcolor: "--panel", bordercolor: "--line", font: { color: "--ink", size: 12.5 }, align: "left" },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
    // A finger scrolls the page; it zooms with the buttons.
    dragmode: coarse.matches ? false : "zoom",
    ...given,
    xaxis: axis(given.xaxis), yaxis: axis(given.yaxis),
  });

  const draw = (index) => {
    const css = getComputedStyle(document.documentElement);
    const view = specs[index].views[shown[index]];
    const place = document.getElementById(`chart-${index}`);
    const height = narrow.matches ? view.heights[1] : view.heights[0];
    const layout = layoutOf({ ...view.layout, height });
    return Plotly.react(place, paint(view.data, css), paint(layout, css), {
      displaylogo: false, responsive: true,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  };

  const all = () => specs.forEach((_, index) => draw(index));
  specs.forEach((spec, index) => {
    document.querySelectorAll(`[data-chart="${index}"] button`).forEach((button, view, buttons) => {
      button.addEventListener("click", () => {
        shown[index] = view;
        buttons.forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
        draw(index);
      });
    });
  });
  all();
  dark.addEventListener("change", all);
  narrow.addEventListener("change", all);
})();
