// Shows one prompt at a time with every method, and enlarges pictures. Without it, the tables hold
// the same pictures.
"use strict";
(() => {
  const subjects = JSON.parse(document.getElementById("pictures").textContent);
  const root = document.getElementById("chooser");
  const form = root.querySelector("form");
  const { subject, prompt, sample } = form.elements;

  const options = (select, names) =>
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));

  const picture = (of, x, y, label, name, notes) => {
    const tile = document.createElement("span");
    tile.className = "tile";
    tile.setAttribute("role", "img");
    tile.setAttribute("aria-label", label);
    const place = { sheet: `url("${of.sheet}")`, x, y, columns: of.columns, rows: of.rows };
    for (const [key, value] of Object.entries(place)) tile.style.setProperty(`--${key}`, value);
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const title = document.createElement("b");
    title.textContent = name;
    const lines = notes.map((note) => Object.assign(document.createElement("span"), { textContent: note }));
    caption.append(title, ...lines);
    figure.append(tile, caption);
    return figure;
  };

  const enlarged = document.getElementById("enlarged");
  document.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile[aria-label]");
    if (!tile?.getAttribute("aria-label") || enlarged.contains(tile)) return;
    const large = enlarged.querySelector(".tile");
    large.style.cssText = tile.style.cssText;
    large.setAttribute("aria-label", tile.getAttribute("aria-label"));
    enlarged.querySelector("p").textContent = tile.getAttribute("aria-label");
    enlarged.showModal();
  });
  document.addEventListener("mouseover", (event) => {
    const tile = event.target.closest(".tile[aria-label]");
    if (tile) tile.title = tile.getAttribute("aria-label");
  });

  const show = () => {
    const of = subjects[subject.value];
    const text = of.prompts[prompt.value];
    const column = prompt.value * of.samples + Number(sample.value);
    root.querySelector(".asked").textContent = `“${text}”`;
    root.querySelector(".targets").replaceChildren(
      ...of.targets.map((name, i) => picture(
        of, i, 0, `target image of ${name}`, "", name === of.targets[i - 1] ? [] : [`this ${name}`])));
    root.querySelector(".methods").replaceChildren(
      ...of.methods.map((method, i) => {
        const scores = of.metrics
          .map((metric, m) => [metric, method.scores[m][column]])
          .filter(([, value]) => value !== null)
          .map(([metric, value]) => `${metric} ${value.toFixed(2)}`);
        const label = `${of.name} · ${method.name} · ${text}`;
        return picture(of, column, i + 1, label, method.name, [`${of.name}: “${text}”`, ...scores]);
      }));
  };

  const choose = () => {
    const of = subjects[subject.value];
    options(prompt, of.prompts);
    options(sample, Array.from({ length: of.samples }, (_, i) => i + 1));
    sample.closest("label").hidden = of.samples === 1;
    show();
  };

  options(subject, subjects.map((of) => of.name));
  subject.addEventListener("change", choose);
  prompt.addEventListener("change", show);
  sample.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of form.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      const count = prompt.options.length;
      prompt.selectedIndex = (prompt.selectedIndex + Number(button.dataset.step) + count) % count;
      show();
    });
  }
  choose();
  root.hidden = false;
  document.getElementById("look-note").hidden = true;
})();
