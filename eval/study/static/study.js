// The page of a question: looking comes before choosing, keys work, and an answer that could not be
// sent is not lost. Without this script the form still works.
"use strict";

const form = document.querySelector("form");
const hint = form.querySelector(".hint");
const buttons = [...form.querySelectorAll("button")];
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right" };
let open = false;

function say(text, trouble = false) {
  hint.textContent = text;
  hint.classList.toggle("trouble", trouble);
}

function allow(yes) {
  open = yes;
  for (const button of buttons) button.setAttribute("aria-disabled", String(!yes));
}

async function look() {
  allow(false);
  say("Look at both images first.");
  try {
    await Promise.all([...document.images].map((image) => image.decode()));
  } catch {
    say("An image did not arrive. Please reload this page.", true);
    return;
  }
  await new Promise((done) => setTimeout(done, Number(form.dataset.milliseconds)));
  say("Choose the left or the right image.");
  allow(true);
}

async function choose(side) {
  if (!open) return;
  allow(false);
  for (const button of buttons) button.classList.toggle("chosen", button.value === side);
  const question = form.elements.question.value;
  const body = new URLSearchParams({ question, choice: side });
  let response;
  try {
    response = await fetch(form.action, { method: "POST", body, redirect: "manual" });
  } catch {
    response = { status: 503 };
  }
  if (response.type === "opaqueredirect") {
    location.replace(form.dataset.next);
  } else if (response.status === 503) {
    say("The study cannot be reached just now. Your earlier answers are safe: choose again in a moment.", true);
    allow(true);
  } else {
    // Refused: the server says why on a page of its own.
    const choice = Object.assign(document.createElement("input"), { type: "hidden", name: "choice", value: side });
    form.append(choice);
    form.submit();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  choose(event.submitter.value);
});

document.addEventListener("keydown", (event) => {
  const side = KEYS[event.key];
  const busy = event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey;
  if (!side || busy || event.target.matches("input[type=text]")) return;
  event.preventDefault();
  choose(side);
});

document.querySelector("input[readonly]").addEventListener("focus", (event) => event.target.select());

// Back and forward bring the page as it was left: ask the server anew.
addEventListener("pageshow", (event) => event.persisted && location.reload());

look();
