// Brings the numbers up to date every few seconds.
"use strict";

setInterval(async () => {
  if (document.hidden) return;
  try {
    const response = await fetch(location.href);
    if (!response.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const scrolled = [...document.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    document.querySelector("main").replaceWith(page.querySelector("main"));
    document.querySelectorAll(".scroll").forEach((box, i) => (box.scrollLeft = scrolled[i] ?? 0));
  } catch {
    // The server is away; the last numbers stay.
  }
}, 5000);
