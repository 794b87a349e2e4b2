// Shows one prompt at a time with every method, and enlarges pictures, two methods side by side.
// Without it, the tables hold the same pictures.
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

  // A picture enlarged, with another method's beside it: the same prompt from the same start noise.
  const enlarged = document.getElementById("enlarged");
  const panes = [...enlarged.querySelectorAll("figure")];
  const choices = panes.map((pane) => pane.querySelector("select"));
  let opened = null;  // the subject, the column of its sheet, and the row if it is a target image

  const scoresOf = (of, method, column) => of.metrics
    .map((metric, m) => [metric, method.scores[m][column], of.digits[m]])
    .filter(([, value]) => value !== null)
    .map(([metric, value, digits]) => `${metric} ${value.toFixed(digits)}`);

  const enlarge = () => {
    const { of, column, target } = opened;
    enlarged.classList.toggle("single", target);
    const number = column % of.samples;
    const text = of.prompts[Math.floor(column / of.samples)];
    const which = of.samples > 1 ? `, picture ${number + 1} of ${of.samples}` : "";
    enlarged.querySelector(".asked").textContent = target
      ? `target image of ${of.targets[column]}` : `${of.name}: “${text}”${which}`;
    panes.forEach((pane, i) => {
      const method = of.methods[choices[i].value];
      const tile = pane.querySelector(".tile");
      const y = target ? 0 : Number(choices[i].value) + 1;
      const place = { sheet: `url("${of.sheet}")`, x: column, y, columns: of.columns, rows: of.rows };
      for (const [key, value] of Object.entries(place)) tile.style.setProperty(`--${key}`, value);
      tile.setAttribute("aria-label", target ? "target image" : `${of.name} · ${method.name} · ${text}`);
      const seed = method.seeds[column];
      const notes = target ? [] : [...scoresOf(of, method, column), ...(seed ? [`seed ${seed}`] : [])];
      pane.querySelector("figcaption").replaceChildren(
        ...notes.map((note) => Object.assign(document.createElement("span"), { textContent: note })));
    });
  };
  const step = (by) => {
    const count = opened.target ? opened.of.targets.length : opened.of.prompts.length * opened.of.samples;
    opened.column = (opened.column + by + count) % count;
    enlarge();
  };
  document.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile[aria-label]");
    if (!tile?.getAttribute("aria-label") || enlarged.contains(tile)) return;
    const at = (key) => tile.style.getPropertyValue(`--${key}`).trim();
    const of = subjects.find(({ sheet }) => at("sheet").slice(5, -2) === sheet);
    const row = Number(at("y"));
    opened = { of, column: Number(at("x")), target: row === 0 };
    const left = Math.max(row - 1, 0);
    choices.forEach((choice, i) => {
      options(choice, of.methods.map(({ name }) => name));
      choice.value = (left + i) % of.methods.length;
    });
    enlarge();
    enlarged.showModal();
  });
  for (const choice of choices) choice.addEventListener("change", enlarge);
  for (const button of enlarged.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  }
  enlarged.addEventListener("keydown", (event) => {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const across = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (along) {
      step(along);
    } else if (across && !opened.target && event.target.tagName !== "SELECT") {
      const choice = choices[event.shiftKey ? 1 : 0];
      const count = choice.options.length;
      choice.selectedIndex = (choice.selectedIndex + across + count) % count;
      enlarge();
    } else {
      return;
    }
    event.preventDefault();
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
        const scores = scoresOf(of, method, column);
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
