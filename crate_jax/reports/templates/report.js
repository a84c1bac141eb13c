// The page works without this script; with it tables can be sorted and galleries stepped through.
"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("−", "-").replace("–", ""));
  table.querySelectorAll("thead th").forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "sort by name");
    header.append(button);
    button.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      const value = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows];
      const numeric = rows.some((row) => !Number.isNaN(number(value(row))));
      rows.sort((a, b) => {
        if (!numeric) return value(a).localeCompare(value(b));
        const [x, y] = [number(value(a)), number(value(b))];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return descending ? y - x : x - y;
      });
      if (!numeric && descending) rows.reverse();
      table.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const figures = [...gallery.querySelectorAll("figure")];
  const sliders = [...gallery.querySelectorAll("input[type=range]")];
  const show = () => {
    let place = 0;
    for (const slider of sliders) {
      const values = JSON.parse(slider.dataset.values);
      const text = values[slider.valueAsNumber];
      place = place * values.length + slider.valueAsNumber;
      slider.setAttribute("aria-valuetext", text);
      slider.parentElement.querySelector("output").textContent = text;
    }
    figures.forEach((figure, index) => { figure.hidden = index !== place; });
  };
  sliders.forEach((slider) => slider.addEventListener("input", show));
  gallery.querySelector(".controls").hidden = false;
  show();
}

const save = document.getElementById("save");
save.hidden = false;
save.addEventListener("click", () => {
  const link = document.createElement("a");
  const text = document.getElementById("numbers").textContent;
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "report.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
